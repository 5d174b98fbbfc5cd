"""Data preparation on made-up packages, the choice of what is held out, and that of keywords."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support import made_up
from training import data as module
from training.data import (
    STYLES,
    cell_of,
    held_out_cells,
    load,
    load_keywords,
    prompt_of,
    trained_concepts,
    training_prompts,
)
from training.synonyms import other_prompts, unambiguous_keywords

NAMES = [f"thing {number}" for number in range(200)]


def test_only_what_all_sets_have_is_prepared(data: Path) -> None:
    prompts, pictures = load(data)
    concepts = sorted(name.replace("-", " ") for name in made_up.EMOJI)
    assert prompts == [prompt_of(concept, style) for concept in concepts for style in STYLES]
    assert pictures.shape == (len(prompts), 64, 64, 3)
    assert pictures.dtype == np.uint8


def test_each_cell_has_its_own_picture_on_white(data: Path) -> None:
    prompts, pictures = load(data)
    for name, (_, colour) in made_up.EMOJI.items():
        for style in STYLES:
            picture = pictures[prompts.index(prompt_of(name.replace("-", " "), style))].astype(int)
            expected = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert np.abs(picture[32, 32] - expected).max() <= 8  # WebP without loss, but in another colour space
            assert (picture[0, 0] == 255).all()
            area = (np.abs(picture - 255).max(axis=2) > np.abs(np.array(expected) - 255).max() / 2).sum()
            assert area == pytest.approx(math.pi * (2 * made_up.RADIUS[style]) ** 2, rel=0.06)  # pixels of the rim


def test_svg_is_rendered_as_it_is_drawn() -> None:
    pytest.importorskip("resvg_py", reason="resvg_py is a requirement of training alone")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{made_up.svg_body("#2040e0", 12)}</svg>'
    picture = module._render(svg.encode()).astype(int)
    assert (picture[32, 32] == [0x20, 0x40, 0xE0]).all()
    assert (picture[0, 0] == 255).all()
    covered = (255 - picture[..., 0]).sum() / (255 - 0x20)
    assert covered == pytest.approx(math.pi * 24**2, rel=0.005)  # the rim is averaged from 16 pixels of 255 levels


def test_keywords_are_found_by_the_character_with_and_without_its_variation_selector(data: Path) -> None:
    keywords = load_keywords(data)
    assert keywords["red disc"] == ["red disc", "round", "Scarlet"]
    assert keywords["yellow disc"] == ["yellow disc", "round", "gold"]
    assert "black disc" not in keywords


# What is trained


def test_all_means_every_prepared_concept(data: Path) -> None:
    assert trained_concepts("all", data) == sorted(name.replace("-", " ") for name in made_up.EMOJI)


def test_a_file_says_what_is_trained(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("red disc\n\nblue disc\n")
    assert trained_concepts(str(tmp_path / "some.txt")) == ["red disc", "blue disc"]


# What is held out


@pytest.mark.parametrize("count", [5, 6, 40, 112, 200])
def test_other_concepts_lose_four_percent_in_every_style_and_none_loses_two(count: int) -> None:
    concepts = NAMES[:count]
    cells = [cell_of(cell) for cell in held_out_cells(concepts)]
    assert len(cells) == max(len(STYLES), round(0.04 * 5 * count))
    by_style = Counter(style for _, style in cells)
    assert set(by_style) == set(STYLES)
    assert max(by_style.values()) - min(by_style.values()) <= 1
    assert max(Counter(concept for concept, _ in cells).values()) == 1
    assert {concept for concept, _ in cells} <= set(concepts)


def test_the_choice_depends_on_the_set_alone() -> None:
    assert held_out_cells(NAMES) == held_out_cells(NAMES[::-1])
    assert held_out_cells(NAMES) != held_out_cells([f"other {name}" for name in NAMES])


def test_more_concepts_keep_what_the_shipped_weights_have_not_seen_and_hold_out_nothing_that_they_have() -> None:
    default = trained_concepts()
    more = held_out_cells([*default, *NAMES])
    assert held_out_cells() < more
    assert not more & set(training_prompts())


def test_held_out_and_trained_cells_of_other_concepts_are_all_cells() -> None:
    trained, held_out = training_prompts(NAMES), held_out_cells(NAMES)
    assert not set(trained) & held_out
    assert set(trained) | held_out == {prompt_of(concept, style) for concept in NAMES for style in STYLES}


# Keywords


def test_a_keyword_of_two_trained_concepts_is_left_out() -> None:
    keywords = {"red apple": ["fruit", "ripe"], "lemon": ["fruit", "citrus"]}
    assert unambiguous_keywords(keywords, ["red apple", "lemon"]) == {"red apple": ["ripe"], "lemon": ["citrus"]}


def test_what_is_not_trained_makes_nothing_ambiguous() -> None:
    keywords = {"red apple": ["fruit"], "lemon": ["fruit"]}
    assert unambiguous_keywords(keywords, ["red apple"]) == {"red apple": ["fruit"]}


@pytest.mark.parametrize("word", ["lemon", "car", "police car", "red apple", "flat", "3d", "o'clock", "naïve", "2nd"])
def test_names_styles_and_signs_are_no_keywords(word: str) -> None:
    concepts = ["red apple", "lemon", "police car"]
    assert unambiguous_keywords({"red apple": [word]}, concepts)["red apple"] == []


def test_keywords_are_in_lower_case_and_once() -> None:
    assert unambiguous_keywords({"grapes": ["Dionysus", "dionysus", "two words"]}, ["grapes", "lemon"]) == {
        "grapes": ["dionysus", "two words"],
        "lemon": [],
    }


def test_other_prompts_are_every_name_in_every_order_but_the_prompt_itself() -> None:
    assert other_prompts("red apple, 3d", {"red apple": ["ripe"]}) == [
        "3d red apple",
        "red apple in 3d style",
        "ripe, 3d",
        "3d ripe",
        "ripe in 3d style",
    ]
    assert other_prompts("lemon, flat", {}) == ["flat lemon", "lemon in flat style"]
