"""What every pod of ours must be, however its manifest came about."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from plugin.config import ModelConfig
from plugin.ops.server import ServerConfig
from plugin.repository import InvalidConfig
from tests.support.commands import parsed
from tests.support.image import DOCKERFILE
from tests.support.paths import ROOT

MODELS = sorted(path.name.removesuffix("_stream") for path in (ROOT / "model_repository").glob("*_stream"))
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

PodSpec = dict[str, Any]
Container = dict[str, Any]


def containers(pod: PodSpec) -> list[Container]:
    """All of a pod's containers, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: Container) -> dict[str, str]:
    """The variables of a container that have a value of their own."""
    return {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def commands(container: Container) -> Iterator[tuple[str, list[str]]]:
    """Calls of our command line: where they stand, and the arguments. Those of a shell are split as it would."""
    yield from _calls("args", container.get("command", ["triton-taylorseer"]) + container["args"], container)
    for probe in PROBES:
        if run := container.get(probe, {}).get("exec"):
            yield from _calls(probe, run["command"], container)


def _calls(where: str, command: list[str], container: Container) -> Iterator[tuple[str, list[str]]]:
    if command[0] == "triton-taylorseer":
        yield where, command[1:]
    elif command[:2] == ["sh", "-c"]:
        (script,) = command[2:]
        for part in script.split("&&"):
            expanded = re.sub(r"\$(\w+)", lambda name: environment(container)[name[1]], part)
            words = shlex.split(expanded.strip().removeprefix("exec "))
            assert words[0] == "triton-taylorseer"
            yield where, words[1:]


def check(pod: PodSpec) -> None:
    """Asserts what holds for every pod: the image's user and folders, no privileges, our commands, real parameters."""
    _check_security(pod)
    _check_folders(pod)
    _check_end(pod)
    for container in containers(pod):
        _check_environment(container)
        _check_commands(container)


def _check_security(pod: PodSpec) -> None:
    (uid,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert pod["automountServiceAccountToken"] is False
    for container in containers(pod):
        context = {**pod["securityContext"], **container["securityContext"]}
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == int(uid)
        assert pod["securityContext"]["fsGroup"] == int(uid), "else the volumes cannot be written to"
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def _check_folders(pod: PodSpec) -> None:
    (engines,) = re.findall(r"TRITON_TAYLORSEER_CACHE=(\S+)", DOCKERFILE)
    (weights,) = re.findall(r"HF_HOME=(\S+)", DOCKERFILE)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in containers(pod):
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= set(volumes)
        assert "/tmp" in mounts
        if container["name"] != "front":
            assert {engines, weights, "/tmp", "/dev/shm"} <= set(mounts)
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def _check_end(pod: PodSpec) -> None:
    for container in pod["containers"]:
        command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        # What Triton grants requests in flight, and what `serve` adds before it kills it.
        config = ServerConfig(ROOT / "model_repository", extra_args=tuple(_triton_arguments(container)))
        assert pod["terminationGracePeriodSeconds"] > int(pause) + config.stop_timeout_s


def _triton_arguments(container: Container) -> list[str]:
    """What goes to tritonserver itself."""
    arguments = container["args"]
    return arguments[arguments.index("--") + 1 :] if "--" in arguments else []


def _check_environment(container: Container) -> None:
    for name in [each["name"] for each in container.get("env", [])]:
        if name.startswith("TAYLORSEER_") and name != "TAYLORSEER_API_KEY":
            assert any(_is_read(name, model) for model in MODELS), f"no model reads {name}"


def _is_read(name: str, model: str) -> bool:
    """Whether a variable changes a model's settings, or what is wrong with them."""
    folder = ROOT / f"model_repository/{model}_stream"
    try:
        with patch.dict(os.environ, {name: "7"}):
            changed = ModelConfig.from_folder(folder)
    except InvalidConfig:
        return True
    return changed != ModelConfig.from_folder(folder)


def _check_commands(container: Container) -> None:
    for where, arguments in commands(container):
        options = parsed(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        if "model_repository" in options:
            assert str(options["model_repository"]) == "/opt/taylorseer/model_repository"
        if where in PROBES:
            assert arguments[0] == "health"
            assert options["timeout"] < container[where]["timeoutSeconds"], "else nobody hears why"
            assert options["url"] == "localhost:8001"
        if arguments[0] in ("serve", "front"):
            assert options["host"] == "0.0.0.0", "else nothing outside the pod reaches it"
        (model,) = options["model"] if isinstance(options["model"], list | tuple) else [options["model"]]
        assert model in MODELS
