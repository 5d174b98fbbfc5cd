"""Reads the text of a metrics port."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One line: a metric's name, its labels and its value."""

    name: str
    labels: dict[str, str]
    value: float


def samples(url: str) -> Iterator[Sample]:
    """All samples at an address."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    for name, labels, value in re.findall(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", text, re.MULTILINE):
        yield Sample(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))


def of_plugin(url: str, model: str) -> dict[str, float]:
    """The plugin's metrics of one model: name, with its other labels behind it -> value."""
    values = {}
    for each in samples(url):
        labels = dict(each.labels)
        if each.name.startswith("taylorseer_") and labels.pop("model", None) == model:
            values[" ".join([each.name, *labels.values()])] = each.value
    return values


def value(url: str, name: str, **labels: str) -> float:
    """The only sample of this name that has these labels, among others."""
    (found,) = [each.value for each in samples(url) if each.name == name and labels.items() <= each.labels.items()]
    return found
