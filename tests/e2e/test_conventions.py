"""What somebody who knows Triton expects of a model: its config, versions, loading with another config, warm-up."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from plugin.ops.control import grpc_headers
from plugin.ops.server import Server, ServerConfig, free_ports
from plugin.tensors import INPUTS, OUTPUTS, STREAM_OUTPUTS
from tests.support.huge_pages import kernel_tells
from tests.support.paths import ROOT
from tests.support.repository import SHIPPED, copy_model
from triton_taylorseer_client import Client, InvalidArgument

ANALYZER = ROOT / "deploy/model_analyzer"
DATATYPES = {"TYPE_STRING": "BYTES"}  # metadata names it otherwise; of the others it drops the TYPE_

# Version 2 of a model, which tells itself from version 1 by the steps of a request that asks for none.
SEVEN_STEPS = """
from dataclasses import replace

from triton_taylorseer import StreamModel


class TritonPythonModel(StreamModel):
    def load_host(self):
        defaults = replace(self.config.defaults, num_inference_steps=7)
        self.config = replace(self.config, defaults=defaults)
        return super().load_host()
"""

# The same, which refuses to load where Python's search for garbage, which stops all threads, takes long once the model
# is loaded.
COLLECTED = f"""
import gc
import time
{SEVEN_STEPS}
    def initialize(self, args):
        super().initialize(args)
        began = time.thread_time()
        gc.collect()
        seconds = time.thread_time() - began
        if seconds > 0.05:
            raise RuntimeError(f"a garbage collection took {{seconds:.3f}} s")
"""

# And where large tensors lie in small pages, which take long to come, if the kernel tells; or where text is ASCII, with
# which torch's code generator cannot be imported.
LARGE_PAGES = f"""
{COLLECTED}
        import locale

        import torch

        from tests.support.huge_pages import asks_for_huge_pages

        large = torch.ones(1 << 26, dtype=torch.uint8)
        if {kernel_tells()} and not asks_for_huge_pages(large.data_ptr() + (1 << 25)):
            raise RuntimeError("64 MiB lie in small pages")
        if (encoding := locale.getpreferredencoding(False)) != "UTF-8":
            raise RuntimeError(f"text is {{encoding}}")
