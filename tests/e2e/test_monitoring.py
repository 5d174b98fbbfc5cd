"""Prometheus on the shipped configuration, against a real Triton under load: every panel of the dashboard has data, and
alerts fire when they are provoked."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugin.ops.server import free_ports
from tests.support.repository import copy_model
from tests.support.serving import Triton
from triton_taylorseer_client import Client, GenerationError

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/triton-taylorseer.json").read_text())
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
TIMEOUT_S = 60.0

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no Prometheus is installed (Debian: apt-get install prometheus)",
)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def api(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        return [float(each["value"][1]) for each in self.api("query", query=expression)["result"]]

    def firing(self) -> set[tuple[str, str]]:
        """Name and model of each alert that fires."""
        alerts = self.api("alerts")["alerts"]
        return {
            (each["labels"]["alertname"], each["labels"].get("model", ""))
            for each in alerts
            if each["state"] == "firing"
        }


@pytest.fixture(scope="module")
def prometheus(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """The shipped files with another address of Triton's, and minutes turned into seconds. A second target that nobody
    listens on is a Triton that is down."""
    folder = tmp_path_factory.mktemp("prometheus")
    (port, nobody) = free_ports(2)
    config = (PROMETHEUS / "prometheus.yml").read_text()
    metrics = urllib.parse.urlsplit(triton.server.metrics_url).netloc
    assert '"triton:8002"' in config
    config = config.replace('"triton:8002"', f'"{metrics}", "127.0.0.1:{nobody}"').replace(": 15s", ": 1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text(re.sub(r"\b(\d+)m\b", r"\1s", (PROMETHEUS / "alerts.yml").read_text()))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        listen = f"--web.listen-address=127.0.0.1:{port}"
        process = subprocess.Popen(["prometheus", *options, listen], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _until(lambda: _is_ready(url), "Prometheus is ready")
            yield Prometheus(url)
        finally:
            process.terminate()
            process.wait(20)


def _is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def _until(condition: Any, what: str) -> None:
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends, f"not within {TIMEOUT_S} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def load(triton: Triton) -> Iterator[None]:
    """Two clients that ask again and again, one of them for pictures whose deadline is near."""
    done = threading.Event()

    def ask(number: int) -> None:
        with Client(triton.grpc_url, "emoji") as client:
            while not done.is_set():
                fields: dict[str, Any] = {"deadline_ms": 60_000} if number else {}
                client.generate("star, 3d", num_inference_steps=20, **fields)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    yield
    done.set()
    for thread in threads:
        thread.join()


def expressions() -> list[tuple[str, str]]:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert all(panel["targets"] for panel in panels)
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize(("panel", "expression"), expressions())
def test_no_panel_is_empty_under_load(panel, expression, prometheus, load):
    expression = expression.replace("$model", "emoji").replace("$__rate_interval", "10s")
    assert "$" not in expression

    def has_data() -> bool:
        values = prometheus.values(expression)
        return bool(values) and all(map(math.isfinite, values))

    _until(has_data, f"{panel}: {expression}")


def test_the_dashboard_finds_the_models(prometheus, load):
    (variable,) = DASHBOARD["templating"]["list"]
    (_, metric, label) = re.fullmatch(r"(label_values)\((\w+), (\w+)\)", variable["query"]["query"]).groups()
    _until(
        lambda: {"emoji", "faulty"} <= set(prometheus.api(f"label/{label}/values", **{"match[]": metric})),
        "both models are labels",
    )


def test_prometheus_keeps_all_labels_as_the_server_names_them(prometheus, triton, load):
    """A label of the target's own names would arrive as exported_…."""
    copy_model(triton.repository, "pair")
    path = triton.repository / "pair_stream/config.pbtxt"
    path.write_text(path.read_text().replace("count: 1", "count: 2"))
    triton.load("pair")
    _until(
        lambda: prometheus.values('taylorseer_requests_in_flight{model="pair",model_instance="0_1"}'), "a second one"
    )
    kept = set(prometheus.api("labels", **{"match[]": '{__name__=~"(taylorseer|nv)_.+"}'}))
    assert {"model", "model_instance", "kind", "outcome"} <= kept
    assert not [label for label in kept if label.startswith("exported_")]


def test_the_dashboard_is_what_grafana_is_told_to_load():
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/dashboards.yml").read_text())[
        "providers"
    ]
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert used <= {source["uid"], "${datasource}"}
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(provider["options"]["path"])


def test_a_triton_that_is_down_alerts(prometheus):
    _until(lambda: ("TritonDown", "") in prometheus.firing(), "TritonDown fires")


