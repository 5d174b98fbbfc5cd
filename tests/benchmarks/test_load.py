"""Load generators: command lines, reading of recorded reports, what a missing or failing tool says; and the plots."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import load, plots, serving
from benchmarks.load_generators import (
    WINDOWS,
    Arrivals,
    Concurrency,
    LoadError,
    Target,
    aiperf_command,
    find,
    perf_analyzer_command,
    poisson_intervals,
    read_aiperf,
    read_perf_analyzer,
    run,
)
from triton_taylorseer_client.messages import INPUTS

STREAM = Target("emoji_stream", "grpc", "localhost:8001", streaming=True)
# What perf_analyzer 2.51.0 wrote about two clients of the stream; of its requests the first two, pictures left out.
REPORT = """\
Concurrency,Inferences/Second,Response Throughput,Client Send,Network+Server Send/Recv,Server Queue,Server Compute \
Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
2,4.06232,109.267,0,480743,584,52,1229,5,0,479229,579589,637176,668763
"""
REQUESTS = """\
{"experiments": [{"experiment": {"mode": "concurrency", "value": 2}, "requests": [
 {"timestamp": 1795453003757419930, "response_timestamps": [1795453003839349621, 1795453003867861503]},
 {"timestamp": 1795453004257419930, "response_timestamps": [1795453004289349621, 1795453004867861503]}
], "window_boundaries": [1795453003756806648, 1795453010967251984]}], "version": "2.51.0"}
"""
REFUSED = """\
Request Rate: 20 inference requests per seconds
Failed to retrieve results from inference request.
Thread [0] had error: 8 requests are in flight and 64 wait, which is all this model takes: try again in 0.2 s

