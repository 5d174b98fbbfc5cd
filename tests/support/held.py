"""What the processes of a server hold: to compare before and after."""

from __future__ import annotations

from pathlib import Path

import psutil

from plugin.ops.server import Server


def processes_of(server: Server) -> list[psutil.Process]:
    """The guard, tritonserver and its models."""
    assert server.running is not None
    triton = psutil.Process(server.running.process.pid)
    return [psutil.Process(server.running.guard_pid), triton, *triton.children(recursive=True)]


def held_by(server: Server) -> dict[str, int]:
    """Processes, bytes of memory (those shared among them once), threads, open files, bytes of shared memory."""
    processes = processes_of(server)
    shared = Path("/dev/shm").glob(f"{server.config.memory_prefix}*")
    return {
        "processes": len(processes),
        "memory": sum(each.memory_full_info().pss for each in processes),
        "threads": sum(each.num_threads() for each in processes),
        "files": sum(each.num_fds() for each in processes),
        "shared memory": sum(path.stat().st_blocks * 512 for path in shared),
    }