def test_errors_of_the_servers_own_and_refusals_alert(prometheus, triton):
    """The faulty model's engine breaks at a height of 40; it has two slots and a line of one."""
    done = threading.Event()

    def provoke(**fields: Any) -> None:
        with Client(triton.grpc_url, "faulty") as client:
            while not done.is_set():
                with suppress(GenerationError):
                    for _ in client.stream("star, 3d", **fields):
                        pass

    asked = [{"height": 40}, *[{"num_inference_steps": 200}] * 4]
    threads = [threading.Thread(target=provoke, kwargs=fields) for fields in asked]
    for thread in threads:
        thread.start()
    try:
        wanted = {("ModelFailing", "faulty"), ("RequestsRefused", "faulty")}
        _until(lambda: wanted <= prometheus.firing(), f"{wanted} fire")
        assert ("ModelFailing", "emoji") not in prometheus.firing()
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_prometheus_takes_the_shipped_files():
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        checked = subprocess.run(["promtool", "check", kind, PROMETHEUS / name], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_health_check_of_compose_is_an_address_of_prometheus(prometheus):
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    (kind, *command) = services["prometheus"]["healthcheck"]["test"]
    assert kind == "CMD"
    ran = subprocess.run(
        [each.replace("http://127.0.0.1:9090", prometheus.url) for each in command], capture_output=True, text=True
    )
    assert ran.returncode == 0, shlex.join(command) + ran.stderr


# Of each alert: series that provoke it, and when it is to fire. It must not fire before any of them is there.
_REQUESTS = 'taylorseer_requests_total{model="m", outcome="%s"}'
PROVOKED = {
    "TritonDown": ([('up{job="triton", instance="i"}', "0x30")], "2m", {"job": "triton", "instance": "i"}),
    "ModelFailing": ([(_REQUESTS % "error", "0+1x30")], "10m", {"model": "m"}),
    "RequestsRefused": ([(_REQUESTS % "ok", "0+90x30"), (_REQUESTS % "unavailable", "0+10x30")], "10m", {"model": "m"}),
    "QueueNeverEmpty": ([('taylorseer_requests_waiting{model="m"}', "3x30")], "15m", {"model": "m"}),
    "DeadlinesMissed": ([(_REQUESTS % "ok", "0+90x30"), (_REQUESTS % "deadline", "0+10x30")], "10m", {"model": "m"}),
    "NoProgress": (
        [('taylorseer_requests_in_flight{model="m"}', "2x60"), (_REQUESTS % "ok", "7x60")],
        "40m",
        {"model": "m"},
    ),
    "ModelGone": ([('taylorseer_requests_in_flight{model="m"}', "0x10 stale")], "16m", {"model": "m"}),
}
# The same in good order: none of them may fire.
CALM = [
    ('up{job="triton", instance="i"}', "1x60"),
    (_REQUESTS % "ok", "0+100x60"),
    (_REQUESTS % "error", "0x60"),
    (_REQUESTS % "unavailable", "0x60"),
    (_REQUESTS % "deadline", "0+1x60"),
    ('taylorseer_requests_in_flight{model="m"}', "2x60"),
    ('taylorseer_requests_waiting{model="m"}', "3 0 2 1 0 3 0 2 1 0 3 0 2 1 0 3 0 2 1 0 3 0 2 1 0 3 0 2 1 0"),
]


def test_every_alert_is_provoked():
    assert set(PROVOKED) == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("alert", PROVOKED)
def test_an_alert_fires_when_it_should(alert, tmp_path):
    series, at, labels = PROVOKED[alert]
    (rule,) = [rule for rule in ALERTS if rule["alert"] == alert]
    fired = promtool_test(tmp_path, series, alert, at, [labels | rule["labels"]])
    assert fired.returncode == 0, fired.stdout + fired.stderr
    not_fired = promtool_test(tmp_path, CALM, alert, "29m", [])
    assert not_fired.returncode == 0, not_fired.stdout + not_fired.stderr


def promtool_test(
    folder: Path, series: list[tuple[str, str]], alert: str, at: str, expected: list[dict[str, str]]
) -> subprocess.CompletedProcess[str]:
    # Summaries have values in them; what is to be held is which alert fires for what.
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert rule.pop("annotations")["summary"]
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "alert_rule_test": [
                    {"alertname": alert, "eval_time": at, "exp_alerts": [{"exp_labels": each} for each in expected]}
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    return subprocess.run(["promtool", "test", "rules", folder / "test.yml"], capture_output=True, text=True)