"""


@dataclass(frozen=True)
class Own:
    """A server of this file's own, whose model `swan` may be loaded in any way."""

    server: Server
    repository: Path
    client: Client
    grpc: tritonclient.grpc.InferenceServerClient

    def config(self) -> dict[str, Any]:
        return self.grpc.get_model_config("swan_stream", as_json=True)["config"]

    @property
    def key(self) -> dict[str, str]:
        return grpc_headers(self.server.config.control_key)

    def load(self, config: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        self.grpc.load_model("swan_stream", self.key, json.dumps(config), files, client_timeout=60)

    def load_as_on_disk(self) -> None:
        # Unloaded first: a plain load over another config changes nothing while the files are the same (24.10).
        self.grpc.unload_model("swan_stream", self.key, client_timeout=60)
        self.grpc.load_model("swan_stream", self.key, client_timeout=60)

    def report(self, **fields: Any) -> dict[str, Any]:
        return self.client.generate("red apple, 3d", **fields).report

    def steps_of_version(self, version: int) -> int:
        url = f"http://{self.server.http_url}/v2/models/swan_stream/versions/{version}/generate_stream"
        with urllib.request.urlopen(url, json.dumps({"prompt": "red apple, 3d"}).encode(), timeout=60) as answer:
            return json.loads(answer.read().split(b"data: ")[-1])["num_steps"]

    def counted(self, labels: str, requests: int) -> bool:
        """Whether `taylorseer_requests_total` with these labels comes to so many: metrics trail the answers."""
        for _ in range(50):
            with urllib.request.urlopen(self.server.metrics_url, timeout=10) as answer:
                found = re.search(
                    rf"^taylorseer_requests_total\{{{labels}\}} (\d+)$", answer.read().decode(), re.MULTILINE
                )
            if found and int(found[1]) == requests:
                return True
            time.sleep(0.1)
        return False


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("own") / "models"
    folder.mkdir()
    copy_model(folder, "swan", num_inference_steps="5")
    # After a load that failed, 24.10 waits out its exit time-out.
    config = ServerConfig(folder, "127.0.0.1", *free_ports(3), extra_args=("--exit-timeout-secs=1",))
    with (
        Server(config, log=folder.parent / "log") as server,
        Client(server.grpc_url, "swan") as client,
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as grpc,
    ):
        yield Own(server, folder, client, grpc)


def shipped(name: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((SHIPPED / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SHIPPED.glob("*/config.pbtxt")))
def test_a_shipped_config_says_only_what_is_the_models_own(name):
    config = shipped(name)
    assert config.name == name
    assert config.backend == "python"
    # No instance on a GPU by Triton's choice: which device is used is the pipeline's own parameter.
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    assert not config.input
    assert not config.output
    assert not config.HasField("version_policy"), "Triton's own default: the latest version"
    assert bool(config.parameters) is name.endswith("_stream")
    assert [path.name for path in (SHIPPED / name).iterdir() if path.is_dir()] == ["1"]


@pytest.mark.parametrize(("name", "outputs"), [("emoji", OUTPUTS), ("emoji_stream", STREAM_OUTPUTS)])
def test_metadata_and_config_have_every_tensor(triton, name, outputs):
    metadata = triton.http.get_model_metadata(name)
    wanted = {each: DATATYPES.get(kind, kind.removeprefix("TYPE_")) for each, kind in INPUTS.items()}
    assert {each["name"]: each["datatype"] for each in metadata["inputs"]} == wanted
    shapes = {each["name"]: each["shape"] for each in metadata["inputs"]}
    assert shapes == {each: [-1] if each == "input_image" else [1] for each in wanted}
    assert {each["name"]: each["shape"] for each in metadata["outputs"]} == {
        each: shape for each, (_, shape) in outputs.items()
    }
    assert (metadata["platform"], metadata["versions"]) == ("python", ["1"])
    config = triton.http.get_model_config(name)
    assert all(each["optional"] for each in config["input"])
    assert config["max_batch_size"] == 0
    assert config.get("model_transaction_policy", {}).get("decoupled", False) is name.endswith("_stream")
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert {each: value["string_value"] for each, value in config["parameters"].items()} == {
        each: value.string_value for each, value in shipped(name).parameters.items()
    }


def test_an_unknown_version_is_said_so(triton):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{triton.http_url}/v2/models/emoji/versions/2/generate", b'{"prompt": "a"}')
    assert caught.value.code == 404
    assert "'emoji' version 2 is not found" in caught.value.read().decode()


def test_another_config_is_loaded_and_its_warm_up_counts_as_a_request(own):
    """These tests go on from one another: a load takes many times what the rest does."""
    text = b"red apple, 3d"
    (own.repository / "swan_stream/warmup").mkdir(exist_ok=True)
    (own.repository / "swan_stream/warmup/prompt").write_bytes(struct.pack("<I", len(text)) + text)
    tensor = {"data_type": "TYPE_STRING", "dims": [1], "input_data_file": "prompt"}
    config = own.config() | {"model_warmup": [{"name": "first", "batch_size": 1, "inputs": {"prompt": tensor}}]}
    del config["instance_group"]  # Triton then makes one instance, with a name of another form
    config["parameters"] |= {"cache_preset": {"string_value": "default"}, "cache_interval": {"string_value": "2"}}
    own.load(config)
    assert own.report()["cache_interval"] == 2
    assert own.counted('model="swan",outcome="ok"', 2), "the first instance has no label"


def test_a_wrong_config_leaves_the_old_one_serving(own):
    config = own.config()
    wrong = {**config, "parameters": {**config["parameters"], "cache_interva": {"string_value": "2"}}}
    with pytest.raises(
        InferenceServerException, match="parameter 'cache_interva' is unknown, must be one of: allow_pickle, "
    ):
        own.load(wrong)
    assert own.report()["cache_interval"] == 2
    own.grpc.load_model("swan_stream", own.key)
    assert own.report()["cache_interval"] == 2, "the files have not changed, so Triton (24.10) loads nothing"


def test_files_are_overridden_where_the_pipeline_is_named_whole(own):
    """By a model that also sees what a loaded one must be: no work for the garbage collector, and in large pages."""
    config = own.config()
    del config["model_warmup"]  # its file would have to be among those given
    files = {"file:1/model.py": LARGE_PAGES.encode()}
    relative = {**config, "parameters": {**config["parameters"], "pipeline": {"string_value": "../swan"}}}
    with pytest.raises(InferenceServerException, match=r"parameter 'pipeline' is '\.\./swan', must be a folder beside"):
        own.load(relative, files)
    config["parameters"]["max_waiting"] = {"string_value": "9"}
    own.load(config, files)
    assert own.report()["num_steps"] == 7
    if not kernel_tells():
        pytest.skip("served with other files, but this kernel does not tell which memory asked for large pages")


def test_versions_are_served_side_by_side_and_plain_calls_go_to_the_latest(own):
    second = own.repository / "swan_stream/2"
    second.mkdir()
    (second / "model.py").write_text(SEVEN_STEPS)
    own.load_as_on_disk()
    assert own.report()["cache_interval"] == 5
    assert own.grpc.get_model_metadata("swan_stream").versions == ["2"], "the latest alone, where nothing else is said"
    assert own.report()["num_steps"] == 7
    own.load(own.config() | {"version_policy": {"all": {}}})
    assert own.grpc.get_model_metadata("swan_stream").versions == ["1", "2"]
    assert [own.steps_of_version(version) for version in (1, 2)] == [5, 7]
    assert own.report()["num_steps"] == 7
    assert own.counted('model="swan",outcome="ok"', 1)
    assert own.counted('model="swan",outcome="ok",version="2"', 2), "processes cannot share a metric"


def test_without_auto_completion_a_model_has_no_tensors(tmp_path):
    copy_model(tmp_path, "swan")
    shutil.rmtree(tmp_path / "swan_stream")
    options = ("--disable-auto-complete-config", "--exit-timeout-secs=1")
    config = ServerConfig(tmp_path, "127.0.0.1", *free_ports(3), extra_args=options)
    refused = pytest.raises(InvalidArgument, match="expected 0 inputs but got 1 inputs for model 'swan'")
    with Server(config, log=tmp_path / "log") as server, Client(server.grpc_url, "swan") as client, refused:
        client.generate("red apple, 3d")


@pytest.mark.parametrize("name", ["plain", "stream"])
def test_model_analyzers_own_parser_takes_our_configs(name, tmp_path, monkeypatch):
    pytest.importorskip("model_analyzer", reason="triton-model-analyzer is not installed")
    from model_analyzer.cli.cli import CLI
    from model_analyzer.config.input.config_command_profile import ConfigCommandProfile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/model_analyzer").mkdir(parents=True)
    (tmp_path / "perf_analyzer").touch(mode=0o755)
    cli = CLI()
    cli.add_subcommand(cmd="profile", help="", config=ConfigCommandProfile())
    options = ["--model-repository", str(SHIPPED), "--perf-analyzer-path", str(tmp_path / "perf_analyzer")]
    options += ["--triton-server-path", str(tmp_path / "perf_analyzer")]
    _, config = cli.parse(["profile", "-f", str(ANALYZER / f"{name}.yaml"), *options])
    (profiled,) = config.profile_models
    assert (SHIPPED / profiled.model_name()).is_dir()
    assert profiled.parameters()["concurrency"] == [1, 2, 4, 8]
