"""How requests end before their pictures are made: the run is interrupted, or one of them fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from tests.support.comfyui.behaviours import Endless, of_seed
from tests.support.comfyui.executor import Executor, Run
from tests.support.comfyui.host import InterruptProcessingException
from tests.support.comfyui.prompts import pictures_of
from tests.support.fake_triton import Call, Failure, Picture, Step, fake_triton


def interrupted(ui: Executor, prompt: dict, when: threading.Semaphore, times: int) -> tuple[Run, float]:
    """A run that is interrupted once something has happened so many times, and the seconds that it took to end."""
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(ui.run(prompt)), daemon=True)
    thread.start()
    for _ in range(times):
        assert when.acquire(timeout=20)
    began = time.monotonic()
    ui.host.interrupt()
    thread.join(20)
    assert runs, "the run goes on"
    return runs[0], time.monotonic() - began


def test_an_interrupt_ends_the_run_and_every_request_on_the_server(ui):
    endless = Endless()
    with fake_triton(endless) as url:
        prompt = pictures_of(ui, "TextToImage", url, prompt="star", batch_size=3, width=64, height=64)
        run, took_s = interrupted(ui, prompt, endless.begun, 3)
        assert all(endless.ended.acquire(timeout=10) for _ in range(3))
    assert run.ended == "execution_interrupted"
    assert isinstance(run.error, InterruptProcessingException)
    assert took_s < 2
    assert run.ran == ["server"]


def test_an_interrupt_ends_the_wait_for_a_full_server(ui):
    asked = threading.Semaphore(0)

    def full(call: Call) -> Iterator[Failure]:
        asked.release()
        yield Failure("UNAVAILABLE", "the queue is full with 64 requests: try again in 600 s")

    with fake_triton(full) as url:
        run, took_s = interrupted(ui, pictures_of(ui, "TextToImage", url, prompt="a", width=64, height=64), asked, 1)
    assert run.ended == "execution_interrupted"
    assert took_s < 2


def test_after_an_interrupt_the_next_run_is_made(ui):
    endless = Endless()
    with fake_triton(endless) as url:
        interrupted(ui, pictures_of(ui, "TextToImage", url, prompt="star", width=64, height=64), endless.begun, 1)
    with fake_triton(of_seed) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", width=64, height=64))
    assert run.ended == "execution_success"


def test_one_picture_that_fails_is_named_and_the_others_are_cancelled(ui):
    endless, made = Endless(), threading.Event()

    def mixed(call: Call) -> Iterator[Step | Picture | Failure]:
        if call.fields["seed"] == 7:
            yield from of_seed(call)
            made.set()
        elif call.fields["seed"] == 8:
            made.wait(20)
            time.sleep(0.2)  # the first one's end is on its way
            yield Failure("INTERNAL", "the engine broke on purpose")
        else:
            yield from endless(call)

    with fake_triton(mixed) as url:
        run = ui.run(pictures_of(ui, "TextToImage", url, prompt="star", seed=7, batch_size=4, width=64, height=64))
        assert all(endless.ended.acquire(timeout=10) for _ in range(2))
    assert run.ended == "execution_error"
    assert str(run.error) == (
        "picture 2 of 4 (seed 8): the engine broke on purpose; 1 others were made, the rest was cancelled"
    )
