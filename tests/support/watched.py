"""`triton-taylorseer serve` in a process of its own, which watches its models' processes; and these."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from plugin.ops.server import free_ports
from tests.support.commands import IMPATIENT_COMMAND, port_options
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Serving:
    url: str
    metrics_url: str
    process: psutil.Process
    log: Path

    def workers(self, instance: str) -> list[psutil.Process]:
        """The living processes whose instance's name begins so: `killed_0` for those of the model `killed`."""
        found = []
        for each in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "stub" in each.name() and any(part.startswith(instance) for part in each.cmdline()):
                    found.append(each)
        return found

    def worker(self, instance: str) -> psutil.Process:
        """The latest of them, once there is one."""
        wait_for(lambda: bool(self.workers(instance)), f"{instance} has a process")
        return max(self.workers(instance), key=psutil.Process.create_time)

    def said(self, words: str) -> bool:
        """Whether `serve` has said this; its lines are wrapped at spaces."""
        return words in " ".join(self.log.read_text().split())


@contextmanager
def watched(folder: Path, *options: str) -> Iterator[Serving]:
    """`serve` of a folder of models; it may not be ready yet.

    Args:
        folder: of models.
        options: of tritonserver.
    """
    http, grpc, metrics = free_ports(3)
    ports = port_options(http, grpc, metrics)
    arguments = [*IMPATIENT_COMMAND, "serve", "--model-repository", str(folder), *ports, "--", *options]
    log = folder.parent / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
    try:
        yield Serving(f"127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}/metrics", psutil.Process(process.pid), log)
    finally:
        print(log.read_text(errors="replace")[-3000:])
        process.terminate()
        process.wait(60)
