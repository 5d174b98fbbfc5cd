"""`generate --batch`: one request that cannot be sent is named, and the others are made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.fake_triton import Call, Picture, fake_triton

# What each line's value must be, where a value of another type was sent as something else, or ended the whole batch.
WRONG = {
    '{"prompt": ["a"]}': "prompt is ['a'], must be text",
    '{"prompt": 5}': "prompt is 5, must be text",
    '{"prompt": {"text": "star"}}': "prompt is {'text': 'star'}, must be text",
    '{"prompt": "star", "guidance_scale": "abc"}': "star: guidance_scale is 'abc', must be a number",
    '{"prompt": "star", "guidance_scale": [3]}': "star: guidance_scale is [3], must be a number",
    '{"prompt": "star", "seed": {}}': "star: seed is {}, must be an integer",
    '{"prompt": "star", "seed": true}': "star: seed is True, must be an integer",
    '{"prompt": "star", "height": 64.5}': "star: height is 64.5, must be an integer",
    '{"prompt": "star", "cache_schedule": [0, 4, 9]}': "star: cache_schedule is [0, 4, 9], must be text",
    '{"prompt": "star", "preview": "no"}': "star: preview is 'no', must be true or false",
    '{"prompt": "star \\ud83e"}': "star ?: prompt is invalid at character 5, must be Unicode text",
    '{"class_label": "seven"}': "class_label is 'seven', must be an integer",
}


def made(call: Call) -> Iterator[Picture]:
    yield Picture({"seed": 3, "num_steps": 8, "full_steps": [0], "total_s": 0.1, "received": call.fields})


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_value_of_a_wrong_type_is_named_with_its_line_and_the_others_are_made(tmp_path: Path, jobs: int):
    batch = tmp_path / "t.txt"
    batch.write_text("\n".join(["star", *WRONG, "cactus"]))
    with fake_triton(made) as url:
        code, output = run("generate", "--batch", batch, "--url", url, "--jobs", jobs, "-o", tmp_path / "t")
    assert code == 1
    for line, sentence in enumerate(WRONG.values(), start=2):
        assert f"{batch}:{line}: {sentence}\n" in output
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["0001-star.png", "0014-cactus.png"]
    assert "error: 12 of 14 requests failed" in output


def test_files_of_other_editors_ask_for_the_same(tmp_path: Path):
    files = {
        "a": b"\xef\xbb\xbfred apple, 3d\n",
        "b": b'\xef\xbb\xbf{"prompt": "red apple, 3d", "seed": 9}\r\n',
        "c": '{"prompt": "red apple\u2028 3d"}\n'.encode(),
        "d": '{"prompt": "red apple\x85 3d"}\n'.encode(),
        "e": "red apple\u2028 3d\n".encode(),
    }
    asked = {}
    with fake_triton(made) as url:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            options = ["--url", url, "--seed", 7, "-o", tmp_path / f"out_{name}", "--json"]
            code, output = run("generate", "--batch", tmp_path / name, *options)
            assert code == 0, output
            (line,) = [line for line in output.splitlines() if line.startswith("{")]
            asked[name] = json.loads(line)["report"]["received"]
    assert asked == {
        "a": {"prompt": "red apple, 3d", "seed": 7},
        "b": {"prompt": "red apple, 3d", "seed": 9},
        "c": {"prompt": "red apple\u2028 3d", "seed": 7},
        "d": {"prompt": "red apple\x85 3d", "seed": 7},
        "e": {"prompt": "red apple\u2028 3d", "seed": 7},
    }


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("star\ncafé\n".encode("latin-1"))
    for command in (["generate", "--batch", path], ["tune", "emoji", "--full-steps", 10, "--prompts", path]):
        code, output = run(*command)
        assert code == 1
        assert f"error: {path}:2 is not UTF-8 at byte 3: save the file as UTF-8" in output
