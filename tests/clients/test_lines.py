"""Files of prompts as editors and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.batch import read_batch
from clients.lines import read_lines
from plugin.cli.terminal import lines_of

APPLE = "red apple, 3d"


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfred apple, 3d\n", [(1, APPLE)]),  # Notepad's byte order mark
        (b"\xef\xbb\xbf\r\nred apple, 3d\r\n", [(2, APPLE)]),
        (b"red apple, 3d\rstar", [(1, APPLE), (2, "star")]),
        (b"  red apple, 3d \t\n\n# no prompt\n \nstar", [(1, APPLE), (5, "star")]),
        ("red\u2028apple\n".encode(), [(1, "red\u2028apple")]),
        ("red\x85apple\x0b3d\x0c\x1c\x1d\x1e\u2029!\n".encode(), [(1, "red\x85apple\x0b3d\x0c\x1c\x1d\x1e\u2029!")]),
        (b"", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_a_line_ends_where_an_editor_ends_it(tmp_path: Path, content: bytes, lines: list[tuple[int, str]]):
    assert read_lines(written(tmp_path, content)) == lines


@pytest.mark.parametrize("content", ["star\ncaf\xe9\n".encode("latin-1"), b"star\nred \xff\xfe"])
def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path, content: bytes):
    with pytest.raises(ValueError, match=r"prompts\.txt:2 is not UTF-8 at byte \d: save the file as UTF-8"):
        read_lines(written(tmp_path, content))


def test_text_of_windows_in_utf_16_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"prompts\.txt:1 is not UTF-8 at byte 0"):
        read_lines(written(tmp_path, APPLE.encode("utf-16")))


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b'\xef\xbb\xbf{"prompt": "red apple, 3d", "seed": 7}\n', {"prompt": APPLE, "seed": 7}),
        ('{"prompt": "red apple\u2028 3d"}\n'.encode(), {"prompt": "red apple\u2028 3d"}),
        ('{"prompt": "red apple\x85 3d"}\n'.encode(), {"prompt": "red apple\x85 3d"}),
        ("red apple\u2028 3d\n".encode(), {"prompt": "red apple\u2028 3d"}),
    ],
)
def test_a_batch_has_one_request_for_each_line(tmp_path: Path, content: bytes, fields: dict[str, object]):
    (item,) = read_batch(written(tmp_path, content), {})
    assert item.fields == fields
    assert item.stem.startswith("0001-red-apple-3d")


def test_prompts_of_other_commands_are_read_alike(tmp_path: Path):
    path = written(tmp_path, b"\xef\xbb\xbfred apple, 3d\r\n# no prompt\n" + "a\u2028b\n".encode())
    assert lines_of("prompts", path) == (APPLE, "a\u2028b")
    with pytest.raises(ValueError, match=r"prompts is .*, which is empty: must hold a prompt a line"):
        lines_of("prompts", written(tmp_path, b"\xef\xbb\xbf# nothing\n"))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "names 'prompt' twice"),
        ('{"seed": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"prompt": ' + "[" * 200_000 + "}", "is not JSON"),
        ('{"promt": "a"}', "'promt' is not a field, must be one of: prompt, "),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, problem: str):
    with pytest.raises(ValueError, match=r"prompts\.txt:2:? ") as caught:
        read_batch(written(tmp_path, f"star\n{line}\n".encode()), {})
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 600
