"""The scores of a search that was ended: what is read again, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.building.learning.journal import Journal

SETTINGS = {"fingerprint": "01", "order": 4, "requests": ["a", "b"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache_presets.tuning"


def test_scores_are_read_again_bit_for_bit(path: Path) -> None:
    journal = Journal(path, SETTINGS)
    assert journal.get((0, 3)) is None
    assert not path.exists(), "nothing is written before there is a score"
    journal.put((0, 3), -20.1 / 3)
    journal.put((0, 4, 9), -31.0)
    for each in (journal, Journal(path, {**reversed_order(SETTINGS)})):
        assert each.get((0, 3)) == -20.1 / 3
        assert each.get((0, 4, 9)) == -31.0
        assert each.get((0, 4)) is None


def reversed_order(settings: dict[str, object]) -> dict[str, object]:
    return dict(reversed(settings.items()))


@pytest.mark.parametrize("change", [{"order": 3}, {"fingerprint": "02"}, {"requests": ["a"]}, {"more": 1}])
def test_scores_of_other_settings_are_not_read_and_stay_in_the_file(path: Path, change: dict[str, object]) -> None:
    Journal(path, SETTINGS).put((0, 3), -20.0)
    other = Journal(path, SETTINGS | change)
    assert other.get((0, 3)) is None
    other.put((0, 3), -10.0)
    assert Journal(path, SETTINGS).get((0, 3)) == -20.0
    assert Journal(path, SETTINGS | change).get((0, 3)) == -10.0


def test_a_line_that_was_cut_off_is_left_out_and_the_others_are_read(path: Path) -> None:
    journal = Journal(path, SETTINGS)
    journal.put((0, 3), -20.0)
    journal.put((0, 12), -30.0)
    text = path.read_text()
    first = len(text.splitlines()[0]) + 1
    for length in range(first, len(text) - 1):  # up to the last bracket, without which the line is no JSON
        path.write_text(text[:length])
        again = Journal(path, SETTINGS)
        assert again.get((0, 3)) == -20.0
        assert again.get((0, 12)) is None


def test_what_is_put_after_a_line_that_was_cut_off_is_read(path: Path) -> None:
    Journal(path, SETTINGS).put((0, 3), -20.0)
    path.write_text(path.read_text() + '{"settings": "0f')
    Journal(path, SETTINGS).put((0, 5), -25.0)
    again = Journal(path, SETTINGS)
    assert (again.get((0, 3)), again.get((0, 5))) == (-20.0, -25.0)


@pytest.mark.parametrize("line", ["", "[]", "3", "null", '{"settings": 1}', "nonsense"])
def test_what_is_no_score_is_left_out(path: Path, line: str) -> None:
    Journal(path, SETTINGS).put((0, 3), -20.0)
    entry = json.loads(path.read_text())
    damaged = [{**entry, "full_steps": None}, {**entry, "score": "low"}, {"settings": entry["settings"]}]
    path.write_text("\n".join([line, *map(json.dumps, damaged), path.read_text()]))
    assert Journal(path, SETTINGS).get((0, 3)) == -20.0


def test_a_search_that_is_done_removes_its_file(path: Path) -> None:
    journal = Journal(path, SETTINGS)
    journal.remove()
    journal.put((0, 3), -20.0)
    journal.remove()
    assert not path.exists()
    assert Journal(path, SETTINGS).get((0, 3)) is None
