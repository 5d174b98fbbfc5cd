"""The Helm chart, rendered by Helm's own engine and held against the schemas of what it installs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient.grpc import service_pb2

from plugin.config import ModelConfig
from plugin.repository import variable
from tests.support import pods
from tests.support.commands import parsed
from tests.support.manifests import (
    KUBERNETES,
    NPM_PACKAGES,
    OPERATORS,
    Manifest,
    check,
    complaints_of_operators,
    documents,
    kind,
)
from triton_taylorseer_client.messages import channel_arguments

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed: it has wheels for x86-64 alone")

CHART = pods.ROOT / "deploy/helm/triton-taylorseer"
METRICS = ("taylorseer_requests_waiting", "taylorseer_requests_in_flight")
GATEWAY = {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}], "hostnames": ["a.example"]}
INGRESS = {"enabled": True, "host": "a.example", "tlsSecret": "a-tls"}
CLAIMS = {name: {"existingClaim": f"shared-{name}"} for name in ("engines", "weights")}
CPU = yaml.safe_load((CHART / "values-cpu.yaml").read_text())

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cpu": CPU,
    "four GPUs": {
        "gpu": {"count": 4},
        "engine": {"name": "parallel"},
        "parameters": {"sequence_parallel": 2, "cfg_parallel": 2},
    },
    "front": {"front": {"enabled": True, "apiKey": {"existingSecret": "front-key"}}},
    "hpa": {"autoscaling": {"enabled": True}},
    "keda": {"autoscaling": {"enabled": True, "kind": "keda", "waitingPerReplica": 0.5}},
    "shared claims": {"persistence": CLAIMS},
    "plain probes": {"model": "wan2_1_t2v", "probes": {"inference": False}, "engine": {"sizes": ["480x832"]}},
    "all": {
        "model": "flux_dev",
        "parameters": {"max_in_flight": 2, "vae_tiling": True, "max_batch_wait_ms": 0.5, "cache_preset": "paper"},
        "tritonArgs": ["--log-verbose=1"],
        "exitTimeoutSeconds": 900,
        "imagePullSecrets": [{"name": "registry"}],
        "runtimeClassName": "nvidia",
        "hubToken": {"existingSecret": "hub"},
        "engine": {"sizes": ["1024x1024", "768x1344"], "buildArgs": ["--precision=bf16", "--workspace=8"]},
        "front": {"enabled": True},
        "gateway": GATEWAY,
        "ingress": INGRESS,
        "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 8},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "pictures"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "service": {"type": "LoadBalancer", "annotations": {"a.example/internal": "true"}},
        "podAnnotations": {"a.example/note": "x"},
        "podLabels": {"team": "pictures"},
        "nodeSelector": {"gpu": "h100"},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "extraVolumes": [{"name": "prompts", "configMap": {"name": "prompts"}}],
        "extraVolumeMounts": [{"name": "prompts", "mountPath": "/prompts"}],
    },
}


def merged(values: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    """A section of values with more in it."""
    return {name: {**values.get(name, {}), **more}}


def render(values: dict[str, Any], name: str = "demo") -> dict[str, str]:
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        return chart.render(values, name=name, namespace="prod")


def installed(values: dict[str, Any], name: str = "demo") -> list[Manifest]:
    return [
        manifest
        for path, text in render(values, name).items()
        if path.endswith(".yaml")
        for manifest in documents(text)
    ]


def of_kind(manifests: list[Manifest], name: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == name]


def pods_of(manifests: list[Manifest]) -> dict[str, dict[str, Any]]:
    """The specs of the pods by the name of what makes them; each claim of their own stands as a volume."""
    specs = {}
    for each in [*of_kind(manifests, "StatefulSet"), *of_kind(manifests, "Deployment")]:
        spec = each["spec"]["template"]["spec"]
        claims = [{"name": claim["metadata"]["name"]} for claim in each["spec"].get("volumeClaimTemplates", [])]
        specs[each["metadata"]["name"]] = {**spec, "volumes": spec["volumes"] + claims}
    return specs


def container(manifests: list[Manifest], name: str) -> dict[str, Any]:
    (found,) = [each for each in containers(manifests) if each["name"] == name]
    return found


def containers(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [each for pod in pods_of(manifests).values() for each in pods.containers(pod)]


@pytest.fixture(params=list(VARIANTS))
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return installed(VARIANTS[request.param])


@pytest.fixture(scope="module")
def operator_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    folder = tmp_path_factory.mktemp("operators")
    (folder / "package.json").write_text('{"type": "module"}')
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", *NPM_PACKAGES]
    ran = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_helm_lints_it(name: str):
    report = helm.lint(CHART, VARIANTS[name], strict=True, kube_version="v1.31.0")
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(manifests: list[Manifest], version: str):
    names = [(*kind(each), each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        if kind(manifest) not in OPERATORS:
            check(manifest, version)


def test_the_operators_take_theirs(operator_types: Path):
    manifests = [each for values in VARIANTS.values() for each in installed(values) if kind(each) in OPERATORS]
    assert {kind(each) for each in manifests} == set(OPERATORS)
    assert complaints_of_operators(manifests, operator_types) == ""
    for manifest in manifests:
        manifest["spec"]["misspelt"] = True
    assert complaints_of_operators(manifests, operator_types).count("'\"misspelt\"' does not exist") == len(manifests)


def test_pods_are_ours(manifests: list[Manifest]):
    for pod in pods_of(manifests).values():
        pods.check(pod)


def test_selectors_find_their_pods_and_ports_have_names(manifests: list[Manifest]):
    made = {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in [*of_kind(manifests, "StatefulSet"), *of_kind(manifests, "Deployment")]
    }
    for manifest in manifests:
        spec = manifest["spec"]
        if manifest["kind"] == "Service":
            selector, used = spec["selector"], {port["targetPort"] for port in spec["ports"]}
        elif manifest["kind"] == "PodMonitor":
            selector = spec["selector"]["matchLabels"]
            used = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
        elif manifest["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
            used = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        elif manifest["kind"] in ("StatefulSet", "Deployment", "PodDisruptionBudget"):
            selector, used = spec["selector"]["matchLabels"], set()
        else:
            continue
        name = "demo-triton-taylorseer" + ("-front" if selector["app.kubernetes.io/component"] == "front" else "")
        found = [each for each, pod in made.items() if selector.items() <= pod["metadata"]["labels"].items()]
        assert found == [name]
        assert manifest["metadata"]["name"].startswith(name)
        assert used <= {port["name"] for one in made[name]["spec"]["containers"] for port in one["ports"]}
    services = [each["metadata"]["name"] for each in of_kind(manifests, "Service")]
    (stateful_set,) = of_kind(manifests, "StatefulSet")
    assert stateful_set["spec"]["serviceName"] in services


@pytest.mark.parametrize(
    ("name", "ports"),
    [("triton", {"http": "http_port", "grpc": "grpc_port", "metrics": "metrics_port"}), ("front", {"front": "port"})],
)
def test_ports_are_those_that_the_commands_listen_on(name: str, ports: dict[str, str]):
    one = container(installed(VARIANTS["all"]), name)
    ((_, arguments), *_) = pods.commands(one)
    options = parsed(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    given = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert given == {port: options[option] for port, option in ports.items()}


def test_the_front_finds_all_pods():
    manifests = installed(VARIANTS["front"])
    url = parsed(container(manifests, "front")["args"])["triton"]
    (headless,) = [each for each in of_kind(manifests, "Service") if each["spec"].get("clusterIP") == "None"]
    (port,) = [port["port"] for port in headless["spec"]["ports"] if port["name"] == "grpc"]
    assert url == f"dns:///{headless['metadata']['name']}.prod.svc:{port}"
    assert ("grpc.lb_policy_name", "round_robin") in channel_arguments(url), "else a front stays with one pod"
    assert "nvidia.com/gpu" not in container(manifests, "front")["resources"]["limits"]


def test_the_front_takes_further_options():
    given = ["--alias=gpt-image-2=flux_dev", "--timeout=600"]
    manifests = installed({"front": {"enabled": True, "args": given}})
    options = parsed(container(manifests, "front")["args"])
    assert (options["alias"], options["timeout"], options["model"]) == (["gpt-image-2=flux_dev"], 600, "flux_dev")


def test_a_pod_ends_after_its_requests():
    server = container(installed({"exitTimeoutSeconds": 900, "drainSeconds": 5}), "triton")
    assert "--exit-timeout-secs=900" in server["args"][server["args"].index("--") :]
    (pod,) = pods_of(installed({"exitTimeoutSeconds": 900, "drainSeconds": 5})).values()
    assert pod["terminationGracePeriodSeconds"] == 925


def test_the_engine_is_built_first_for_the_settings_that_load_it():
    manifests = installed(VARIANTS["all"])
    builder, server = (container(manifests, name) for name in ("engine", "triton"))
    options = parsed(builder["args"])
    assert options["model"] == "flux_dev"
    assert options["size"] == "1024x1024,768x1344"
    assert (options["precision"], options["workspace"]) == ("bf16", 8.0)
    assert builder["env"] == server["env"]
    assert builder["volumeMounts"] == server["volumeMounts"]
    assert builder["resources"] == server["resources"]
    assert server["args"][-3:] == ["--", "--exit-timeout-secs=900", "--log-verbose=1"]


@pytest.mark.parametrize("engine", ["inductor", "onnxruntime", "parallel"])
def test_sizes_are_for_tensorrt_alone(engine):
    """`build` refuses them with other engines."""
    builder = container(installed({"engine": {"name": engine}}), "engine")
    assert parsed(builder["args"])["size"] is None


def test_parameters_reach_the_model(monkeypatch: pytest.MonkeyPatch):
    for name, value in pods.environment(container(installed(VARIANTS["all"]), "triton")).items():
        monkeypatch.setenv(name, value)
    config = ModelConfig.from_folder(pods.ROOT / "model_repository/flux_dev_stream")
    assert config.engine == "tensorrt"
    assert (config.max_in_flight, config.max_batch_wait_ms) == (2, 0.5)
    assert config.source.vae_tiling is True


@pytest.mark.parametrize("model", ["flux_dev", "my-model.v2"])
def test_variables_have_the_names_that_the_plugin_reads(model: str):
    env = container(installed({"model": model, "parameters": {"max_in_flight": 1}}), "triton")["env"]
    names = {each["name"] for each in env}
    assert {variable(model, "max_in_flight"), variable(model, "engine")} <= names


@pytest.mark.parametrize(("name", "gpus"), [("defaults", "1"), ("four GPUs", "4"), ("cpu", None)])
def test_a_pod_has_one_gpu_or_none(name: str, gpus: str | None):
    for each in containers(installed(VARIANTS[name])):
        assert each["resources"]["limits"].get("nvidia.com/gpu") == gpus


def test_engines_and_weights_outlive_the_pod_unless_told():
    def kept(values: dict[str, Any]) -> dict[str, str]:
        (stateful_set,) = of_kind(installed(values), "StatefulSet")
        own = {each["metadata"]["name"]: "own" for each in stateful_set["spec"].get("volumeClaimTemplates", [])}
        volumes = stateful_set["spec"]["template"]["spec"]["volumes"]
        rest = {
            each["name"]: each.get("persistentVolumeClaim", {}).get("claimName", "lost")
            for each in volumes
            if each["name"] in ("engines", "weights")
        }
        assert not own.keys() & rest.keys()
        return own | rest

    assert kept({}) == {"engines": "own", "weights": "own"}
    assert kept(CPU) == {"engines": "lost", "weights": "lost"}
    assert kept(VARIANTS["shared claims"]) == {"engines": "shared-engines", "weights": "shared-weights"}


def test_tokens_come_from_secrets_alone():
    manifests = installed({**VARIANTS["front"], "hubToken": {"existingSecret": "hub", "key": "token"}})
    secrets = {
        each["name"]: each["valueFrom"]["secretKeyRef"]
        for one in containers(manifests)
        for each in one.get("env", [])
        if "valueFrom" in each
    }
    assert secrets == {
        "HF_TOKEN": {"name": "hub", "key": "token"},
        "TAYLORSEER_API_KEY": {"name": "front-key", "key": "TAYLORSEER_API_KEY"},
    }
    assert not of_kind(manifests, "Secret")


def test_probes_make_a_picture_or_ask_triton():
    for one, asked in (({}, "exec"), ({"probes": {"inference": False}}, "httpGet")):
        server = container(installed(one), "triton")
        assert all(asked in server[probe] for probe in pods.PROBES)
    startup = container(installed({"probes": {"startupMinutes": 7}}), "triton")["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 7 * 60


def test_autoscalers_read_metrics_of_the_plugin():
    plugin = (pods.ROOT / "plugin/triton_model/metrics.py").read_text()
    assert all(f'"{name}"' in plugin for name in METRICS)
    (scaler,) = of_kind(installed(VARIANTS["hpa"]), "HorizontalPodAutoscaler")
    targets = [each["pods"] for each in scaler["spec"]["metrics"]]
    assert tuple(each["metric"]["name"] for each in targets) == METRICS
    assert [each["target"]["averageValue"] for each in targets] == ["2", "3"]
    (rule,) = yaml.safe_load((CHART / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (pattern,) = re.findall(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert [name for name in re.findall(r'"(taylorseer_\w+)"', plugin) if re.fullmatch(pattern, name)] == [
        *METRICS[::-1]
    ]
    (scaled,) = of_kind(installed(VARIANTS["keda"]), "ScaledObject")
    triggers = [each["metadata"] for each in scaled["spec"]["triggers"]]
    assert {re.findall(r"taylorseer_\w+", each["query"])[0]: each["threshold"] for each in triggers} == {
        METRICS[0]: "0.5",
        METRICS[1]: "3",
    }
    for each in triggers:
        assert '{namespace="prod",pod=~"demo-triton-taylorseer-[0-9]+"}' in each["query"]


def test_autoscalers_alone_count_the_pods():
    for name in ("hpa", "keda"):
        manifests = installed(VARIANTS[name])
        (stateful_set,) = of_kind(manifests, "StatefulSet")
        assert "replicas" not in stateful_set["spec"], "else every update takes the autoscaler's pods away"
        (scaler,) = [each for each in manifests if "scaleTargetRef" in each["spec"]]
        assert scaler["spec"]["scaleTargetRef"] == {
            **{key: stateful_set[key] for key in ("apiVersion", "kind")},
            "name": stateful_set["metadata"]["name"],
        }
    (fixed,) = of_kind(installed({"replicas": 3}), "StatefulSet")
    assert fixed["spec"]["replicas"] == 3


@pytest.mark.parametrize(("model", "values"), [("flux_dev", {}), ("emoji", CPU)])
def test_pods_are_added_before_all_their_slots_are_taken(model: str, values: dict[str, Any]):
    config = ModelConfig.from_folder(pods.ROOT / f"model_repository/{model}_stream")
    (scaler,) = of_kind(installed({**values, **merged(values, "autoscaling", enabled=True)}), "HorizontalPodAutoscaler")
    in_flight = scaler["spec"]["metrics"][1]["pods"]["target"]["averageValue"]
    assert int(in_flight) == config.max_in_flight * 3 // 4


def test_proxies_forward_inference_alone():
    manifests = installed(VARIANTS["all"])
    (route,) = of_kind(manifests, "GRPCRoute")
    (rule,) = route["spec"]["rules"]
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods = [each["method"]["method"] for each in rule["matches"]]
    assert {each["method"]["service"] for each in rule["matches"]} == {service.full_name}
    assert {"ModelInfer", "ModelStreamInfer"} <= set(methods) <= {each.name for each in service.methods}
    assert not [each for each in methods if re.search(r"Repository|SharedMemory|Setting|Log", each)]
    (ingress,) = of_kind(manifests, "Ingress")
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    assert [each["path"] for each in paths] == [f"/{service.full_name}/{method}" for method in methods]
    backends = {each["backend"]["service"]["name"] for each in paths} | {each["name"] for each in rule["backendRefs"]}
    assert backends == {"demo-triton-taylorseer"}


def test_one_service_balances_connections_and_one_lets_clients_balance_calls():
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(installed({}), "Service")}
    assert services["demo-triton-taylorseer-headless"]["clusterIP"] == "None"
    assert "clusterIP" not in services["demo-triton-taylorseer"]
    grpc = [port for spec in services.values() for port in spec["ports"] if port["name"] == "grpc"]
    assert [port["appProtocol"] for port in grpc] == ["kubernetes.io/h2c"] * 2


def test_the_network_policy_names_who_may_come():
    (policy,) = of_kind(installed(VARIANTS["all"]), "NetworkPolicy")
    clients, front, monitoring = policy["spec"]["ingress"]
    assert clients["from"] == VARIANTS["all"]["networkPolicy"]["clients"]
    assert {port["port"] for port in clients["ports"]} == {"http", "grpc"}
    assert {port["port"] for port in front["ports"]} == {"grpc"}
    assert {port["port"] for port in monitoring["ports"]} == {"metrics"}
    (default,) = of_kind(installed({"networkPolicy": {"enabled": True}}), "NetworkPolicy")
    assert [rule["from"] for rule in default["spec"]["ingress"]] == [[{"podSelector": {}}]] * 2


def test_names_are_short_enough_for_what_kubernetes_appends():
    manifests = installed(VARIANTS["all"], name="a" * 53)
    (stateful_set,) = of_kind(manifests, "StatefulSet")
    # A pod's label controller-revision-hash is this name and eleven characters, and may have 63, as a Service's name.
    assert len(stateful_set["metadata"]["name"]) <= 52
    assert max(len(each["metadata"]["name"]) for each in of_kind(manifests, "Service")) <= 63


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"engine": {"sizes": ["1024"]}}, "'/engine/sizes/0'"),
        ({"engine": {"name": "tensor-rt"}}, "'/engine/name'"),
        ({"model": "flux_dev_stream"}, "'/model'"),
        ({"parameters": {"Max-In-Flight": 2}}, "invalid propertyName 'Max-In-Flight'"),
        ({"autoscaling": {"kind": "vpa"}}, "'/autoscaling/kind'"),
        ({"sharedMemory": "2 GiB"}, "'/sharedMemory'"),
        ({"probes": {"startupMinutes": 0}}, "'/probes/startupMinutes'"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(values: dict[str, Any], complaint: str):
    with pytest.raises(helm.HelmValuesError, match=re.escape(complaint)):
        render(values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"autoscaling": {"enabled": True, "minReplicas": 5}},
            "autoscaling.maxReplicas is 4, must be at least minReplicas, 5",
        ),
        ({"gateway": {"enabled": True}}, "gateway.parentRefs is empty, must name a Gateway"),
        ({"ingress": {"enabled": True}}, "ingress.host is empty, must be a name"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, Any], complaint: str):
    with pytest.raises(helm.HelmRenderError, match=re.escape(complaint)):
        render(values)


def test_the_schema_knows_every_value():
    def described(values: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
        for name, value in values.items():
            entry = schema["properties"].get(name)
            if entry is None:
                yield f"{where}{name}"
            elif isinstance(value, dict) and "properties" in entry:
                yield from described(value, entry, f"{where}{name}.")
        yield from (f"{where}{name} is no value" for name in schema["properties"].keys() - values.keys() - {"global"})

    with helm.Chart.load(CHART) as chart:
        schema = chart.schema if isinstance(chart.schema, dict) else yaml.safe_load(chart.schema)
        assert list(described(chart.values, schema, "")) == []


def test_the_notes_say_how_to_reach_it():
    def notes(values: dict[str, Any]) -> str:
        (text,) = [text for path, text in render(values).items() if path.endswith("NOTES.txt")]
        return text

    plain, full = notes(CPU), notes(VARIANTS["all"])
    assert "dns:///demo-triton-taylorseer-headless.prod.svc:8001" in plain
    assert "builds its engine" not in plain
    assert ":9000" not in plain
    assert "logs -f demo-triton-taylorseer-0 -c engine" in full
    assert "everybody who reaches port 9000 can make pictures" in full
    assert f"pods/*/{METRICS[0]}" in full
    (command,) = re.findall(r"^  triton-taylorseer (generate .*)$", full, re.MULTILINE)
    assert parsed(shlex.split(command))["model"] == "flux_dev"


def test_the_chart_has_the_projects_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.+)"$', (pods.ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert chart["appVersion"] == version


def test_whole_numbers_keep_their_digits():
    """Helm reads every number as a float; a million of them reads 1e+06 where it is printed as one."""
    numbers = iter(range(1_000_000, 2_000_000))
    given = {"enabled": True, "startupMinutes": 1_100_000, "scaleDownStabilizationSeconds": 3600}

    def large(values: dict[str, Any]) -> dict[str, Any]:
        """The chart's own values with all parts on, and for each number one of its own above a million."""
        changed: dict[str, Any] = {}
        for name, value in values.items():
            number = next(numbers) if type(value) is int and name not in given else value
            changed[name] = large(value) if isinstance(value, dict) else given.get(name, number)
        return changed

    values = large(yaml.safe_load((CHART / "values.yaml").read_text())) | {"gateway": GATEWAY, "ingress": INGRESS}
    kinds: list[dict[str, Any]] = [{"enabled": False}, {"kind": "hpa"}, {"kind": "keda"}]
    texts = [text for one in kinds for text in render(values | merged(values, "autoscaling", **one)).values()]
    assert not [line for text in texts for line in text.splitlines() if re.search(r"\d[eE]\+\d", line)]
    printed = {int(number) for text in texts for number in re.findall(r"\b\d{7}\b", text)}
    assert {*range(1_000_000, next(numbers)), 6 * 1_100_000} <= printed


def test_parameters_arrive_as_they_were_written():
    values = {
        "deadline_ms": (1_800_000, "1800000"),
        "memory_budget_mib": (2**20, "1048576"),
        "max_in_flight": (-1_000_000, "-1000000"),
        "lora_scale": (0.8, "0.8"),
        "max_batch_wait_ms": (2.0, "2"),
        "cache_max_error": (1e-9, "1e-09"),
        "vae_tiling": (True, "true"),
        "cache_preset": ("paper", "paper"),
        "pipeline": ("1e6", "1e6"),
    }
    one = container(
        installed({"model": "emoji", "parameters": {name: value for name, (value, _) in values.items()}}), "triton"
    )
    variables = pods.environment(one)
    assert {name: variables[variable("emoji", name)] for name in values} == {
        name: text for name, (_, text) in values.items()
    }


def test_the_address_that_pods_listen_on_is_a_value():
    for host in ("0.0.0.0", "::"):
        specs = pods_of(installed({"host": host, "front": {"enabled": True}})).values()
        listening = [each for spec in specs for container in spec["containers"] for each in container.get("args", [])]
        assert [each for each in listening if str(each).startswith("--host=")] == [f"--host={host}"] * 2
