"""The numbers in README and docs against the files under benchmarks/results/, and against what the code computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from statistics import mean, median
from typing import Any

from plugin.config import ModelConfig
from plugin.serving.plan import architecture_of, example_request, plan_request
from tests.support.documents import ROOT, numbers_in, tables_of

RESULTS = ROOT / "benchmarks/results"


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def words_of(document: str) -> str:
    """A document with every line break a space."""
    return " ".join((ROOT / document).read_text(encoding="utf-8").split())


def missing(sentences: Iterable[str], document: str) -> list[str]:
    text = words_of(document)
    return [sentence for sentence in sentences if sentence not in text]


def test_seconds_of_a_picture_are_those_of_the_result():
    ways = {
        "this project, in process": ["in_process_on"],
        "this project, through Triton": ["triton_on"],
        "diffusers, plain run of 12 steps": ["diffusers_fewer_steps"],
        "diffusers, its TaylorSeer hook in lite mode": ["diffusers_hook_lite"],
        "cache-dit 1.5.3 with its TaylorSeer calibrator": ["cache_dit"],
        "diffusers, its TaylorSeer hook": ["diffusers_hook"],
        "this project, cache off, in process / through Triton": ["in_process_off", "triton_off"],
        "diffusers, plain run of 50 steps": ["diffusers"],
    }
    measured = result("cpu.json")["picture_s"]
    table = tables_of(ROOT / "README.md")["Results"]
    rows = {row[0].strip("*"): numbers_in(row[2]) for row in table[1:]}
    assert rows == {label: [f"{measured[key]:.3f}" for key in keys] for label, keys in ways.items()}


def test_the_readme_begins_with_numbers_of_the_results():
    cpu, serving = result("cpu.json"), result("serving.json")
    seconds, steps = cpu["picture_s"], cpu["steps"]
    found = {row["method"]: row["psnr"] for row in qualities(full_steps=12)}
    sentences = (
        f"**{cpu['speed_up']['in_process']:.2f} times as fast** with "
        f"{steps['full_steps']} of {steps['num_steps']} steps full: "
        f"{seconds['in_process_on']:.3f} s a picture instead of {seconds['in_process_off']:.3f} s",
        f"**{serving['packed_over_diffusers']:.1f} times the pictures per second** of diffusers' own TaylorSeer hook",
        f"the picture has a PSNR of {found['learnt']:.1f} dB to that one at 12 full steps; a plain run of 12 steps has "
        f"{found['fewer plain steps']:.1f} dB",
    )
    assert not missing(sentences, "README.md")


def test_edits_are_those_of_the_result():
    measured = {(each["kind"], each["strength"]): each for each in result("edits.json")["ways"]}
    image, inpainting = measured["image to image", 0.6], measured["inpainting", 0.6]
    sentences = (
        f"image to image takes {image['on_s']:.3f} s instead of {image['off_s']:.3f} s with the cache off, at "
        f"{image['psnr_db']:.1f} dB to that; inpainting {inpainting['on_s']:.3f} s instead of "
        f"{inpainting['off_s']:.3f} s, at {inpainting['psnr_db']:.1f} dB",
    )
    assert not missing(sentences, "README.md")
    keys = ("off_s", "on_s", "diffusers_s")
    expected = [
        [f"{each['num_steps']}", f"{each['full_steps']}"]
        + [f"{each[key]:.3f}" for key in keys]
        + [f"{each[key]:.1f}" for key in ("psnr_db", "psnr_db_least")]
        for each in result("edits.json")["ways"]
    ]
    assert [row[1:] for row in tables_of(ROOT / "docs/benchmarking.md")["Edits"][1:]] == expected


def test_sentences_about_times_are_those_of_the_results():
    cpu, serving = result("cpu.json"), result("serving.json")
    speed_up, share = cpu["speed_up"], cpu["speed_up_over_possible"]
    full, forecast = cpu["steps"]["full_steps"], cpu["steps"]["num_steps"] - cpu["steps"]["full_steps"]
    besides_steps = cpu["picture_s"]["in_process_on"] - full * cpu["full_step_s"] - forecast * cpu["forecast_step_s"]
    sentences = (
        f"A full step takes {1000 * cpu['full_step_s']:.1f} ms, a forecast step {1000 * cpu['forecast_step_s']:.2f} ms "
        f"({100 * cpu['forecast_step_over_full_step']:.1f} % of it)",
        f"pictures {speed_up['in_process']:.2f} times as fast in process, {share['in_process']:.2f} of the "
        f"{cpu['possible_speed_up']:.2f} that",
        f"and {speed_up['triton']:.2f} times through Triton ({share['triton']:.2f})",
        f"Triton adds {1000 * cpu['triton_overhead_s']['on']:.1f} ms to a picture with the cache on",
        f"text encoding and decoding, {1000 * besides_steps:.0f} ms per picture with or without the cache",
        f"{serving['diffusers_full_steps']} full steps, one picture after another: "
        f"{serving['pictures_per_s']['diffusers']:.1f}; eight clients of this server get "
        f"{serving['packed_over_diffusers']:.1f} times that",
    )
    assert not missing(sentences, "docs/benchmarking.md")


def test_pictures_of_many_clients_are_those_of_the_result():
    measured = result("serving.json")
    rows = tables_of(ROOT / "docs/benchmarking.md")["Many clients"][1:]
    keys = ["same_size, 1", "same_size, 2", "same_size, 4", "same_size, 8", "mixed_sizes, 8"]
    for row, key in zip(rows, keys, strict=True):
        speeds = [measured["pictures_per_s"][f"{way}, {key}"] for way in ("packed", "one_at_a_time")]
        ratio = measured["packed_over_one_at_a_time"][key]
        assert row[0].split(",")[0] == key.split(", ")[1]
        assert row[1:] == [f"{speeds[0]:.1f}", f"{speeds[1]:.1f}", f"{ratio:.2f}"]


def test_parts_of_a_forecast_step_are_those_of_the_results():
    tables = tables_of(ROOT / "docs/benchmarking.md")["Where a forecast step's time goes"]
    profile = result("forecast_profile.json")
    trees = profile["microseconds"]
    heading, *parts = [row for row in tables if len(row) == len(trees) + 1][: len(trees["now"]) + 1]
    assert heading[1:] == [tree if tree == "now" else f"before {tree.removesuffix('~1')}" for tree in trees]
    assert parts == [[part, *(f"{each[part]:.0f}" for each in trees.values())] for part in trees["now"]]
    alone = [row for row in tables if len(row) == 2][1:]
    assert alone == [[name, f"{value:.0f}"] for name, value in profile["microseconds_alone"].items()]
    shares = {
        (f"{row['anchor_bytes']:_}", row["dtype"], row["order"]): f"{row['of_copy']:.2f}"
        for row in result("bandwidth_cpu.json")["forecasts"]
    }
    names = {"50 kB": "50_000", "1 MB": "1_000_000", "25 MB": "25_000_000", "700 MB": "700_000_000"}
    shown = {row[0]: row[1:] for row in tables if row[0] in names}
    kinds = [("float32", 1), ("float32", 2), ("bfloat16", 1), ("bfloat16", 2)]
    assert shown == {name: [shares[nbytes, *kind] for kind in kinds] for name, nbytes in names.items()}


def test_what_large_pages_bring_is_that_of_the_result():
    measured = result("huge_pages.json")
    rows = [
        row for row in tables_of(ROOT / "docs/benchmarking.md")["Where a forecast step's time goes"] if len(row) == 4
    ]
    (case, *decode), (_, *forecast) = rows[1:]
    assert f"{measured['pixels']} x {measured['pixels']} pixels" in case

    def of(call: str) -> list[float]:
        return [measured[way][call] for way in ("small_pages", "huge_pages", "huge_over_small")]

    assert decode == [f"{value:.2f}" for value in of("decode_s")]
    *seconds, ratio = of("forecast_into_new_memory_s")
    assert forecast == [*(f"{value:.3f}" for value in seconds), f"{ratio:.2f}"]


def qualities(**wanted: object) -> list[dict[str, Any]]:
    """The rows of the table of methods at the setting that the documents speak of."""
    rows = result("quality.json")["methods"]["rows"]
    wanted = {"setting": "50 steps, guidance 3.5", **wanted}
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_qualities_are_those_of_the_result():
    measured = {(row["method"], str(row["full_steps"])): row for row in qualities()}
    table = tables_of(ROOT / "docs/quality.md")["Picture quality per full step"]
    (_, *counts), *rows = table
    for method, *cells in rows:
        for count, cell in zip(counts, cells, strict=True):
            if cell != "-":
                row = measured[method, count]
                shown = f"{row['psnr']:.1f} / {row['ssim']:.3f} / {row['perceptual']:.4f} / {row['seconds']:.2f}"
                assert cell == shown, (method, count)


def test_qualities_by_setting_are_those_of_the_result():
    rows = [row for row in result("quality.json")["methods"]["rows"] if row["full_steps"] == 12]
    columns = ("fewer plain steps", r"TaylorSeer, order \d", "Chebyshev, order 2, even", "learnt")

    def best(setting, method):
        found = [row for row in rows if row["setting"] == setting and re.fullmatch(method, row["method"])]
        return f"{max(row['psnr'] for row in found):.1f}"

    settings = dict.fromkeys(row["setting"] for row in rows)
    measured = [[setting, *(best(setting, method) for method in columns)] for setting in settings]
    assert tables_of(ROOT / "docs/quality.md")["At other settings"][1:] == measured


def test_sentences_about_quality_are_those_of_the_result():
    found = {row["method"]: row["psnr"] for row in qualities(full_steps=12)}
    even_and_learnt = (found[method] for method in ("Chebyshev, order 2, even", "learnt"))
    of_paper = [psnr for method, psnr in found.items() if re.fullmatch(r"TaylorSeer, order \d", method)]
    plain, paper, even, learnt = (
        f"{psnr:.1f}" for psnr in (found["fewer plain steps"], max(of_paper), *even_and_learnt)
    )
    fewer = {count: {row["method"]: row["psnr"] for row in qualities(full_steps=count)}["learnt"] for count in (6, 8)}
    sentences = (
        f"12 plain steps {plain} dB, TaylorSeer's own schedule with its best order {paper}, "
        f"full steps spread evenly {even}, and with what `triton-taylorseer tune` has learnt, which is this model's "
        f"default, {learnt}; with 8 full steps it is {fewer[8]:.1f} dB, with 6 {fewer[6]:.1f} dB.",
    )
    assert not missing(sentences, "README.md")


def model_folders(document: str, heading: str) -> dict[str, list[str]]:
    """The rows of a table of model folders by their names, without targets of links."""
    rows = [[re.sub(r"\]\(.*?\)", "]", cell) for cell in row] for row in tables_of(ROOT / document)[heading]]
    return {re.findall(r"`(\w+)`", row[0])[0]: row for row in rows if row[0].startswith("`") and len(row) == 5}


def test_the_models_of_the_readme_are_those_of_the_table_of_all():
    every = model_folders("docs/models.md", "Model folders")
    some = model_folders("README.md", "Models")
    assert some.items() <= every.items()
    assert len(every) - len(some) == 11, "the README says how many others there are"


def test_the_readme_counts_what_the_table_of_classes_has():
    rows = [row for row in tables_of(ROOT / "docs/models.md")["Models"] if row[1].startswith("`")]
    verified = [row[-1].split(", ") for row in rows]
    served, compiled = (sum(word in each for each in verified) for word in ("Triton", "RTX"))
    sentences = (
        f"{len(rows)} classes of transformers with small random weights",
        f"{served} of them through a real Triton",
        f"TensorRT-RTX compiles the block stacks of {compiled}.",
    )
    assert not missing(sentences, "README.md")


def test_caches_are_those_that_plan_prints():
    models = {model: row[4] for model, row in model_folders("docs/models.md", "Model folders").items()}
    assert len(models) == len([*(ROOT / "model_repository").glob("*_stream")])
    for model, cell in models.items():
        config = ModelConfig.from_folder(ROOT / f"model_repository/{model}_stream")
        planned = plan_request(config, architecture_of(config.source.pipeline), example_request(config))
        shown = re.findall(r"([\d.]+) ([KMG]iB)", cell)
        exact = [planned.cache_bytes, planned.module_cache_bytes]
        units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
        for (number, unit), nbytes in zip(shown, exact, strict=True):
            decimals = len(number.partition(".")[2])
            assert f"{nbytes / units[unit]:.{decimals}f}" == number, model


def test_what_the_soak_left_is_that_of_the_result():
    measured = result("soak.json")
    mixed, overload = measured["mixed"], measured["overload"]
    outcomes, refused = mixed["outcomes"], overload["refused_within_s"]
    sentences = (
        f"{outcomes['ok']:,} pictures, {outcomes['cancelled']:,} cancellations",
        f"and {outcomes['invalid']} rejected requests the server has the same number of threads",
        f"the same resident memory ({100 * mixed['resident_drift']:+.1f} %)",
        f"Of {overload['served'] + overload['refused']:,} requests at three times the capacity {overload['served']:,}",
        f"were served within {overload['latency_s']['p99']:.1f} s",
        f"within {1000 * refused['p50']:.0f} ms (median; p99 {1000 * refused['p99']:.0f} ms)",
    )
    assert not missing(sentences, "docs/benchmarking.md")


def test_what_offloading_and_unloading_give_back_is_that_of_the_result():
    measured, mib = result("offloaded.json"), 2**20
    memory, idle = (measured["offload"][way] for way in ("in_memory", "idle"))
    new = measured["offload"]["latency"]["new_prompt"]
    saved = {name: round((memory[name] - idle[name]) / mib) for name in memory}
    assert abs(saved["new_prompt_peak_bytes"]) < 5, "the document says that it is the same"
    unload = measured["unload"]
    before, after = (round(unload[f"{name}_bytes"] / mib) for name in ("before", "after"))
    sentences = (
        f"an encoder of {memory['encoder_bytes'] / mib:.0f} MiB in place of the embedded model's",
        f"the process holds {saved['resident_bytes']} MiB less while the encoder is idle",
        f"the peak of a request whose prompt is known is {saved['known_prompt_peak_bytes']} MiB lower",
        f"Encoding takes {new['idle_over_in_memory_encode_s']:.2f} times as long, "
        f"such a request {new['idle_over_in_memory_total_s']:.2f} times",
        f"The embedded model goes from {before} to {after} MiB; the first request after that takes "
        f"{unload['first_s']:.2f} s, and the next ones {unload['later_s']:.2f} s",
        f"medians of {measured['turns']} unloads",
    )
    assert not missing(sentences, "docs/operating.md")


def test_what_several_processes_exchange_and_gain_is_that_of_the_result():
    measured, models = result("parallel.json")["measured"], result("parallel.json")["predicted"]["models"]
    small, large = (measured["picture_tokens"][tokens] for tokens in ("256", "1024"))
    sentences = [f"it is {large['bytes_over_formula']:.4f} times that"]
    sentences += [
        f"a FLUX of width {measured['width']} and {measured['blocks']} blocks",
        f"takes {large['two_processes_over_alone_2_threads']:.2f} times as long as by one process of two threads, and "
        f"{large['two_processes_over_alone_1_thread']:.2f} times as long as by one of one thread; of 256 tokens "
        f"{small['two_processes_over_alone_2_threads']:.2f} and {small['two_processes_over_alone_1_thread']:.2f} times",
    ]
    assert not missing(sentences, "docs/scaling.md")
    expected = [
        [
            f"`{name}`",
            f"{model['tokens']:,} x {model['width']:,}, {model['blocks']}",
            f"{model['exchanged_bytes']['8'] / 1e9:.1f} GB",
            f"{model['one_gpu_s']:.2f} s",
            *(
                ", ".join(f"{speed_up:.1f}x" for speed_up in model["speed_up"][link].values())
                for link in ("nvlink", "pcie")
            ),
        ]
        for name, model in models.items()
    ]
    assert tables_of(ROOT / "docs/scaling.md")["What to expect"][1:] == expected


def test_weights_below_16_bits_are_those_of_the_result():
    measured = result("quantized.json")
    ways, rows = measured["ways"], tables_of(ROOT / "docs/quality.md")["Weights below 16 bits"]
    expected = []
    for name, way in ways.items():
        nbytes, psnr = way["bytes"], {cache: f"{mean(each):.1f} dB" for cache, each in way["psnr_db"].items()}
        encoders = nbytes["text_encoder"] + nbytes["text_encoder_2"]
        off = "-" if name == "bfloat16" else psnr["off"]
        expected.append([f"{nbytes['transformer'] / 1e6:.1f} MB", f"{encoders / 1e6:.2f} MB", off, psnr["on"]])
    assert [row[1:] for row in rows[1 : len(ways) + 1]] == expected
    published = [
        [name, *(f"{nbytes / 1e9:.1f} GB" for nbytes in each.values())]
        for name, each in measured["published_bytes"].items()
    ]
    assert rows[len(ways) + 2 :] == published
    seconds = {name: median(way["seconds"]["off"]) for name, way in ways.items()}
    sentence = (
        f"a picture takes {seconds['int8'] / seconds['bfloat16']:.2f} times as long in int8 as in bfloat16, in fp8 "
        f"{seconds['fp8'] / seconds['bfloat16']:.2f} times"
    )
    assert not missing([sentence], "docs/quality.md")


# What was learnt


def learnt_table(heading: str) -> list[list[str]]:
    return tables_of(ROOT / "docs/quality.md")[heading]


def shown(rows: Iterable[dict[str, Any]], keys: Iterable[str], columns: Iterable[tuple[str, Any]]) -> list[list[str]]:
    """Table rows: the values of the keys, then a number for each column, a name and a number of full steps."""
    rows, keys = list(rows), list(keys)
    by = {(*(row[key] for key in keys), row["full_steps"]): row for row in rows}
    firsts = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    return [[*map(str, each), *(f"{by[*each, count][name]:.1f}" for name, count in columns)] for each in firsts]


def both(row: dict[str, Any], digits: int) -> str:
    """The learning and the held-out error."""
    return f"{row['learning_db']:.{digits}f} / {row['held_out_db']:.{digits}f}"


def test_what_each_part_gains_is_that_of_the_result():
    measured = result("learnt.json")
    found = learnt_table("What each part gains")
    ablation = [row for row in found if len(row) == 3][1:]
    assert ablation == shown(measured["ablation"]["rows"], ["way"], [("held_out_db", 8), ("held_out_db", 12)])
    curves = [
        [str(row["pictures"]), row["through"], *(both(point, 2) for point in row["points"])]
        for row in measured["curve"]["rows"]
    ]
    assert [row for row in found if len(row) == 7][1:] == curves
    pictures: dict[tuple[str, str], list[str]] = {}
    for row in measured["pictures"]["rows"]:
        pictures.setdefault((str(row["pictures"]), str(row["order"])), []).append(both(row, 1))
    assert [row for row in found if len(row) == 4][1:] == [[*key, *cells] for key, cells in pictures.items()]


def test_where_presets_hold_is_that_of_the_result():
    measured = result("learnt.json")
    counts = (6, 8, 12)
    columns = [(name, count) for name in ("learnt", "even, chebyshev") for count in counts]
    found = learnt_table("Where a preset holds")
    assert [row for row in found if len(row) == 7][1:] == shown(measured["robustness"]["rows"], ["what"], columns)
    budgets = measured["budgets"]["rows"]
    expected: dict[tuple[str, str], list[str]] = {}
    for row in budgets:
        expected.setdefault((row["what"], f"`{row['preset']}`"), []).append(
            f"{row['psnr']:.1f} ({row['full_steps']:.0f})"
        )
    assert [row for row in found if len(row) == 5][1:] == [[*key, *cells] for key, cells in expected.items()]


def test_other_models_are_those_of_the_result():
    measured = result("learnt.json")
    dit, sd3 = (measured["models"]["models"][name]["rows"] for name in ("dit", "sd3"))
    expected = [
        [str(a["full_steps"]), *(f"{each[name]:.1f}" for each in (a, b) for name in ("even_chebyshev", "learnt"))]
        for a, b in zip(dit, sd3, strict=True)
    ]
    assert learnt_table("Other models")[1:] == expected
    assert all(each[0]["learnt"] > each[-1]["even_chebyshev"] for each in (dit, sd3)), "the README says so"
    assert [(each[0]["full_steps"], each[-1]["full_steps"]) for each in (dit, sd3)] == [(6, 12)] * 2
    transfer = [
        [row["model"], row["steps of"]]
        + [f"{row[name]:.1f}" if name in row else "-" for name in ("chebyshev", "its weights", "fitted")]
        for row in measured["transfer"]["rows"]
    ]
    assert learnt_table("A model that nobody has tuned")[1:] == transfer
    assert not missing([dit[1]["schedule"]], "docs/quality.md")


def test_the_time_of_a_tuning_is_computed_from_the_rows_that_were_counted():
    cost, full_step_s = result("learnt.json")["cost"], result("cpu.json")["full_step_s"]
    published = 5.58 / 28  # seconds per step of FLUX.1-dev
    sentences = (
        f"compute {cost['rows']:,} rows of full steps",
        f"about {cost['rows'] * published / 60:.0f} minutes",
        f"With 4 pictures it is half, {cost['rows'] * published / 120:.0f} minutes",
        f"takes {100 * (1 - cost['share_of_full_steps']):.0f} % of the time on the embedded model, whose full step "
        f"takes {1000 * full_step_s:.0f} ms",
    )
    assert not missing(sentences, "docs/quality.md")


def test_runs_of_few_steps_are_those_of_the_result():
    names = ("plain", "taylor 1", "chebyshev 2", "learnt")
    rows = result("quality.json")["few_steps"]["rows"]
    expected = [
        [str(row["num_steps"]), str(row["full_steps"])] + [f"{row[name]:.1f}" if name in row else "-" for name in names]
        for row in rows
    ]
    found = tables_of(ROOT / "docs/quality.md")["What to take from it"]
    assert found[-len(expected) :] == expected
    (of_8,) = [row for row in rows if row["num_steps"] == 8]
    sentence = (
        f"{of_8['learnt']:.1f} dB to the uncached run of 8, where even steps with `chebyshev` have "
        f"{of_8['chebyshev 2']:.1f}"
    )
    assert not missing([sentence], "docs/quality.md")


def test_what_a_learnt_forecast_costs_is_that_of_the_result():
    latency = result("learnt.json")["latency"]
    eight, twelve = (f"{row['learnt_over_chebyshev']:.2f}" for row in latency["rows"])
    sentence = f"takes {eight} of the time with 8 full steps and {twelve} with 12 (medians of {latency['turns']} turns"
    assert not missing([sentence], "docs/quality.md")