Thread [1] had error: 8 requests are in flight and 64 wait, which is all this model takes: try again in 0.2 s
"""
TOO_SHORT = (
    "Request concurrency: 4\nNo valid requests recorded within time interval. Please use a larger time window.\n"
)
BAD_OPTION = """\
Error: Failed to parse --profile-export-file. Path must not already exist.
Usage: perf_analyzer [options]
==== SYNOPSIS ====
"""
# What AIPerf 0.13.0 wrote about two clients of /generate, without what is not read.
AIPERF = {
    "request_throughput": {"unit": "requests/sec", "avg": 1.7386949157593026},
    "request_latency": {"unit": "ms", "avg": 1116.24, "p50": 1147.294785, "p95": 1625.668446, "p99": 1762.7773948},
    "request_count": {"unit": "requests", "avg": 11.0},
    "error_summary": [],
}


def options(command: list[str]) -> dict[str, str]:
    """Each option of a command line with the word behind it."""
    return {name: value for name, value in zip(command, [*command[1:], ""], strict=True) if name.startswith("-")}


def test_perf_analyzer_drives_the_stream_with_a_closed_loop():
    command = perf_analyzer_command(Path("/bin/pa"), STREAM, Concurrency(4), 2.5, Path("in.json"), Path("out"))
    assert command[0] == "/bin/pa"
    given = options(command)
    assert given["-m"] == "emoji_stream"
    assert (given["-i"], given["-u"]) == ("grpc", "localhost:8001")
    assert "--streaming" in command
    assert given["--concurrency-range"] == "4"
    assert given["--measurement-interval"] == "2500"
    assert given["--max-trials"] == str(WINDOWS)
    assert given["-f"] == "out/report.csv"
    assert "--request-count" not in command, "makes windows of a decoupled model meaningless"


def test_perf_analyzer_drives_the_plain_model_at_given_times():
    target = Target("emoji", "http", "localhost:8000")
    command = perf_analyzer_command(
        Path("pa"), target, Arrivals(Path("intervals.txt")), 9, Path("in.json"), Path("out")
    )
    assert "--streaming" not in command
    assert options(command)["--request-intervals"] == "intervals.txt"
    assert "--concurrency-range" not in command


def test_random_times_come_to_the_rate_and_scatter_as_poisson_arrivals_do():
    intervals = np.array(poisson_intervals(5, 2000)) / 1e6
    assert intervals.sum() == pytest.approx(2000, rel=1e-3)
    assert np.median(intervals) == pytest.approx(np.log(2) / 5, rel=0.05)  # 10,000 draws scatter by 1.4 %
    assert intervals.std() == pytest.approx(1 / 5, rel=0.05)


def test_random_times_have_one_pattern_at_every_rate():
    slow, fast = (np.array(poisson_intervals(per_s, 100 / per_s)) for per_s in (2, 8))
    assert slow == pytest.approx(4 * fast, abs=4)


def test_aiperf_drives_generate():
    command = aiperf_command(
        Path("aiperf"), "localhost:8000", "emoji", 8, 9.0, Path("in.jsonl"), Path("tokenizer"), Path("out")
    )
    given = options(command)
    assert command[:2] == ["aiperf", "profile"]
    assert given["--url"] == "http://localhost:8000"
    assert given["--endpoint-type"] == "image_generation"
    assert given["--custom-endpoint"] == "/v2/models/emoji/generate"
    assert (given["--concurrency"], given["--benchmark-duration"]) == ("8", "9")


def test_perf_analyzers_report_is_read(tmp_path: Path):
    (tmp_path / "report.csv").write_text(REPORT)
    (tmp_path / "requests.json").write_text(REQUESTS)
    assert read_perf_analyzer(tmp_path) == {
        "requests": 2,
        "requests_per_s": 4.06232,
        "p50_s": 0.479229,
        "p95_s": 0.637176,
        "p99_s": 0.668763,
        "first_response_p50_s": pytest.approx((0.0819 + 0.0319) / 2, abs=1e-4),
    }


def test_the_rate_at_which_requests_left_is_told_where_it_was_given(tmp_path: Path):
    (tmp_path / "report.csv").write_text(REPORT.replace("Concurrency", "Request Rate"))
    (tmp_path / "requests.json").write_text(REQUESTS.replace('"mode": "concurrency"', '"mode": "request_rate"'))
    assert read_perf_analyzer(tmp_path)["offered_per_s"] == pytest.approx(2)  # the second left 0.5 s after the first


def test_aiperfs_report_is_read(tmp_path: Path):
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(AIPERF))
    assert read_aiperf(tmp_path) == {
        "requests": 11,
        "requests_per_s": pytest.approx(1.7387, abs=1e-4),
        "p50_s": pytest.approx(1.1473, abs=1e-4),
        "p95_s": pytest.approx(1.6257, abs=1e-4),
        "p99_s": pytest.approx(1.7628, abs=1e-4),
    }


def test_failed_requests_of_aiperf_are_an_error(tmp_path: Path):
    failed = [{"error_details": {"code": 503, "message": "try again in 0.2 s"}, "count": 3}]
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(AIPERF | {"error_summary": failed}))
    with pytest.raises(LoadError, match=r"AIPerf's requests failed: .*try again in 0.2 s"):
        read_aiperf(tmp_path)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (REFUSED, "tool: 8 requests are in flight and 64 wait, which is all this model takes: try again in 0.2 s"),
        (BAD_OPTION, "tool: Error: Failed to parse --profile-export-file. Path must not already exist."),
        (TOO_SHORT, "tool: No valid requests recorded within time interval. Please use a larger time window."),
        ("16:57 ERROR    Failed to load tokenizer 'x'\nmore\n", "tool: Failed to load tokenizer 'x'"),
    ],
)
def test_a_tool_that_fails_tells_its_first_error(tmp_path: Path, printed, message):
    with pytest.raises(LoadError) as error:
        run([tool(tmp_path, f"print({printed!r}); raise SystemExit(99)")], tmp_path / "log", 60)
    assert str(error.value) == message


def test_a_tool_that_does_not_end_is_killed(tmp_path: Path):
    with pytest.raises(LoadError, match=r"tool did not end within 1 s"):
        run([tool(tmp_path, "import time; time.sleep(600)")], tmp_path / "log", 1)


def test_the_processor_time_of_a_tool_is_told(tmp_path: Path):
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    assert 0.5 <= run([tool(tmp_path, busy)], tmp_path / "log", 60) < 5  # starting Python is in it


def test_no_offline_mode_reaches_a_tool(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run([tool(tmp_path, "import os; print(os.environ.get('HF_HUB_OFFLINE'))")], tmp_path / "log", 60)
    assert (tmp_path / "log").read_text() == "None\n"


def test_a_tool_is_found_where_it_is_named_then_on_path_then_installed(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(LoadError, match=r"perf_analyzer is not on PATH: `python -m benchmarks.load --install`"):
        find("perf_analyzer", None)
    with pytest.raises(LoadError, match="elsewhere is not an executable file"):
        find("perf_analyzer", tmp_path / "elsewhere")
    installed = executable(tmp_path / "cache" / "perf_analyzer-2.51.0" / "bin" / "perf_analyzer")
    assert find("perf_analyzer", None) == installed
    on_path = executable(tmp_path / "path" / "perf_analyzer")
    assert find("perf_analyzer", None) == on_path
    assert find("perf_analyzer", installed) == installed


def test_a_missing_tool_is_one_sentence(tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        load.main(["--tool", "aiperf", "--aiperf", str(tmp_path / "none"), "--output", str(tmp_path / "load.json")])
    assert "none is not an executable file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_both_tools_send_the_same_requests():
    ours = json.loads(load.REQUESTS.read_text())["data"]
    assert [{name: value for name, (value,) in each.items()} for each in ours] == [
        {"prompt": each["text"], **each["extra"]} for each in map(json.loads, load.PROMPTS.read_text().splitlines())
    ]
    assert {name for each in ours for name in each} <= set(INPUTS)


def described() -> dict[str, Any]:
    hardware = {"processor": "a processor", "cores": 2, "memory_gib": 23.5, "gpu": None}
    return {"date": "2026-11-23T15:05:25+00:00", "commit": "8edf9c31e88c", "hardware": hardware, "model": "emoji"}


def point(**more: Any) -> dict[str, Any]:
    return {"requests_per_s": 4.0, "p50_s": 0.5, "p95_s": 0.6, "p99_s": 0.7, **more}


@pytest.mark.parametrize("poisson", [True, False], ids=["with a latency curve", "without perf_analyzer"])
def test_a_plot_of_loads_is_a_small_picture(tmp_path: Path, poisson):
    result = described() | {
        "load_average_before": 0.3,
        "closed_loop": {"aiperf": [point(concurrency=1), point(concurrency=8)]},
    }
    if poisson:
        result["closed_loop"]["stream"] = [point(concurrency=4)]
        refused = {"asked_per_s": 6.0, "failed": "refused"}
        result |= {"capacity_per_s": 5.0, "poisson": [point(offered_per_s=1.5), point(offered_per_s=3.0), refused]}
    plots.draw_load(result, tmp_path / "load.png")
    assert_readable(tmp_path / "load.png", wide=poisson)


def test_a_plot_of_serving_is_redrawn_from_its_json(tmp_path: Path):
    shutil.copy(serving.RESULTS / "serving.json", tmp_path)
    serving.main(["--plot-only", "--output", str(tmp_path / "serving.json")])
    assert_readable(tmp_path / "serving.png", wide=False)


@pytest.mark.skipif(not shutil.which("perf_analyzer"), reason="perf_analyzer is not on PATH")
def test_perf_analyzer_measures_a_real_server(tmp_path: Path):
    with serving.embedded_server({}) as server:
        for target in (
            Target("emoji_stream", "grpc", server.grpc_url, streaming=True),
            Target("emoji", "http", server.http_url),
        ):
            output = tmp_path / target.protocol
            output.mkdir()
            binary = find("perf_analyzer", None)
            command = perf_analyzer_command(binary, target, Concurrency(2), 3, load.REQUESTS, output)
            assert run(command, output / "log", 300) > 0
            found = read_perf_analyzer(output)
            assert found["requests"] > 0
            assert 0 < found["first_response_p50_s"] <= found["p99_s"]
            assert 0 < found["p50_s"] <= found["p95_s"] <= found["p99_s"]


def executable(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def tool(folder: Path, script: str) -> str:
    """A program that does what a few lines of Python say."""
    return str(executable(folder / "tool", f"#!{sys.executable}\n{textwrap.dedent(script)}\n"))


def assert_readable(picture: Path, wide: bool) -> None:
    assert picture.stat().st_size < 100_000
    with Image.open(picture) as image:
        assert image.width >= (900 if wide else 500)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20, "nothing is drawn"
