"""The wheels of the server and of the client, each in a bare environment: what lands there, and pictures through it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import free_port_options
from tests.support.paths import REPOSITORY
from tests.support.serving import Triton
from tests.support.waiting import wait_for
from tests.support.wheels import Environment, build, environment, pythons, run, top_level

MAX_IMPORT_S = 0.3
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
# What the client's wheel may bring: itself, what it asks for, and what tritonclient asks for.
FAMILY = {
    *("triton-taylorseer-client", "tritonclient", "numpy", "pillow", "pip", "setuptools"),
    *("grpcio", "protobuf", "python-rapidjson", "packaging", "urllib3", "ml_dtypes", "typing_extensions"),
}
FIELDS = {"seed": 7, "num_inference_steps": 8}
PICTURE = """
import asyncio, json, sys, time
began = time.perf_counter()
from triton_taylorseer_client import AsyncClient, Client
seconds = time.perf_counter() - began
url, fields = sys.argv[1], json.loads(sys.argv[2])
with Client(url, "emoji") as client:
    client.generate("red apple, 3d", **fields).save("plain.png")
    *progress, last = client.stream("red apple, 3d", preview=True, **fields)
    last.save("streamed.png")
    client.generate("red apple, noto", input_image="plain.png", strength=0.6, **fields).save("edited.png")

async def main():
    async with AsyncClient(url, "emoji") as client:
        (await client.generate("red apple, 3d", **fields)).save("async.png")

asyncio.run(main())
print(json.dumps({"import_s": seconds, "steps": len(progress)}))
"""
WHERE = """
import taylorseer, triton_taylorseer, plugin.pipeline, clients.openai_api
print(taylorseer.__file__, plugin.__file__, clients.__file__)
"""
# The processor's time: others share the machine.
PROBE = "import time; began = time.process_time(); import triton_taylorseer_client; print(time.process_time() - began)"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The server's and the client's."""
    return build(tmp_path_factory.mktemp("source"))


def test_only_names_of_ours_land_at_the_top(wheels):
    server, client = wheels
    assert top_level(server) == {"taylorseer", "triton_taylorseer"}
    assert top_level(client) == {"triton_taylorseer_client"}


@pytest.mark.network
@pytest.mark.parametrize(("version", "numpy"), [*product(pythons(), ["numpy"]), (OWN, "numpy<2")])
def test_the_client_alone_makes_pictures(triton: Triton, wheels, tmp_path, version: str, numpy: str):
    """Without torch, and in a folder that has a `clients` of its own."""
    bare = environment(tmp_path / "bare", pythons()[version])
    bare.install(wheels[1], numpy)
    assert {each.metadata["Name"].lower() for each in distributions(path=[str(bare.site_packages)])} <= FAMILY
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients/__init__.py").write_text("raise ImportError('this is somebody else')")
    told = json.loads(run([bare.python, "-c", PICTURE, triton.grpc_url, json.dumps(FIELDS)], cwd=tmp_path))
    with triton.client() as client:
        expected = client.generate("red apple, 3d", **FIELDS).image[0]
    for name in ("plain", "streamed", "async"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}.png")), expected), name
    assert Image.open(tmp_path / "edited.png").size == (64, 64)
    assert told["steps"], "steps that come fast are told together"
    seconds = min(float(run([bare.python, "-c", PROBE])) for _ in range(5))
    print(f"Python {version}: {bare.mb:.0f} MB with pip, imported in {seconds:.2f} s")
    assert seconds < MAX_IMPORT_S


@pytest.mark.network
def test_a_video_asks_for_the_extra(wheels, tmp_path):
    bare = environment(tmp_path / "bare")
    bare.install(wheels[1])
    save = (
        "import numpy as np; from triton_taylorseer_client import Generation; "
        "Generation(np.zeros((5, 32, 32, 3), np.uint8), {'fps': 8}).save('a.mp4')"
    )
    refused = subprocess.run([bare.python, "-c", save], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: videos need av: pip install 'triton-taylorseer-client[video]'" in refused.stderr
    bare.install(f"{wheels[1]}[video]")
    run([bare.python, "-c", save], cwd=tmp_path)
    assert (tmp_path / "a.mp4").stat().st_size > 0


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with both wheels. The gigabytes that they need are those of this environment, less its own
    editable installations: only what a .pth file of site-packages itself names is followed."""
    bare = environment(tmp_path_factory.mktemp("installed"))
    bare.install("--no-deps", *wheels)
    (others,) = {str(Path(np.__file__).parents[1])}
    (bare.site_packages / "dependencies.pth").write_text(f"{others}\n")
    return bare


@contextmanager
def serving(bare: Environment, folder: Path) -> Iterator[str]:
    """The gRPC address of a server that the installed command runs in a folder."""
    ports = free_port_options()
    command = [bare.folder / "bin/triton-taylorseer", "serve", "--model-repository", REPOSITORY, "--model", "emoji"]
    log = folder / "log"
    with log.open("w") as file:
        options = {"cwd": folder, "stdout": file, "stderr": subprocess.STDOUT, "env": strange(folder)}
        server = subprocess.Popen([*map(str, command), *ports], **options)
        try:
            wait_for(lambda: "ready: HTTP" in log.read_text() or server.poll() is not None, "it serves", timeout_s=120)
            assert server.poll() is None, log.read_text()
            yield f"localhost:{ports[3]}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def strange(folder: Path) -> dict[str, str]:
    """An environment whose path has other people's packages of our folders' names."""
    for name in ("plugin", "clients", "benchmarks"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text("raise ImportError('this is somebody else')")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_the_server_serves_from_its_wheel_beside_packages_of_the_same_names(triton: Triton, installed, tmp_path):
    places = run([installed.python, "-c", WHERE], cwd=tmp_path, env=strange(tmp_path)).split()
    assert all(Path(place).is_relative_to(installed.site_packages) for place in places)
    with serving(installed, tmp_path) as url:
        command = [installed.folder / "bin/triton-taylorseer", "generate", "red apple, 3d", "--url", url, "--seed", 7]
        run([*command, "--steps", 8, "-o", "apple.png"], cwd=tmp_path, env=strange(tmp_path))
    with triton.client() as client:
        expected = client.generate("red apple, 3d", **FIELDS).image[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "apple.png")), expected)


def test_another_module_of_our_name_in_the_same_process_is_told(installed, tmp_path):
    (tmp_path / "plugin.py").write_text("")
    code = "import plugin, triton_taylorseer"
    refused = subprocess.run([installed.python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: a module named plugin was imported from" in refused.stderr
