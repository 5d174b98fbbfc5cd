"""Starting and stopping a tritonserver: command line, failures, and that no process is left."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

import plugin.ops.installation
import plugin.ops.server_config
from plugin.ops.installation import Installation, find_installation
from plugin.ops.server import Server, ServerConfig, ServerError, check, command, free_ports
from plugin.repository import models_to_download
from tests.support.fake_server import IDLE, fake_tritonserver, local, processes_with, repository, wait_until_gone

BROKEN = f"{IDLE}\n    def initialize(self, args):\n        raise RuntimeError('broken on purpose')\n"
SLOW = f"{IDLE}\n    def initialize(self, args):\n        import time; time.sleep(4)\n"


def test_command_names_models_addresses_ports_and_what_follows(tmp_path):
    installation = Installation(Path("/opt/tritonserver"), Path("/cache/backends"), {"PATH": "/first:/x"})
    config = ServerConfig(
        tmp_path, "10.0.0.1", 1, 2, 3, models=("emoji", "dit_stream", "emoji"), extra_args=("--log-verbose=1",)
    )
    arguments, environment = command(config, installation, Path("/private"))
    assert arguments[0] == "/opt/tritonserver"
    loaded = [each.split("=")[1] for each in arguments if each.startswith("--load-model")]
    assert loaded == ["emoji_stream", "emoji", "dit_stream", "dit"]
    assert {
        f"--model-repository={tmp_path}",
        "--model-control-mode=explicit",
        "--http-address=unix:/private/http",
        "--grpc-address=unix:/private/grpc",
        "--metrics-address=unix:/private/metrics",
        "--backend-directory=/cache/backends",
    } <= set(arguments)
    assert arguments[-1] == "--log-verbose=1"
    assert "10.0.0.1" not in " ".join(arguments), "only the guard listens on a network"
    guard = config.guard(Path("/private"))
    assert (guard.host, guard.http_port, guard.grpc_port, guard.metrics_port) == ("10.0.0.1", 1, 2, 3)
    assert environment["PATH"] == "/first:/x"
    assert (Path(environment["PYTHONPATH"].split(":")[0]) / "plugin/ops/server.py").is_file()


def test_vertex_ai_s_port_stays_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    _, environment = command(ServerConfig(tmp_path), Installation(Path("/triton"), None, {}), Path("/private"))
    assert "AIP_MODE" not in environment


def test_a_space_in_a_path_is_refused_where_the_server_would_hang(tmp_path):
    config = ServerConfig(tmp_path / "my models")
    command(config, Installation(Path("t"), None, {}), tmp_path)
    with pytest.raises(ServerError, match="my models' has a space, must have none for this tritonserver"):
        command(config, Installation(Path("t"), Path("/cache"), {}), tmp_path)


def test_without_names_every_model_is_loaded(tmp_path):
    arguments, _ = command(ServerConfig(tmp_path), Installation(Path("t"), None, {}), tmp_path)
    assert "--load-model=*" in arguments
    assert not [each for each in arguments if each.startswith("--backend-directory")]


def test_without_names_models_that_would_be_downloaded_are_left_out(tmp_path, monkeypatch):
    pipelines = {"near": "./pipeline", "far": "nobody/has-this", "moved": "nobody/has-that"}
    for name, pipeline in pipelines.items():
        repository(tmp_path, **{name: IDLE, f"{name}_stream": IDLE})
        with (tmp_path / f"{name}_stream/config.pbtxt").open("a") as config:
            config.write(f'parameters {{ key: "pipeline" value: {{ string_value: "{pipeline}" }} }}\n')
    monkeypatch.setenv("TAYLORSEER_MOVED_PIPELINE", "/models/that")
    assert models_to_download(tmp_path, os.environ) == {"far": "nobody/has-this"}
    arguments, _ = command(local(tmp_path), find_installation(), tmp_path)
    loaded = [argument for argument in arguments if argument.startswith("--load-model")]
    assert loaded == [f"--load-model={name}" for name in ("moved", "moved_stream", "near", "near_stream")]
    arguments, _ = command(local(tmp_path, models=("far",)), find_installation(), tmp_path)
    assert "--load-model=far_stream" in arguments


def test_the_default_host_is_loopback(tmp_path):
    assert ServerConfig(tmp_path).host == "127.0.0.1"


def test_a_tritonserver_on_path_comes_first(tmp_path, monkeypatch):
    binary = fake_tritonserver(tmp_path, "exit 0", monkeypatch)
    assert find_installation() == Installation(binary, None, {})


def test_no_tritonserver_says_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(plugin.ops.installation, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"not on PATH .*`pip install --no-deps nvidia-pytriton==0\.7\.0`"):
        find_installation()


def test_four_starts_at_once_prepare_the_backends_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    found: list[Path | None] = []
    threads = [threading.Thread(target=lambda: found.append(find_installation().backends)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert list((tmp_path / "cache").iterdir()) == [found[0]], "no scratch is left"
    assert os.access(found[0] / "python/triton_python_backend_stub", os.X_OK)
    assert (found[0] / "python/libtriton_python.so").is_file()


@pytest.mark.parametrize("name", ["triton_python_backend_stub", "libtriton_python.so"])
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_damaged_backends_are_copied_again(tmp_path, monkeypatch, name, content):
    """With half a stub Triton waits forever for it."""
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "cache"))
    path = find_installation().backends / "python" / name
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert find_installation().backends / "python" / name == path
    assert path.read_bytes() == whole
    assert len(list((tmp_path / "cache").iterdir())) == 1, "no scratch is left"


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_TAYLORSEER_CACHE", str(tmp_path / "file"))
    with pytest.raises(ServerError, match=r"cannot be copied to .*file.* writable folder in TRITON_TAYLORSEER_CACHE"):
        find_installation()


def test_bad_configurations_are_refused_before_a_start(tmp_path):
    repository(tmp_path / "models", good=IDLE, good_stream=IDLE, lonely=IDLE)
    good = local(tmp_path / "models")
    check(good)
    with pytest.raises(ServerError, match=r"model repository .*nowhere is not a folder"):
        check(local(tmp_path / "nowhere"))
    with pytest.raises(
        ServerError, match=r"model 'unicorn_stream' is not in .*must be one of: good, good_stream, lone"
    ):
        check(local(tmp_path / "models", models=("unicorn",)))
    with pytest.raises(ServerError, match="model 'lonely_stream' is not in"):
        check(local(tmp_path / "models", models=("lonely",)))
    with pytest.raises(ServerError, match="grpc port is 70000, must be from 1 to 65535"):
        check(ServerConfig(tmp_path, "127.0.0.1", good.http_port, 70000, good.metrics_port))
    with pytest.raises(ServerError, match=f"http {good.http_port}, grpc {good.http_port}, metrics .* must all differ"):
        check(ServerConfig(tmp_path, "127.0.0.1", good.http_port, good.http_port, good.metrics_port))


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named(tmp_path, name):
    config = local(tmp_path)
    port = getattr(config, f"{name}_port")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ServerError, match=rf"{name} port {port} on 127\.0\.0\.1 .*in use.*: choose --{name}-port"):
            Server(config).start()
    check(config)


def test_free_ports_are_free_and_differ():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


@pytest.mark.triton
def test_a_server_starts_serves_and_leaves_no_process(tmp_path):
    stages: list[str] = []
    config = local(repository(tmp_path / "models", a=IDLE, a_stream=IDLE, b=BROKEN), models=("a",))
    with Server(config, log=tmp_path / "log", on_progress=stages.append) as server:
        assert server.running is not None
        assert server.running.is_ready()
        guard = psutil.Process(server.running.guard_pid)
        with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
            assert b"nv_" in answer.read()
        assert processes_with(str(tmp_path))
        assert server.process is not None
    assert server.process.returncode == 0, "asked to end, not killed"
    assert not guard.is_running()
    wait_until_gone(str(tmp_path))
    assert stages[0] == "starting tritonserver"
    server.stop()  # once more does no harm


@pytest.mark.triton
def test_a_server_that_is_killed_leaves_no_shared_memory(tmp_path):
    """Nothing else frees it before the machine restarts, and `serve` may restart a server many times."""
    config = local(repository(tmp_path / "models", a=IDLE, b=IDLE))
    with Server(config, log=tmp_path / "log") as server:
        regions = list(Path("/dev/shm").glob(f"{config.memory_prefix}*"))
        assert len(regions) == 2, "of each of Triton's Python processes one"
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        assert all(region.exists() for region in regions)
    assert not any(region.exists() for region in regions)
    wait_until_gone(str(tmp_path))
    assert ServerConfig(tmp_path).memory_prefix != config.memory_prefix


@pytest.mark.triton
def test_a_model_that_fails_to_load_gives_its_reason_and_leaves_no_process(tmp_path):
    config = local(repository(tmp_path / "models", good=IDLE, bad=BROKEN))
    with pytest.raises(ServerError, match=r"ended with code 1: failed to load 'bad' .*broken on purpose.*log: .*/log"):
        Server(config, log=tmp_path / "log").__enter__()
    wait_until_gone(str(tmp_path))


@pytest.mark.triton
def test_another_failure_gives_the_end_of_the_log(tmp_path):
    config = local(repository(tmp_path / "models", good=IDLE), extra_args=("--no-such-option",))
    with pytest.raises(ServerError, match=r"ended with code 1: .*unrecognized option '--no-such-option'"):
        Server(config, log=tmp_path / "log").__enter__()


@pytest.mark.triton
def test_loading_that_takes_too_long_is_given_up(tmp_path):
    config = local(repository(tmp_path / "models", slow=SLOW))
    began = time.monotonic()
    with pytest.raises(ServerError, match="was not ready after 1 s"):
        Server(config, log=tmp_path / "log", ready_timeout_s=1).__enter__()
    assert time.monotonic() - began < 20
    wait_until_gone(str(tmp_path))


def test_a_server_is_killed_some_time_after_what_it_grants_requests_in_flight(tmp_path):
    assert local(tmp_path).stop_timeout_s == 40
    assert local(tmp_path, extra_args=("--exit-timeout-secs=90",)).stop_timeout_s == 100
    assert local(tmp_path, extra_args=("--exit-timeout-secs", "3", "--log-verbose=1")).stop_timeout_s == 13


def test_a_server_that_does_not_end_is_killed_with_its_children(tmp_path, monkeypatch):
    marker = f"61.{os.getpid()}"
    fake_tritonserver(tmp_path, f"trap '' TERM; sleep {marker} & sleep {marker}; sleep {marker}", monkeypatch)
    monkeypatch.setattr(plugin.ops.server_config, "_LATE_S", 0.3)
    server = Server(local(tmp_path, extra_args=("--exit-timeout-secs=0",)), log=tmp_path / "log")
    server.start()
    while len(processes_with(f"sleep {marker}")) < 2:
        time.sleep(0.02)
    server.stop()
    wait_until_gone(f"sleep {marker}")
    assert server.process is not None
    assert server.process.returncode == -9
