"""What the transformer is trained on, and what is kept from it."""

from __future__ import annotations

from collections import Counter

from training.data import STYLES, held_out_cells, prompt_of, trained_concepts, training_prompts


def test_held_out_cells_are_never_trained() -> None:
    assert not held_out_cells() & set(training_prompts())


def test_held_out_and_trained_cells_are_all_cells() -> None:
    cells = {prompt_of(concept, style) for concept in trained_concepts() for style in STYLES}
    assert held_out_cells() | set(training_prompts()) == cells


def test_three_to_five_percent_of_the_cells_are_held_out() -> None:
    share = len(held_out_cells()) / (len(trained_concepts()) * len(STYLES))
    assert 0.03 <= share <= 0.05


def test_every_style_loses_some_cells_and_no_concept_loses_two() -> None:
    cells = [cell.rsplit(", ", 1) for cell in held_out_cells()]
    assert set(Counter(style for _, style in cells)) == set(STYLES)
    assert max(Counter(concept for concept, _ in cells).values()) == 1


def test_concepts_are_listed_once() -> None:
    assert max(Counter(trained_concepts()).values()) == 1
