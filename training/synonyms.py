"""Other words for the trained prompts: Unicode's keywords in place of a concept's name, and other word orders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from training.data import STYLES, cell_of

ORDERS = ("{concept}, {style}", "{style} {concept}", "{concept} in {style} style")  # the first is `prompt_of`'s


def unambiguous_keywords(keywords: Mapping[str, Sequence[str]], concepts: Sequence[str]) -> dict[str, list[str]]:
    """The keywords that mean one concept alone, by concept, in lower case; a concept without any has an empty list.

    A keyword is left out where another of the concepts has it too, as a keyword, as its name or as a word of its name;
    where it names a style or is the concept's own name; and where it is not plain letters and spaces.

    Args:
        keywords: those of each concept; a concept may be missing.
        concepts: the concepts that are trained: what others mean makes nothing ambiguous.
    """
    own = {concept: list(dict.fromkeys(word.lower() for word in keywords.get(concept, ()))) for concept in concepts}
    claims = Counter(word for concept in concepts for word in {*own[concept], concept, *concept.split()})
    return {
        concept: [
            word
            for word in own[concept]
            if claims[word] == 1 and word != concept and word not in STYLES and re.fullmatch(r"[a-z]+( [a-z]+)*", word)
        ]
        for concept in concepts
    }


def other_prompts(prompt: str, keywords: Mapping[str, Sequence[str]]) -> list[str]:
    """What else asks for the cell of a prompt: each of its names in each word order, the prompt itself left out.

    Args:
        prompt: as `prompt_of` makes it.
        keywords: as `unambiguous_keywords` chooses them.
    """
    concept, style = cell_of(prompt)
    names = [concept, *keywords.get(concept, ())]
    prompts = [order.format(concept=name, style=style) for name in names for order in ORDERS]
    return [each for each in prompts if each != prompt]
