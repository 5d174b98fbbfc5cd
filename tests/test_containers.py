"""Dockerfile and compose file, as far as can be checked without Docker: what they name exists and fits together."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zipfile import ZipFile

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
    assert {"plugin", "taylorseer", "clients", "benchmarks", "model_repository", "pyproject.toml"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists()
        assert not is_ignored(source)
    assert not is_ignored("model_repository/emoji/1/pipeline/transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("path", [".env", ".git/config", ".venv/bin/python", "out/a.png", "plugin/__pycache__/cli.pyc"])
def test_secrets_and_leftovers_stay_out_of_the_image(path):
    assert is_ignored(path)


def test_the_wheel_is_whole_with_what_the_image_copies(tmp_path):
    (stage, _) = re.split(r"^RUN .* pip wheel", DOCKERFILE, maxsplit=1, flags=re.MULTILINE)
    wanted = set()
    for source in re.findall(r"[\w.]+", " ".join(re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE))):
        if (ROOT / source).is_file():
            shutil.copy(ROOT / source, tmp_path)
        else:
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", "results"))
            wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / source).rglob("*.py")}
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheel", "."]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "triton-taylorseer = plugin.cli:app" in entry_points


def test_the_matrix_has_the_image_with_its_tensorrt_and_the_torch_that_is_tested():
    project = (ROOT / "pyproject.toml").read_text()
    (image,) = re.findall(r"^ARG TRITON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    (tensorrt,) = re.findall(r"^ARG TENSORRT=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert "['project']['dependencies']" in DOCKERFILE, "else the image's torch is another one"
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
