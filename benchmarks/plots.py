"""The benchmarks' plots, drawn from their JSON results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("the plots need matplotlib: pip install 'triton-taylorseer[bench]'") from error

_COLOURS = {"blue": "#2a6fbb", "orange": "#d9730d", "green": "#2e8b57", "red": "#b3261e", "grey": "#6b6b6b"}
_TARGETS = {
    "stream": ("perf_analyzer, gRPC stream", "blue", "o-"),
    "plain_grpc": ("perf_analyzer, gRPC", "green", "s-"),
    "plain_http": ("perf_analyzer, HTTP", "orange", "^-"),
    "aiperf": ("AIPerf, /generate", "red", "D-"),
}


def draw_serving(result: dict[str, Any], path: Path) -> None:
    """Draws what `benchmarks.serving` measured: requests per second against clients, with the spread of the turns."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    _closed_loop_axes(axes, _clients(result, "packed", "same_size"))
    for way, label, colour, marker in (
        ("packed", "packed, as shipped", "blue", "o"),
        ("one_at_a_time", "one request at a time", "orange", "s"),
    ):
        _line(axes, result, way, label, _COLOURS[colour], marker)
        for clients in _clients(result, way, "mixed_sizes"):
            rate = result["pictures_per_s"][f"{way}, mixed_sizes, {clients}"]
            (points,) = axes.plot(1.06 * clients, rate, marker, color=_COLOURS[colour], label=f"{label}, mixed sizes")
            points.set_markerfacecolor("white")
    hook = f"diffusers' own hook, one after another, {result['diffusers_full_steps']} full steps"
    axes.axhline(result["pictures_per_s"]["diffusers"], color=_COLOURS["grey"], linestyle="--", label=hook)
    steps, (height, width) = result["steps"], result["size"]
    axes.set_title(
        f"{result['model']}, {height} x {width}, {steps['num_steps']} steps, {steps['full_steps']} of them full: "
        "median, least and most of the turns",
        fontsize="medium",
    )
    figure.legend(fontsize="small", loc="outside upper center", ncols=2)
    _save(figure, result, path)


def draw_load(result: dict[str, Any], path: Path) -> None:
    """Draws what `benchmarks.load` measured: closed loops, and latencies where requests arrive at random times."""
    has_poisson = bool(result.get("poisson"))
    figure = Figure(figsize=(11 if has_poisson else 6, 4.6), layout="constrained")
    closed, *others = figure.subplots(1, 1 + has_poisson, squeeze=False)[0]
    clients = sorted({point["concurrency"] for points in result["closed_loop"].values() for point in points})
    _closed_loop_axes(closed, clients)
    for target, points in result["closed_loop"].items():
        label, colour, style = _TARGETS[target]
        x, y = ([point[name] for point in points] for name in ("concurrency", "requests_per_s"))
        closed.plot(x, y, style, color=_COLOURS[colour], label=label)
    closed.set_title("Closed loop", fontsize="medium")
    closed.legend(fontsize="small", loc="lower right")
    for axes in others:
        _latency_curve(axes, result)
    _save(figure, result, path)


def draw_quality(result: dict[str, Any], path: Path) -> None:
    """Draws what `benchmarks.quality` measured: PSNR against full steps by method, and how far the latents of each
    method are from the uncached run's at each step."""
    part = result["methods"]
    setting = part["rows"][0]["setting"]
    rows = [row for row in part["rows"] if row["setting"] == setting]
    figure = Figure(figsize=(12, 5), layout="constrained")
    against_count, against_step = figure.subplots(1, 2)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        points = sorted((row["full_steps"], row["psnr"]) for row in rows if row["method"] == method)
        style = "-" if number < 10 else "--"  # there are ten colours
        against_count.plot(
            *zip(*points, strict=True), style, marker="o", markersize=3, color=f"C{number}", label=method
        )
    against_count.set_xlabel(f"full steps of {setting}")
    against_count.set_ylabel("PSNR to the uncached run, dB")
    for method, run in result.get("steps", {"methods": {}})["methods"].items():
        colour = f"C{methods.index(method)}"
        distance = [max(each, 1e-6) for each in run["distance"]]
        against_step.semilogy(range(1, len(distance)), distance[1:], color=colour, linewidth=1)
        full = [step for step in run["full_steps"] if step]
        against_step.semilogy(full, [distance[step] for step in full], "o", color=colour, markersize=3)
    against_step.set_xlabel("step; dots are full ones")
    against_step.set_ylabel("distance of the latents to the uncached run's")
    for axes in (against_count, against_step):
        axes.grid(alpha=0.3)
    figure.legend(*against_count.get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=4)
    _save(figure, part, path, bottom=None)


