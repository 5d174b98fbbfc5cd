"""Dockerfile and compose file, as far as can be checked without Docker: what they name exists and fits together."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from plugin.cli import app
from plugin.config import ModelConfig
from plugin.repository import variable
from plugin.server import EXIT_TIMEOUT_S

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def resolved(text: str) -> str:
    """A text of the compose file with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of arguments; unknown ones are an error."""
    group = typer.main.get_command(app)
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    return dict(command.make_context(arguments[0], arguments[1:]).params)


@pytest.mark.parametrize("name", SERVICES)
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
    assert {each.split(":")[0] for each in SERVICES["triton"]["volumes"]} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["engines", "triton"])
def test_the_environment_sets_parameters_that_there_are(name, monkeypatch):
    environment = {key: resolved(str(value)) for key, value in SERVICES[name]["environment"].items()}
    models = [path.name for path in (ROOT / "model_repository").glob("*_stream")]
    known = {variable(model, "engine"): model for model in models}
    ours = {key for key in environment if key.startswith("TAYLORSEER_")} - {"TAYLORSEER_HEALTH_MODEL"}
    assert ours == {key for key, model in known.items() if not model.startswith("emoji")}
    for key in ours:
        monkeypatch.setenv(key, environment[key])
        assert ModelConfig.from_folder(ROOT / "model_repository" / known[key]).engine == "tensorrt"


def test_servers_are_stopped_later_than_triton_gives_up():
    for name in ("triton", "emoji"):
        service = SERVICES[name]
        assert int(service["stop_grace_period"].removesuffix("s")) > EXIT_TIMEOUT_S
        assert service["shm_size"] == "2g"
        assert service["read_only"] is True
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_what_the_image_copies_exists_and_is_not_ignored():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules, "what is not named, such as a .env with a token, stays outside"
    sources = []
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        words = shlex.split(line)
        if not words[0].startswith("--from"):
            sources += words[:-1]
    assert {"plugin", "taylorseer", "clients", "benchmarks", "model_repository", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in rules


def test_the_image_has_the_torch_that_is_tested_and_the_matrix_its_tag():
    project = (ROOT / "pyproject.toml").read_text()
    matrix = (ROOT / "docs/containers.md").read_text()
    assert "['project']['dependencies']" in DOCKERFILE
    (torch_version,) = re.findall(r'"torch==([^"]+)"', project)
    (image,) = re.findall(r"^ARG TRITON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"| `{image}`" in matrix
    assert f"| {torch_version} (CUDA 13.0) |" in matrix
    (rtx,) = re.findall(r"TENSORRT_RTX=(\d\S+) \.", DOCKERFILE)
    assert f'"tensorrt-rtx=={rtx}"' in project


def test_the_health_check_and_the_start_are_commands_of_ours():
    (check,) = re.findall(r"CMD triton-taylorseer (health .*)$", DOCKERFILE, re.MULTILINE)
    assert parsed(shlex.split(resolved(check)))["model"] == "emoji"
    (start,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert parsed(yaml.safe_load(start))["host"] == "0.0.0.0"
