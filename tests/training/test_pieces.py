"""A run in pieces: the plan, what a later piece remembers, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from training import pieces
from training.checkpoints import Checkpoint, write_checkpoint
from training.pieces import (
    Piece,
    Plan,
    Progress,
    add_options,
    append_record,
    check_unfinished,
    checkpoint_to_resume,
)
from training.transformer import Cells, TransformerSettings


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, minutes=25.0)
    return parser.parse_args(["--batch", "8", *arguments])


def settings(*arguments: str, saved: TransformerSettings | None = None) -> TransformerSettings:
    remembered = None if saved is None else json.loads(json.dumps(saved.saved()))  # as a checkpoint has it
    return TransformerSettings.of(options(*arguments), remembered)


class Clock:
    """A step takes a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(pieces.time, "monotonic", lambda: self.seconds)

    def run(self, piece: Piece, plan: Plan, progress: Progress) -> list[float]:
        shares = []
        for share in piece.shares(plan, progress):
            shares.append(share)
            progress.steps += 1
            self.seconds += 60
        return shares


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("plan", [Plan(minutes=8), Plan(steps=8)])
def test_pieces_continue_the_schedule_of_the_plan_and_end_with_it(clock: Clock, plan: Plan) -> None:
    progress = Progress()
    assert clock.run(Piece(minutes=3), plan, progress) == [0, 1 / 8, 2 / 8]
    clock.seconds += 5000  # between pieces
    assert clock.run(Piece(minutes=100, steps=2), plan, progress) == [3 / 8, 4 / 8]
    assert clock.run(Piece(minutes=100), plan, progress) == [5 / 8, 6 / 8, 7 / 8]
    assert progress == Progress(steps=8, minutes=8)
    assert clock.run(Piece(minutes=100), plan, progress) == []


def test_the_learning_rate_warms_up_over_100_steps_of_the_run() -> None:
    assert [Progress(steps=steps).warm_up for steps in (0, 49, 99, 100, 5000)] == [0.01, 0.5, 1, 1, 1]


def test_a_first_piece_is_the_whole_run_if_it_does_not_say() -> None:
    assert settings("--minutes", "28").plan == Plan(minutes=28)
    assert settings("--steps", "12").plan == Plan(steps=12)
    assert settings("--minutes", "9", "--total-minutes", "90").plan == Plan(minutes=90)
    assert settings("--total-steps", "5000").plan == Plan(steps=5000)


def test_a_later_piece_remembers_the_plan_and_the_options() -> None:
    first = settings("--total-steps", "500", "--concepts", "all")
    assert settings("--minutes", "3", saved=first) == first
    changed = settings("--total-minutes", "60", "--batch", "16", saved=first)
    assert (changed.plan, changed.batch, changed.concepts) == (Plan(minutes=60), 16, "all")


@pytest.mark.parametrize("arguments", [("--total-steps", "5", "--total-minutes", "5")])
def test_a_plan_in_steps_and_in_minutes_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="a plan is in steps or in minutes"):
        settings(*arguments)


def test_a_finished_plan_says_how_to_extend_it() -> None:
    check_unfinished(Plan(steps=10), Progress(steps=9))
    with pytest.raises(ValueError, match="a larger --total-steps or --total-minutes extends it"):
        check_unfinished(Plan(steps=10), Progress(steps=10))


def test_a_new_run_does_not_take_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path, resume=False) is None
    write_checkpoint(tmp_path, 7, Checkpoint({}, {"step": 7}))
    with pytest.raises(FileExistsError, match="step_00000007 is there: --resume goes on from it"):
        checkpoint_to_resume(tmp_path, resume=False)
    resumed = checkpoint_to_resume(tmp_path, resume=True)
    assert resumed is not None
    assert resumed.values == {"step": 7}


def test_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no checkpoint to resume from"):
        checkpoint_to_resume(tmp_path, resume=True)


def test_records_are_lines_of_a_log(tmp_path: Path) -> None:
    for step in (1, 2):
        append_record(tmp_path / "run" / "log.jsonl", {"step": step})
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


# Which texts a step shows


def cells(counts: list[int]) -> Cells:
    """The latents of cell i are i, and the ids of text j are j."""
    count = torch.tensor(counts)
    texts = torch.arange(sum(counts) + 1)[:, None]
    latents = torch.arange(len(counts))[:, None, None]
    return Cells(latents, texts, texts, count.cumsum(0) - count, count)


def test_a_step_shows_prompts_alone_unless_it_is_asked_for_others() -> None:
    torch.manual_seed(0)
    latents, texts = cells([1, 3, 2]).sample(600, other_share=0.0)
    assert torch.equal(texts, torch.tensor([0, 1, 4])[latents.flatten()])
    assert len(texts.unique()) == 3


def test_so_large_a_share_of_a_step_shows_other_texts_of_the_same_cell() -> None:
    torch.manual_seed(0)
    some = cells([1, 3, 2])
    latents, texts = some.sample(30_000, other_share=0.3)
    rows = latents.flatten()
    which = texts - some.first[rows]
    assert (which >= 0).all()
    assert (which < some.count[rows]).all()
    assert (which[rows == 0] == 0).all()  # has no other
    for row, others in ((1, 2), (2, 1)):
        for other in range(1, others + 1):
            share = (which[rows == row] == other).float().mean().item()
            assert share == pytest.approx(0.3 / others, abs=0.02)  # five standard deviations of 10,000 draws
