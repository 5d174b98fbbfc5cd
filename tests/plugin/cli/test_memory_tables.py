"""`plan --memory`: what it prints of one model and of all, and the table of the documentation that it makes."""

from __future__ import annotations

import re
import shutil

import pytest

from plugin.cli.memory_tables import cell, sentence
from plugin.cli.terminal import binary
from plugin.config import ModelConfig
from plugin.paths import REPOSITORY
from plugin.serving.fitting import Fit, fits
from plugin.serving.memory import plan_memory
from plugin.serving.plan import example_request
from tests.support.commands import run
from tests.support.documents import tables_of
from tests.support.paths import ROOT

GIB = 2**30
HEADING = "What fits"
ROWS = {
    re.findall(r"`(\w+)`", row[0])[0]: row
    for row in tables_of(ROOT / "docs/models.md")[HEADING]
    if row[0].startswith("`") and len(row) == 6
}


def lines_of(output: str) -> dict[str, str]:
    """The second cells of tables of two columns, by the first."""
    rows = re.findall(r"│ ([^│]+?) +│ ([^│]+?) +│$", output, re.MULTILINE)
    return dict(rows)


# The documentation


def test_the_table_has_every_model():
    assert ROWS.keys() == {path.name.removesuffix("_stream") for path in REPOSITORY.glob("*_stream")}


@pytest.mark.parametrize("model", ROWS)
def test_the_table_says_what_the_command_says(model):
    _, needed, *cells = ROWS[model]
    config = ModelConfig.from_folder(REPOSITORY / f"{model}_stream")
    request = example_request(config)
    assert [each.replace("`", "") for each in cells] == [cell(each) for each in fits(config, request)]
    assert needed == binary(plan_memory(config, request).total(1))


# The command


def test_it_prints_every_part_of_the_sum():
    code, output = run("plan", "flux_dev", "--memory")
    assert code == 0
    assert "flux_dev, height 1024, width 1024" in output
    assert re.search(r"transformer +│ 11\.90 B +│ bfloat16 +│ always there │ 22\.2 GiB", output)
    assert re.search(r"text_encoder_2 +│ 4\.76 B +│ bfloat16 +│ always there │ 8\.9 GiB", output)
    assert re.search(r"engine torch +│ +│ torch's own blocks +│ +│ - +│", output)
    lines = lines_of(output)
    assert lines["anchors"] == "288.0 MiB: 4 x 72.0 MiB"
    assert lines["decoding, at most"] == "2.4 GiB"
    assert [lines[f"{size} GB"] for size in (48, 80)] == [f"fits: 4 at once, {lines['total, 4 at once']}"] * 2
    assert lines["24 GB"].startswith("with quantization=transformer=int8, text_encoder_2=int8: 2 at once, with max_in")


def test_it_takes_the_options_of_a_request():
    small, large = (
        lines_of(run("plan", "flux_dev", "--memory", "--height", side, "--width", side, "--order", 0)[1])
        for side in (512, 2048)
    )
    assert (small["anchors"], large["anchors"]) == ("24.0 MiB: 4 x 6.0 MiB", "384.0 MiB: 4 x 96.0 MiB")
    assert (small["decoding, at most"], large["decoding, at most"]) == ("608.0 MiB", "9.5 GiB")


def test_it_prints_where_components_are(monkeypatch):
    monkeypatch.setenv("TAYLORSEER_FLUX_DEV_OFFLOAD", "text_encoder=cpu, text_encoder_2=idle")
    code, output = run("plan", "flux_dev", "--memory")
    assert code == 0
    assert re.search(r"text_encoder +│ 123\.06 M +│ bfloat16 +│ on the CPU +│ - +│", output)
    assert re.search(r"text_encoder_2 +│ 4\.76 B +│ bfloat16 +│ while it runs", output)


def test_it_prints_what_each_further_process_needs(monkeypatch):
    monkeypatch.setenv("TAYLORSEER_WAN2_1_T2V_ENGINE", "parallel")
    monkeypatch.setenv("TAYLORSEER_WAN2_1_T2V_SEQUENCE_PARALLEL", "2")
    code, output = run("plan", "wan2_1_t2v", "--memory", "--num-frames", 33)
    assert code == 0
    assert "wan2_1_t2v, height 480, width 832, 33 frames" in output
    assert float(lines_of(output)["each further process"].split()[0]) > 26


def test_without_a_model_it_prints_all(tmp_path):
    for name in ("emoji_stream", "flux_dev_stream"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "emoji", tmp_path / "emoji")
    code, output = run("plan", "--memory", "--model-repository", tmp_path)
    assert code == 0
    assert re.search(r"emoji +│ 1\d\d\.\d MiB +│ 8 at once +│ 8 at once +│ 8 at once +│ 8 at once", output)
    assert re.search(r"flux_dev +│ 3\d\.\d GiB +│ quantization", output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: MODEL is missing, must be a model of the repository: only with --memory it may be left out"),
        (["--memory", "--height", 64], "error: height is given, must be left out without a MODEL: each model has its"),
        (["unicorn", "--memory"], "unicorn_stream/config.pbtxt is missing, must be the model's configuration"),
        (["emoji", "--memory", "--height", 7], "error: height is 7, must be a multiple of"),
        (["--memory", "--model-repository", "/nowhere"], "error: /nowhere holds no model, must have folders of models"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(arguments, message):
    code, output = run("plan", *arguments)
    assert code == 1
    assert message in output


# Sentences


@pytest.mark.parametrize(
    ("fit", "short", "long"),
    [
        (Fit(24, 4, 20 * GIB), "4 at once", "fits: 4 at once, 20.0 GiB"),
        (Fit(24, 2, 20 * GIB), "2 at once", "fits: 2 at once, with max_in_flight=2, 20.0 GiB"),
        (
            Fit(24, 1, 20 * GIB, {"vae_tiling": "true"}),
            "vae_tiling=true; 1 at a time",
            "with vae_tiling=true: 1 at a time, with max_in_flight=1, 20.0 GiB",
        ),
        (
            Fit(24, 0, 30 * GIB, {"vae_tiling": "true", "offload": "vae=idle"}),
            "no",
            "does not fit: 1 request needs 30.0 GiB with vae_tiling=true; offload=vae=idle",
        ),
        (Fit(24, 0, 30 * GIB), "no", "does not fit: 1 request needs 30.0 GiB with its own settings"),
    ],
)
def test_a_fit_in_words(fit, short, long):
    assert (cell(fit), sentence(fit, 4)) == (short, long)
