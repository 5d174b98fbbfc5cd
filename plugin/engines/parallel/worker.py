"""A further process of the parallel engine: `python -m plugin.engines.parallel.worker CONTROL LIFE`, the file
descriptors of its two connections to the model's process.

It ends with that process, however that ends: a thread sees that nobody is at the other end, and where this process has
been stopped, Linux kills it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from plugin.quiet import quieten_quantizers

if TYPE_CHECKING:  # both are imported once the thread that says "alive" runs: they take seconds
    import torch

    from plugin.engines.parallel.group import Place, Share
    from plugin.engines.parallel.messages import SharedCall, Start

BEAT_S = 1.0  # how often a process says that it is alive
ALIVE, RAISED = b".", b"!"  # what it says: that, and which call has ended with which error
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Runs calls until the other end is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    quieten_quantizers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole terminal; the model's process decides
    control, life = (Connection(int(fd)) for fd in sys.argv[1:3])
    threading.Thread(target=_say_alive, args=(life,), daemon=True).start()
    try:
        start: Start = control.recv()
        share = _start(start, control)
        control.send(None)
        calls = 0
        while True:
            calls += 1
            _answer(share, start.place, control, life, calls)
    except (EOFError, ConnectionError):
        os._exit(0)


def _start(start: Start, control: Connection) -> Share:
    import torch

    from plugin.engines.parallel.group import Share, find_meeting, join
    from plugin.engines.parallel.weights import put_together, received

    if start.place.device.type == "cpu":
        torch.set_num_threads(start.threads)
    control.send(None)  # what takes long is imported; the others wait at the meeting only for those that will come
    config = join(start.place, find_meeting(start.meeting, len(start.place.devices)))
    stacks, device = {}, start.place.device
    tensors = received(start.memory, [shape for each in start.stacks.values() for shape in each.shapes], device)
    for name, each in start.stacks.items():
        stacks[name] = put_together(each.structure, tensors[: len(each.shapes)])
        del tensors[: len(each.shapes)]
    return Share(stacks, config)


def _answer(share: Share, place: Place, control: Connection, life: Connection, calls: int) -> None:
    from plugin.engines.parallel.exchange import receive, send
    from plugin.engines.parallel.messages import CallEnd

    call: SharedCall = control.recv()
    try:
        inputs = {name: receive(shape, 0, place.device) for name, shape in call.shapes.items()}
        features: torch.Tensor | None = share.run(call.stack, inputs, call.even)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        life.send_bytes(RAISED + f"{calls} {text}".encode())
        control.send(CallEnd(calls, text))
        return
    control.send(CallEnd(calls))
    assert features is not None
    send(features, 0)


def _say_alive(life: Connection) -> None:
    try:
        while True:
            life.send_bytes(ALIVE)
            if life.poll(BEAT_S):  # nothing is ever sent: the other end is gone
                os._exit(0)
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    main()
