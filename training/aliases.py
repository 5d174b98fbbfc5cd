"""Teaches the shipped tokenizers other words, without training: before a text is cut into tokens, what means a concept
becomes its name.

    python -m training.aliases

Prompts as they were trained keep their tokens, so pictures of them keep their bits. The words are in aliases.txt: most
are Unicode's keywords (CLDR 48.2, English) that mean one of the concepts alone, chosen by `training.synonyms` and read
by a person; the others are what people say in their place.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers

from training.data import HERE, PIPELINE, STYLES, read_lines

ALIASES = HERE / "aliases.txt"
DEFAULT_STYLE = "3d"  # of a prompt that names none: training has never seen one without
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_CLASS = (
    "PreTrainedTokenizerFast"  # reads its file as it is; CLIPTokenizer and T5Tokenizer have normalizers of their own
)


def read_aliases(path: Path = ALIASES) -> dict[str, list[str]]:
    """The other words for each concept that has some."""
    pairs = [line.split(": ") for line in read_lines(path)]
    return {concept: words.split(", ") for concept, words in pairs}


def normalizer(aliases: Mapping[str, Sequence[str]]) -> normalizers.Normalizer:
    """What turns "A picture of a kitty in noto style" into "cat face, noto".

    Case and spaces are evened out; an article and "picture of" go; a style at the end, or "3d" before the concept, is
    written as it was trained; a word that is the whole concept gives way to the concept's name, one of them in the
    plural too; and the empty prompt stays empty.
    """
    steps: list[normalizers.Normalizer] = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Lowercase(),
        normalizers.Strip(),
        normalizers.Replace(Regex(r"(?<![.!])[.!]+$"), ""),  # tried once in a row of dots, not from each of them
        normalizers.Replace(Regex(r"^(?:an? |the )?(?:emoji|drawing|icon|image|photo|picture) (?:of|showing) "), ""),
        normalizers.Replace(Regex(r"^(?:an?|one|some|the) "), ""),
        normalizers.Replace(Regex(rf"^{DEFAULT_STYLE} (?=[^,]+$)"), ""),
    ]
    for style in STYLES:
        pattern = rf"(?:, ?| )(?:(?:as|in) )?(?:an? )?{style}(?:[ -]?(?:emoji|icon|render|style))?$"
        steps.append(normalizers.Replace(Regex(pattern), f", {style}"))
    styled = "".join(rf"(?<!, {style})" for style in STYLES)
    steps.append(normalizers.Replace(Regex(rf"(?<=[^ ]){styled}$"), f", {DEFAULT_STYLE}"))
    for concept, words in aliases.items():
        one_of = "|".join(re.escape(word) for word in words)
        steps.append(normalizers.Replace(Regex(rf"^(?:{one_of})s?(?=, )"), concept))
    return normalizers.Sequence(steps)


def apply(folder: Path, aliases: Mapping[str, Sequence[str]]) -> None:
    """Gives both tokenizers of a pipeline folder this normalizer, and the class that keeps it."""
    for name in _TOKENIZERS:
        path = folder / name / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.normalizer = normalizer(aliases)
        tokenizer.save(str(path))
        _set(folder / name / "tokenizer_config.json", "tokenizer_class", _CLASS)
        _set(folder / "model_index.json", name, ["transformers", _CLASS])


def _set(path: Path, key: str, value: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {key: value}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Teaches the tokenizers of a pipeline folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    apply(parser.parse_args().pipeline, read_aliases())


if __name__ == "__main__":
    main()
