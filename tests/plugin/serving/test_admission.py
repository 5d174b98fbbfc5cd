"""Which requests run and which wait: slots, bytes, order, refusals."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from plugin.serving import admission as admission_module
from plugin.serving.admission import Admission, QueueFull, TooLarge

MIB = 2**20


@dataclass(eq=False)
class Entry:
    """A request as admission knows it."""

    nbytes: int
    due: float
    start: Callable[[], None]
    began: float | None = None
    carried_bytes: int = 0


class Door:
    """An admission that writes down which requests were started."""

    def __init__(self, slots: int, max_waiting: int, budget: int = 100) -> None:
        self.admission = Admission(slots, max_waiting, budget)
        self.started: list[str] = []

    def enter(self, name: str, nbytes: int = 1, due: float = 0.0, carried: int = 0) -> Entry:
        entry = Entry(nbytes, due, lambda: self.started.append(name), carried_bytes=carried)
        self.admission.enter(entry)
        return entry


def test_slots_then_queue_then_refusal():
    door = Door(slots=2, max_waiting=1)
    entries = []
    for name, expected in (("a", (1, 0)), ("b", (2, 0)), ("c", (2, 1))):
        entries.append(door.enter(name))
        assert (door.admission.in_flight, door.admission.waiting) == expected
    assert door.started == ["a", "b"]
    with pytest.raises(QueueFull, match=r"2 requests are in flight and 1 wait.*try again in 0\.1 s"):
        door.enter("d")
    door.admission.leave(entries[0])
    assert door.started == ["a", "b", "c"]
    door.enter("e")
    assert (door.admission.in_flight, door.admission.waiting) == (2, 1)


def test_each_request_knows_its_place_in_the_queue():
    door = Door(slots=1, max_waiting=4)
    running, late, early = door.enter("a"), door.enter("b", due=3), door.enter("c", due=2)
    assert [door.admission.position_of(each) for each in (running, early, late)] == [0, 1, 2]
    first = door.enter("d", due=1)
    assert [door.admission.position_of(each) for each in (first, early, late)] == [1, 2, 3]
    assert door.admission.withdraw(early)
    assert [door.admission.position_of(each) for each in (first, early, late)] == [1, 0, 2]
    door.admission.leave(running)
    assert [door.admission.position_of(each) for each in (first, late)] == [0, 1]


def test_without_a_queue_the_slots_are_the_limit():
    door = Door(slots=1, max_waiting=0)
    first = door.enter("a")
    with pytest.raises(QueueFull):
        door.enter("b")
    door.admission.leave(first)
    door.enter("c")
    assert door.started == ["a", "c"]


def test_bytes_are_set_aside_and_given_back():
    door = Door(slots=8, max_waiting=8, budget=10)
    first, second = door.enter("a", 6), door.enter("b", 4)
    assert door.admission.held_bytes == 10
    door.enter("c", 1)
    assert (door.admission.in_flight, door.admission.waiting) == (2, 1)
    door.admission.leave(second)
    assert door.started == ["a", "b", "c"]
    assert door.admission.held_bytes == 7
    door.admission.leave(first)
    assert door.admission.held_bytes == 1


def test_a_request_that_never_fits_is_told_the_numbers():
    door = Door(slots=1, max_waiting=1, budget=10 * MIB)
    with pytest.raises(TooLarge, match=r"a request of 11\.0 MiB, must be at most 10\.0 MiB, the memory_budget_mib"):
        door.enter("a", 11 * MIB)
    assert (door.admission.in_flight, door.admission.waiting) == (0, 0)


def test_nobody_overtakes_a_large_request_in_line():
    door = Door(slots=8, max_waiting=8, budget=10)
    first = door.enter("small", 5, due=1)
    door.enter("large", 10, due=2)
    door.enter("tiny", 1, due=3)
    assert door.started == ["small"], "tiny would fit, and large would wait for ever behind such as it"
    door.admission.leave(first)
    assert door.started == ["small", "large"]


def test_a_head_start_counts_in_line():
    door = Door(slots=1, max_waiting=8)
    entries = {"a": door.enter("a")}
    for name, due in (("late", 5.0), ("early", 1.0), ("middle", 3.0)):
        entries[name] = door.enter(name, due=due)
    for name in ("a", "early", "middle"):
        door.admission.leave(entries[name])
    assert door.started == ["a", "early", "middle", "late"]


def test_who_gives_up_in_line_makes_room_for_those_behind():
    door = Door(slots=8, max_waiting=8, budget=10)
    working = door.enter("a", 5, due=0)
    large, small = door.enter("large", 10, due=1), door.enter("small", 5, due=2)
    assert door.admission.withdraw(large)
    assert door.started == ["a", "small"]
    assert not door.admission.withdraw(large)
    assert not door.admission.withdraw(working), "it has begun"
    assert not door.admission.withdraw(small)


def test_the_expected_wait_grows_with_the_line():
    door = Door(slots=2, max_waiting=10)
    assert door.admission.expected_wait_s() == 0
    first = door.enter("a")
    time.sleep(0.05)
    door.admission.leave(first)
    assert door.admission.expected_wait_s() == 0, "slots are free"
    for i in range(2):
        door.enter(f"{i}")
    one = door.admission.expected_wait_s()
    assert 0.02 < one < 0.2
    for i in range(3):
        door.enter(f"w{i}")
    assert door.admission.expected_wait_s() == pytest.approx(4 * one)


def test_the_budget_is_never_exceeded_whoever_comes_and_goes():
    """300 requests of random sizes from 16 threads, a third of which give up; the sum is taken in `start` itself."""
    budget, seen, present = 1000, [], []
    admission = Admission(5, 300, budget)
    lock = threading.Lock()

    def request(seed: int) -> None:
        chance = random.Random(seed)
        begun, nbytes = threading.Event(), chance.randint(1, 600)

        def start() -> None:
            with lock:
                present.append(nbytes)
                seen.append((sum(present), len(present)))
            begun.set()

        entry = Entry(nbytes, time.monotonic(), start)
        admission.enter(entry)
        if chance.random() < 0.33 and not begun.wait(chance.random() * 0.005) and admission.withdraw(entry):
            return
        assert begun.wait(20)
        time.sleep(chance.random() * 0.003)
        with lock:
            present.remove(nbytes)
        admission.leave(entry)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(request, range(300)))
    assert max(total for total, _ in seen) <= budget
    assert max(total for total, _ in seen) > budget / 2, "the budget was made use of"
    assert max(count for _, count in seen) <= 5
    assert (admission.in_flight, admission.waiting, admission.held_bytes) == (0, 0, 0)


def test_the_files_of_those_that_wait_are_bounded_together(monkeypatch):
    """A request without files is queued all the same, and one that can begin at once needs no place in the queue."""
    monkeypatch.setattr(admission_module, "MAX_CARRIED_BYTES", 100)
    door = Door(slots=1, max_waiting=8)
    first = door.enter("works", carried=90)
    door.enter("waits", carried=60)
    with pytest.raises(QueueFull, match="the pictures of 1 requests that wait take all the memory there is for them"):
        door.enter("too much", carried=60)
    door.enter("without")
    door.admission.leave(first)
    assert door.started == ["works", "waits"]
    door.enter("again", carried=60)
