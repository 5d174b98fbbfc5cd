"""Manifests held against schemas: Kubernetes' own, and those of the operators whose objects we ship."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

Manifest = dict[str, Any]

KUBERNETES = ("1.29", "1.37")  # the oldest that the chart allows, and the newest that kubernetes-validate knows
# Kinds of operators: apiVersion and kind -> module and type of the npm packages that are generated from their Go types
OPERATORS = {
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): ("gateway-api/gateway.networking.k8s.io/v1", "IGRPCRoute"),
    ("keda.sh/v1alpha1", "ScaledObject"): ("keda/keda.sh/v1alpha1", "IScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"): ("prometheus-operator/monitoring.coreos.com/v1", "IPodMonitor"),
}
NPM_PACKAGES = (
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "typescript@5.9.3",
)


def documents(text: str) -> list[Manifest]:
    """The objects of a YAML file."""
    return [each for each in yaml.safe_load_all(text) if each]


def kind(manifest: Manifest) -> tuple[str, str]:
    """apiVersion and kind."""
    return manifest["apiVersion"], manifest["kind"]


def check(manifest: Manifest, version: str) -> None:
    """Raises where an object is not one of Kubernetes', unknown fields included."""
    kubernetes_validate.validate(manifest, version, strict=True)


def complaints_of_operators(manifests: Iterable[Manifest], folder: Path) -> str:
    """What TypeScript's compiler says about objects of operators, unknown fields included.

    Args:
        manifests: of the kinds in `OPERATORS`.
        folder: has NPM_PACKAGES installed.
    """
    lines = []
    for number, manifest in enumerate(manifests):
        module, name = OPERATORS[kind(manifest)]
        value = json.dumps(manifest)
        lines.append(f'export const m{number}: import("@kubernetes-models/{module}").{name} = {value};')
    (folder / "manifests.ts").write_text("\n".join(lines))
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    ran = subprocess.run(["npx", "tsc", *options, "manifests.ts"], cwd=folder, capture_output=True, text=True)
    assert ran.stdout or ran.returncode == 0, ran.stderr
    return ran.stdout


class KServeTypes:
    """The types of KServe's Python SDK, read from its sources: the SDK itself would bring its serving stack along.

    Args:
        folder: the unpacked wheel.
    """

    def __init__(self, folder: Path) -> None:
        self._models = folder / "kserve/models"

    def complaints(self, value: Any, type_name: str, where: str) -> Iterator[str]:
        """What is wrong with a value that should be of a type, as sentences that begin with its place.

        Values of Kubernetes' own types are passed over: `check` the pod that they end up in.
        """
        if listed := re.fullmatch(r"list\[(.+)\]", type_name):
            for index, each in enumerate(value):
                yield from self.complaints(each, listed[1], f"{where}[{index}]")
        elif mapped := re.fullmatch(r"dict\(str, (.+)\)", type_name):
            for name, each in value.items():
                yield from self.complaints(each, mapped[1], f"{where}.{name}")
        elif type_name in _SIMPLE:
            if type(value) is not _SIMPLE[type_name]:
                yield f"{where} is {value!r}, must be {type_name}"
        elif fields := self._fields(type_name):
            for name, each in value.items():
                if name in fields:
                    yield from self.complaints(each, fields[name], f"{where}.{name}")
                else:
                    yield f"{where}.{name} is unknown, must be one of: {', '.join(fields)}"

    def _fields(self, type_name: str) -> dict[str, str]:
        """The fields of a type of KServe's, name in YAML -> type; empty for other types."""
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type_name).lower()
        path = self._models / f"{snake}.py"
        if not path.is_file():
            return {}
        found: dict[str, dict[str, str]] = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name in ("openapi_types", "attribute_map"):
                    found[name] = ast.literal_eval(node.value)
        return {found["attribute_map"][name]: each for name, each in found["openapi_types"].items()}


_SIMPLE = {"str": str, "int": int, "bool": bool}
