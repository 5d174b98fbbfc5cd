"""The scores of made pictures, on feature vectors whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.evaluate import (
    distance_between_styles,
    distance_to_real,
    features,
    retrieval,
    scores_of,
    style_retrieval,
)
from training.sheets import contact_sheet, sheet_prompts

# Two concepts in two styles; the axes are apple, lemon, 3d, flat, and each cell is the sum of its two.
PROMPTS = ["apple, 3d", "apple, flat", "lemon, 3d", "lemon, flat"]


def vectors(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


REAL = vectors([2, 0, 1, 0], [2, 0, 0, 1], [0, 2, 1, 0], [0, 2, 0, 1])


def test_real_pictures_find_themselves_and_without_themselves_their_concept() -> None:
    assert retrieval(REAL, PROMPTS, REAL, PROMPTS, leave_out=False) == 1
    assert retrieval(REAL, PROMPTS, REAL, PROMPTS, leave_out=True) == 1


def test_a_wrong_concept_is_not_found() -> None:
    made = vectors([2, 0, 1, 0], [0, 2, 0, 1], [0, 2, 1, 0], [0, 2, 0, 1])  # the second is a lemon
    assert retrieval(made, PROMPTS, REAL, PROMPTS, leave_out=False) == 0.75


def test_style_is_asked_of_other_concepts_only() -> None:
    # In all four the own concept is nearer than any other, in the wrong style for half of them.
    made = vectors([2, 0, 1, 0], [2, 0, 1, 0], [0, 2, 1, 0], [0, 2, 1, 0])
    assert style_retrieval(REAL, PROMPTS, REAL, PROMPTS) == 1
    assert style_retrieval(made, PROMPTS, REAL, PROMPTS) == 0.5


def test_style_is_not_found_through_the_own_cell() -> None:
    gallery = vectors([1, 0, 0, 0], [0, 1, 0, 0], [0.9, 0, 0, 1], [0, 0.9, 1, 0])
    prompts = ["apple, 3d", "apple, flat", "lemon, flat", "lemon, 3d"]
    assert style_retrieval(gallery[:1], prompts[:1], gallery, prompts) == 0  # itself and its concept are left out


def test_distance_to_the_own_picture_is_one_minus_the_cosine() -> None:
    made = vectors([1, 0, 0, 0], [1, 0, 0, 0], [0, -1, 0, 0])
    real = vectors([1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0])
    assert distance_to_real(made, real) == pytest.approx((0 + (1 - 0.5**0.5) + 2) / 3, abs=1e-6)  # float32


def test_distance_between_styles_counts_the_other_styles_of_the_concept() -> None:
    # Cosine of [2, 0, 1, 0] and [2, 0, 0, 1]: 4 / 5.
    assert distance_between_styles(REAL, PROMPTS, REAL, PROMPTS) == pytest.approx(0.2, abs=1e-6)
    three = vectors([1, 0, 0], [0, 1, 0], [-1, 0, 0])
    distance = distance_between_styles(three[:1], ["a, 3d"], three, ["a, 3d", "a, flat", "a, noto"])
    assert distance == pytest.approx((1 + 2) / 2, abs=1e-6)


def test_the_real_pictures_get_the_scores_that_they_are_a_reference_for() -> None:
    scores = scores_of([0, 3], REAL, REAL, PROMPTS)
    assert scores == {
        "cells": 2,
        "top1_own_cell_counts": 1,
        "top1_other_cells": 1,
        "top1_other_cells_of_real_pictures": 1,
        "style_top1": 1,
        "style_top1_of_real_pictures": 1,
        "distance_to_real": pytest.approx(0, abs=1e-3),
        "distance_between_styles_of_real_pictures": 0.2,
    }


def test_features_are_unit_vectors_that_tell_pictures_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="comes with the extra bench")
    pictures = np.full((3, 64, 64, 3), 255, np.uint8)
    pictures[0, 16:48, 16:48] = [220, 30, 30]
    pictures[1, 18:50, 16:48] = [220, 30, 30]  # two pixels below
    made = features(pictures)
    assert made.shape == (3, 1280)
    assert torch.allclose(made.norm(dim=1), torch.ones(3), atol=1e-5)
    similarity = made @ made.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2
    assert similarity[0, 1] < 1 - 1e-4


def test_sheets_watch_trained_and_held_out_prompts_from_first_to_last() -> None:
    trained, held_out = [f"seen {i}, 3d" for i in range(100)], [f"held {i}, 3d" for i in range(9)]
    prompts = sheet_prompts(trained, held_out)
    assert len(set(prompts)) == 16
    assert prompts[0] == trained[0]
    assert prompts[11] == trained[-1]
    assert prompts[12:] == [held_out[i] for i in (0, 3, 5, 8)]
    assert sheet_prompts(trained[:2], held_out[:1]) == [*trained[:2], *held_out[:1]]


def test_a_sheet_has_a_tile_for_each_picture() -> None:
    pictures = np.zeros((5, 64, 64, 3), np.uint8)
    sheet = contact_sheet(pictures, ["a, 3d"] * 5, columns=4)
    assert sheet.size == (4 * 128, 2 * 144)
    assert sheet.getpixel((64, 144 + 64)) == (0, 0, 0)
    assert sheet.getpixel((128 + 64, 144 + 64)) == (255, 255, 255)


def test_a_sheet_of_wide_pictures_has_its_marked_prompts_in_blue() -> None:
    pictures = np.full((2, 64, 128, 3), 255, np.uint8)
    sheet = np.asarray(contact_sheet(pictures, ["a, 3d", "b, 3d"], columns=2, scale=1.5, marked={"b, 3d"})).astype(int)
    assert sheet.shape == (96 + 16, 2 * 192, 3)
    bluer = (sheet[..., 2] - sheet[..., 0] > 50).any(axis=0)
    assert not bluer[:192].any()
    assert bluer[192:].any()
