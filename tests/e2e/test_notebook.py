"""The notebook, run against a real Triton as Jupyter runs it."""

from __future__ import annotations

import base64
import io
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

from tests.support.paths import ROOT
from tests.support.serving import Triton

NOTEBOOK = ROOT / "clients/notebook/pictures.ipynb"
INTERVALS = (1, 2, 3, 4, 5, 6, 8, 10)  # of its sweep


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def ran(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook with the outputs of this server."""
    notebook = read()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_URL", triton.grpc_url)
        sockets = tmp_path_factory.mktemp("kernel") / "ipc"  # in place of ports
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(sockets))
        NotebookClient(notebook, km=kernel, timeout=120).execute(cwd=str(ROOT))
    return notebook


def texts(notebook: Any, beginning: str) -> str:
    """What the code cell prints whose source begins so."""
    (cell,) = [each for each in notebook.cells if each.cell_type == "code" and each.source.startswith(beginning)]
    return "".join(each.text for each in cell.outputs if each.output_type == "stream" and each.name == "stdout")


def pictures(notebook: Any) -> list[Image.Image]:
    files = [each["data"]["image/png"] for cell in notebook.cells for each in cell.get("outputs", ()) if "data" in each]
    return [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]


def test_the_first_picture_is_the_models(ran, triton):
    with triton.client() as client:
        expected = client.generate("red apple, 3d", seed=7).image[0]
    large = Image.fromarray(expected).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(pictures(ran)[0]), np.asarray(large))
    assert texts(ran, "picture = client.generate").startswith("12 of 50 steps full, ")


def test_the_sweep_measures_what_the_schedule_says(ran):
    header, *rows = texts(ran, "def psnr").splitlines()
    assert header.split() == ["interval", "full", "steps", "seconds", "PSNR", "dB"]
    values = [[float(word) for word in row.split()] for row in rows]
    assert tuple(row[0] for row in values) == INTERVALS
    warmup = 3
    for interval, full, seconds, distance in values:
        assert full == warmup + (50 - warmup) // interval
        assert seconds > 0
        assert (distance == np.inf) == (interval == 1)


def test_previews_come_before_the_picture(ran):
    """Each 5th step has one, the last step's is the picture."""
    assert texts(ran, "live = display") == "9 previews before the picture\n"


def test_every_picture_is_there_in_the_file_that_people_see(ran):
    shipped = read()
    assert [each.size for each in pictures(shipped)] == [each.size for each in pictures(ran)]
    assert all(each.get("execution_count") for each in shipped.cells if each.cell_type == "code")
    assert not [each for cell in shipped.cells for each in cell.get("outputs", ()) if each.output_type == "error"]
