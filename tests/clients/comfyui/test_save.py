"""The node that saves pictures with all that made them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.comfyui.prompts import given, node
from tests.support.comfyui.validation import Invalid

LEVELS = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
RECORDS = [
    {"model": "emoji", "fields": {"prompt": "Äpfel 🍎", "seed": seed}, "report": {"seed": seed}} for seed in (3, 4)
]
WORKFLOW = {"nodes": [{"id": 1, "title": "größer"}]}


def saving(ui, report=None, images=LEVELS, **inputs):
    prompt = {}
    sockets = {"images": given(ui, prompt, "IMAGE", "levels", torch.from_numpy(images.astype(np.float32) / 255))}
    if report is not None:
        sockets["report"] = given(ui, prompt, "STRING", "records", report)
    prompt["save"] = node(ui, "SaveImage", **sockets, **inputs)
    return prompt


def test_each_picture_is_a_png_with_its_levels_and_its_record(ui):
    prompt = saving(ui, json.dumps(RECORDS), filename_prefix="fruit/apple")
    run = ui.run(prompt, WORKFLOW)
    files = run.ui["save"]["images"]
    assert files == [
        {"filename": f"apple_{number:05}_.png", "subfolder": "fruit", "type": "output"} for number in (1, 2)
    ]
    for file, levels, record in zip(files, LEVELS, RECORDS, strict=True):
        with Image.open(ui.host.output / file["subfolder"] / file["filename"]) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), levels)
            texts = image.text
        assert json.loads(texts["triton-taylorseer"]) == record
        assert json.loads(texts["prompt"]) == prompt
        assert json.loads(texts["workflow"]) == WORKFLOW


def test_the_record_is_utf8_in_an_international_text_chunk(ui):
    ui.run(saving(ui, json.dumps(RECORDS)), WORKFLOW)
    file = (ui.host.output / "triton-taylorseer_00001_.png").read_bytes()
    start = file.index(b"iTXttriton-taylorseer\0") + len(b"iTXttriton-taylorseer\0")
    assert file[start : start + 4] == b"\0\0\0\0", "not compressed, no language, no translated keyword"
    assert file[start + 4 :].startswith(json.dumps(RECORDS[0], ensure_ascii=False).encode("utf-8"))
    for name in (b"prompt", b"workflow"):
        assert b"tEXt" + name + b"\0" in file, "where ComfyUI's own node has it"


def test_one_record_is_of_all_frames(ui):
    ui.run(saving(ui, json.dumps(RECORDS[:1])))
    for path in sorted(ui.host.output.iterdir()):
        assert json.loads(Image.open(path).text["triton-taylorseer"]) == RECORDS[0]


def test_no_file_is_written_over(ui):
    taken = ui.host.output / "triton-taylorseer_00041_.png"
    taken.write_bytes(b"of somebody else")
    (ui.host.output / "triton-taylorseer_x_.png").write_bytes(b"")
    (ui.host.output / "other_00099_.png").write_bytes(b"")
    names = [each["filename"] for each in ui.run(saving(ui)).ui["save"]["images"]]
    assert names == ["triton-taylorseer_00042_.png", "triton-taylorseer_00043_.png"]
    assert taken.read_bytes() == b"of somebody else"


def test_no_file_of_another_node_is_written_over_that_saves_at_the_same_time(ui):
    save = ui.nodes["TritonTaylorSeerSaveImage"]().save
    images = torch.from_numpy(LEVELS.astype(np.float32) / 255)
    with ThreadPoolExecutor(8) as pool:
        results = [*pool.map(lambda _: save(images, "x"), range(32))]
    names = [each["filename"] for result in results for each in result["ui"]["images"]]
    assert len(names) == len({*names}) == len([*ui.host.output.iterdir()]) == 64


def test_it_saves_in_every_run(ui):
    prompt = saving(ui)
    ui.run(prompt)
    assert ui.run(prompt).ran == ["save"]
    assert len([*ui.host.output.iterdir()]) == 4


def test_without_metadata_no_file_tells_how_it_was_made(ui):
    ui.host.disable_metadata = True
    ui.run(saving(ui, json.dumps(RECORDS)), WORKFLOW)
    for path in ui.host.output.iterdir():
        assert Image.open(path).text == {}


@pytest.mark.parametrize("prefix", ["", "../x", "a/../../x", "/x", "\\x", "a\\..\\..\\x", "C:x", "a\nb", "a/..", 'a"b'])
def test_no_prefix_leaves_the_output_folder(ui, prefix):
    with pytest.raises(Invalid, match=r"filename_prefix is .*, must be a name, perhaps with folders below the output"):
        ui.run(saving(ui, filename_prefix=prefix))
    prompt = {}
    linked = given(ui, prompt, "STRING", "prefix", prefix)
    run = ui.run(prompt | saving(ui, filename_prefix=linked))
    assert "filename_prefix is" in str(run.error), "also where another node makes it"
    assert not [*ui.host.output.iterdir()]


@pytest.mark.parametrize("report", ["no JSON", "{}", "[]", json.dumps(RECORDS * 2)])
def test_a_report_of_other_pictures_is_refused(ui, report):
    run = ui.run(saving(ui, report))
    assert str(run.error).startswith("report is ")
    assert str(run.error).endswith("must be that of the node that made these 2 pictures")