def draw_growth(result: dict[str, Any], path: Path) -> None:
    """Draws what `benchmarks.growth` measured: seconds against tokens, steps, order and requests in flight."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = dict(zip(("tokens", "steps", "order + 1", "requests in flight"), figure.subplots(2, 2).flat, strict=True))
    for name, curve in result["curves"].items():
        panel, _, label = name.partition(", ")
        axes = panels[panel]
        fitted = f"exponent {curve['exponent']:.2f}"
        axes.loglog(curve["x"], curve["seconds"], "o-", label=f"{label}: {fitted}" if label else fitted)
        axes.set_xticks(curve["x"], [f"{x:g}" for x in curve["x"]])
        axes.set_xticks([], minor=True)
    for panel, axes in panels.items():
        axes.set_xlabel(panel)
        axes.set_ylabel(
            "seconds until all pictures are done" if panel == "requests in flight" else "seconds of a picture"
        )
        if panel == "order + 1":  # hardly grows: a logarithm would make much of the machine's drift
            axes.set_yscale("linear")
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _save(figure, result, path, bottom=None)


def draw_learnt(result: dict[str, Any], path: Path) -> None:
    """Draws what `benchmarks.learnt` measured: where the presets' full steps lie, the weights of one of them, and the
    PSNR against the scheduler's shift."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    schedules, weights, shifts = figure.subplots(1, 3, width_ratios=(3, 5, 3))
    presets = result["presets"]
    schedules.eventplot(
        [each["full_steps"] for each in presets.values()],
        linelengths=0.7,
        linewidths=2,
        colors=[f"C{number}" for number in range(len(presets))],
    )
    schedules.set_yticks(range(len(presets)), presets)
    schedules.set_xlabel("step; a mark is a full one")
    shown = "tuned-8"
    _weights_by_age(weights, presets[shown]["weights"])
    weights.set_ylabel(f"weight of an anchor, {shown}")
    rows = [row for row in result["robustness"]["rows"] if row["what"].startswith("shift ")]
    for count, marker in ((8, "o"), (12, "s")):
        of_count = [row for row in rows if row["full_steps"] == count]
        at = [float(row["what"].removeprefix("shift ")) for row in of_count]
        for name, style in (("learnt", "-"), ("even, chebyshev", ":")):
            colour = _COLOURS["blue" if name == "learnt" else "orange"]
            values = [row[name] for row in of_count]
            shifts.plot(at, values, marker + style, color=colour, markersize=4, label=f"{name}, {count} full")
    shifts.set_xlabel("scheduler's shift (learnt at 3)")
    shifts.set_ylabel("PSNR to the uncached run, dB")
    for axes, place in ((weights, "lower left"), (shifts, "center right")):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc=place)
    _save(figure, result["robustness"], path, bottom=None)


def _weights_by_age(axes: Axes, weights: dict[str, list[float]]) -> None:
    """Weights by forecast step, the newest anchor's last, as a line for each age; full steps are gaps."""
    steps = [int(step) for step in weights]
    for age in range(max(map(len, weights.values()))):
        line = [weights[str(step)][-1 - age] if str(step) in weights and age < len(weights[str(step)]) else float("nan")
                for step in range(max(steps) + 1)]  # fmt: skip
        label = "newest anchor" if age == 0 else f"{age} before it"
        axes.plot(range(len(line)), line, ".-", markersize=4, linewidth=1, color=f"C{age}", label=label)
    axes.set_xlabel("forecast step")


def _closed_loop_axes(axes: Axes, clients: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(each) for each in clients])
    axes.minorticks_off()
    axes.set_xlabel("clients, each asking again when it has its answer")
    axes.set_ylabel("requests per second")
    axes.grid(alpha=0.3)


def _clients(result: dict[str, Any], way: str, traffic: str) -> list[int]:
    prefix = f"{way}, {traffic}, "
    return sorted(int(name.removeprefix(prefix)) for name in result["pictures_per_s"] if name.startswith(prefix))


def _line(axes: Axes, result: dict[str, Any], way: str, label: str, colour: str, marker: str) -> None:
    clients = _clients(result, way, "same_size")
    names = [f"{way}, same_size, {each}" for each in clients]
    rates = [result["pictures_per_s"][name] for name in names]
    turns = [result["pictures_per_s_all"][name] for name in names]
    below = [rate - min(each) for rate, each in zip(rates, turns, strict=True)]
    above = [max(each) - rate for rate, each in zip(rates, turns, strict=True)]
    axes.errorbar(clients, rates, (below, above), color=colour, marker=marker, capsize=3, elinewidth=1, label=label)


def _latency_curve(axes: Axes, result: dict[str, Any]) -> None:
    points = [point for point in result["poisson"] if "p50_s" in point]
    offered = [point["offered_per_s"] for point in points]
    for name, colour in (("p50", "green"), ("p95", "orange"), ("p99", "red")):
        axes.plot(offered, [point[f"{name}_s"] for point in points], "o-", color=_COLOURS[colour], label=name)
    capacity = result["capacity_per_s"]
    axes.axvline(capacity, color=_COLOURS["grey"], linestyle="--", label=f"closed loop's best, {capacity:.1f}/s")
    axes.set_xlabel("requests per second that arrived")
    axes.set_ylabel("seconds to the picture")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.set_title("Poisson arrivals, gRPC stream", fontsize="medium")
    axes.legend(fontsize="small", loc="upper left")


def _save(figure: Figure, result: dict[str, Any], path: Path, bottom: float | None = 0) -> None:
    for axes in figure.axes:
        axes.set_ylim(bottom=bottom)  # after drawing: setting it earlier would stop the upper end from following
    figure.supxlabel(_caption(result), fontsize="x-small", color=_COLOURS["grey"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _caption(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    gpu = hardware["gpu"]["name"] if hardware["gpu"] else "no GPU"
    parts = [
        f"{hardware['cores']} cores of {hardware['processor']}, {hardware['memory_gib']:.0f} GiB, {gpu}",
        result["date"][:10],
        f"commit {result['commit'][:7]}{'+' * result['commit'].endswith('+')}",
    ]
    if "load_average_before" in result:
        parts.append(f"load average before: {result['load_average_before']:.1f}")
    return "; ".join(parts)
