"""What `plan --memory` prints: the memory of one model, and which of all models fit on which GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from plugin.cli.terminal import binary, two_columns

if TYPE_CHECKING:
    from plugin.config import ModelConfig
    from plugin.serving.fitting import Fit
    from plugin.serving.memory import MemoryPlan

_NONE = "-"
_PLACES = {None: "always there", "idle": "while it runs", "cpu": "on the CPU"}


def weights_table(title: str, plan: MemoryPlan, engine: str) -> Table:
    """The components of a model, each with its parameters, its dtype or quantisation, its place and its bytes."""
    table = Table("component", "parameters", "form", "where", "weights", title=title, title_justify="left")
    for each in plan.weights:
        nbytes = binary(each.nbytes) if each.offload != "cpu" else _NONE
        table.add_row(each.name, _count(each.parameters), each.form, _PLACES[each.offload], nbytes)
    table.add_row(
        f"engine {engine}", "", plan.engine.note, "", binary(plan.engine.nbytes) if plan.engine.nbytes else _NONE
    )
    return table


def memory_table(plan: MemoryPlan) -> Table:
    """What requests hold beside the weights, and the sum."""
    running = f"{plan.requests} at once"
    phases = {f"{each.name}, at most": binary(each.each) for each in plan.phases}
    further = {"each further process": binary(plan.further_rank)} if plan.further_rank else {}
    if plan.estimated:
        phases = {name: f"about {text}" if name.startswith("full") else text for name, text in phases.items()}
    return two_columns(
        "memory",
        {
            "without a request": binary(plan.resident),
            "of it the text cache, at most": binary(plan.text_cache),
            "anchors": f"{binary(plan.requests * plan.anchors)}: {plan.requests} x {binary(plan.anchors)}",
            "working memory": f"{binary(plan.requests * plan.working)}: {plan.requests} x {binary(plan.working)}",
            **phases,
            f"largest peak, {running}": binary(plan.peak(plan.requests)),
            "total, 1 request": binary(plan.total(1)),
            f"total, {running}": binary(plan.total()),
            **further,
        },
    )


def fits_table(fits: Sequence[Fit], config: ModelConfig) -> Table:
    """One line for each size of GPU."""
    return two_columns("fits", {f"{each.gigabytes} GB": sentence(each, config.max_in_flight) for each in fits})


def sentence(fit: Fit, max_in_flight: int) -> str:
    """How a model fits on a GPU, and what to set for it."""
    needed = binary(fit.needed)
    if not fit.requests:
        return f"does not fit: 1 request needs {needed} with {_settings(fit.settings)}"
    several = f"{fit.requests} at once" if fit.requests > 1 else "1 at a time"
    lower = f", with max_in_flight={fit.requests}" if fit.requests < max_in_flight else ""
    if fit.settings:
        return f"with {_settings(fit.settings)}: {several}{lower}, {needed}"
    return f"fits: {several}{lower}, {needed}"


def all_fits_table(rows: Mapping[str, tuple[MemoryPlan, Sequence[Fit]]]) -> Table:
    """A line for each model: what one request needs with its own settings, and a column for each size of GPU."""
    sizes = [f"{each.gigabytes} GB" for _, fits in rows.values() for each in fits]
    table = Table("model", "1 request", *dict.fromkeys(sizes), title="fits on a GPU of", title_justify="left")
    table.show_lines = True
    for model, (plan, fits) in rows.items():
        table.add_row(model, binary(plan.total(1)), *map(cell, fits))
    return table


def cell(fit: Fit) -> str:
    """How a model fits, in few words."""
    if not fit.requests:
        return "no"
    several = f"{fit.requests} at once" if fit.requests > 1 else "1 at a time"
    return "; ".join([*_assignments(fit.settings), several])


def _assignments(settings: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}={text}" for name, text in settings.items())


def _settings(settings: Mapping[str, str]) -> str:
    return "; ".join(_assignments(settings)) or "its own settings"


def _count(parameters: int) -> str:
    """A number of parameters in millions or billions."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"
