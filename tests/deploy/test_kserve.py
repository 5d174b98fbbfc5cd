"""KServe's manifests against the types of its SDK, and the pod that they make together against Kubernetes' schemas."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any
from zipfile import ZipFile

import pytest

from plugin.config import ModelConfig
from tests.support import pods
from tests.support.commands import parsed
from tests.support.manifests import KUBERNETES, KServeTypes, Manifest, check, documents

FOLDER = pods.ROOT / "deploy/kserve"
KSERVE = "kserve==0.21.0"


def manifest(file: str, kind: str) -> Manifest:
    (found,) = [each for each in documents((FOLDER / file).read_text()) if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> KServeTypes:
    folder = tmp_path_factory.mktemp("kserve")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", KSERVE]
    ran = subprocess.run(download, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = folder.glob("*.whl")
    ZipFile(wheel).extractall(folder)
    return KServeTypes(folder)


@pytest.fixture
def runtime() -> Manifest:
    return manifest("runtime.yaml", "ServingRuntime")


@pytest.fixture
def service() -> Manifest:
    return manifest("flux-dev.yaml", "InferenceService")


def by_name(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lists merged as Kubernetes merges them: of the same name the later one counts."""
    return list({each["name"]: each for one in lists for each in one}.values())


def pod_of(runtime: Manifest, service: Manifest) -> dict[str, Any]:
    """The pod's spec as KServe makes it of both: fields of the service count, arguments follow one another."""
    predictor = copy.deepcopy(service["spec"]["predictor"])
    model = predictor.pop("model")
    (container,) = copy.deepcopy(runtime["spec"]["containers"])
    for name in ("modelFormat", "runtime", "protocolVersion", "storageUri"):
        del model[name]
    merged = {
        **container,
        **model,
        "args": container["args"] + model.get("args", []),
        "env": by_name(container["env"], model["env"]),
    }
    own = {name: predictor.pop(name) for name in ("minReplicas", "maxReplicas", "autoScaling")}
    assert own["minReplicas"] <= own["maxReplicas"]
    return {**predictor, "containers": [merged], "volumes": by_name(runtime["spec"]["volumes"], predictor["volumes"])}


@pytest.mark.parametrize(
    ("file", "version", "kind"),
    [("runtime.yaml", "v1alpha1", "ServingRuntime"), ("flux-dev.yaml", "v1beta1", "InferenceService")],
)
def test_kserve_takes_them(types: KServeTypes, file: str, version: str, kind: str):
    found = manifest(file, kind)
    assert found["apiVersion"] == f"serving.kserve.io/{version}"
    assert list(types.complaints(found, version.capitalize() + kind, kind)) == []


def test_what_kserve_does_not_know_is_told(types: KServeTypes, service: Manifest):
    predictor = service["spec"]["predictor"]
    predictor["maxReplicas"] = "4"
    predictor["model"]["modelFormat"]["nam"] = "diffusers"
    predictor["autoScaling"]["metrics"][0]["external"]["metric"]["querry"] = "x"
    told = list(types.complaints(service, "V1beta1InferenceService", "service"))
    assert len(told) == 3
    assert "service.spec.predictor.maxReplicas is '4', must be int" in told
    assert any(each.startswith("service.spec.predictor.model.modelFormat.nam is unknown") for each in told)
    assert any(".external.metric.querry is unknown" in each for each in told)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_rest(runtime: Manifest, service: Manifest, version: str):
    for each in documents((FOLDER / "flux-dev.yaml").read_text()):
        if each["kind"] != "InferenceService":
            check(each, version)
    spec = pod_of(runtime, service)
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "flux-dev"}, "spec": spec}, version)


def test_the_pod_is_ours(runtime: Manifest, service: Manifest):
    spec = pod_of(runtime, service)
    pods.check(spec)
    (container,) = spec["containers"]
    calls = [arguments for where, arguments in pods.commands(container) if where == "args"]
    assert [arguments[0] for arguments in calls] == ["build", "serve"]
    assert [parsed(arguments)["model"] for arguments in calls] == ["flux_dev", ["flux_dev"]]
    assert "exec triton-taylorseer serve" in container["args"][0], "else the shell keeps the signal to end from it"


def test_the_service_fits_the_runtime(runtime: Manifest, service: Manifest):
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [each["name"] for each in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (port,) = model["ports"]
    default = parsed(["serve"])
    assert port["containerPort"] == default["grpc_port"]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(default["metrics_port"])
    claims = [
        each for each in documents((FOLDER / "flux-dev.yaml").read_text()) if each["kind"].endswith("VolumeClaim")
    ]
    (volume,) = service["spec"]["predictor"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in [each["metadata"]["name"] for each in claims]


def test_the_weights_are_those_of_the_model(runtime: Manifest, service: Manifest, monkeypatch: pytest.MonkeyPatch):
    folder = pods.ROOT / "model_repository/flux_dev_stream"
    assert (
        service["spec"]["predictor"]["model"]["storageUri"] == f"hf://{ModelConfig.from_folder(folder).source.pipeline}"
    )
    (container,) = pod_of(runtime, service)["containers"]
    for name, value in pods.environment(container).items():
        monkeypatch.setenv(name, value)
    config = ModelConfig.from_folder(folder)
    assert (config.source.pipeline, config.engine) == ("/mnt/models", "tensorrt")


def test_it_scales_by_metrics_of_the_plugin(service: Manifest):
    plugin = (pods.ROOT / "plugin/triton_model/metrics.py").read_text()
    for metric in service["spec"]["predictor"]["autoScaling"]["metrics"]:
        (name,) = re.findall(r"\((\w+)\{", metric["external"]["metric"]["query"])
        assert f'"{name}"' in plugin
