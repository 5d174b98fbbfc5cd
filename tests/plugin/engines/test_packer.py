"""The packer: who shares a call, in what order, and what becomes of the others when something fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch

from plugin.engines.packer import PackedEngine, Packer, PackSettings, Ticket
from tests.support.waiting import wait_for


class Family:
    """Two inputs of each request's own and a table that requests share."""

    block_axes: ClassVar = {"hidden_states": {0: "batch", 1: "tokens"}, "temb": {0: "batch"}, "rotary": {0: "tokens"}}
    text_mask = None


FAMILY: Any = Family()


class GatedEngine:
    """hidden_states + temb + rotary; each call waits for the gate, and NaN in an input is an error of the call."""

    name = "gated"

    def __init__(self) -> None:
        self.calls: list[torch.Tensor] = []
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def run(self, inputs: dict[str, torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
        self.calls.append(inputs["hidden_states"][:, 0, 0].clone())
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        if inputs["hidden_states"].isnan().any():
            raise RuntimeError("the engine does not like this")
        features = inputs["hidden_states"] + inputs["temb"][:, None] + inputs["rotary"][None, :, None]
        return features if out is None else out.copy_(features)

    def open(self) -> None:
        """Lets every call pass from now on."""
        self.gate.release(10_000)


def inputs_of(value: float, *, rows: int = 1, tokens: int = 4, table: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.full((rows, tokens, 3), value),
        "temb": torch.full((rows, 3), value * 10),
        "rotary": torch.full((tokens,), table),
    }


def both(engine: Any) -> PackedEngine:
    return PackedEngine(engine, engine)


class CheckedTicket(Ticket):
    """A ticket whose check is given."""

    def __init__(self, check: Callable[[], None] = lambda: None, **options: Any) -> None:
        super().__init__(**options)
        self._check = check

    def check(self) -> None:
        self._check()


class Desk:
    """A packer whose engine is held back, and requests that wait at it."""

    def __init__(self, packer: Packer, engine: GatedEngine, pool: ThreadPoolExecutor) -> None:
        self.packer, self.engine = packer, engine
        self._pool = pool
        self._tickets: list[Ticket] = []

    @property
    def sizes(self) -> list[int]:
        """How many requests shared each call, in the order of their first ones."""
        return [size for ticket in self._tickets for size in ticket.batches]

    def ask(self, inputs: dict[str, torch.Tensor], **options: Any) -> Future[torch.Tensor]:
        """A job of a request of its own, which is in the queue (or at the engine) when this returns."""
        out, ticket = options.pop("out", None), CheckedTicket(**options)
        self._tickets.append(ticket)
        before = self._known()
        future = self._pool.submit(self.packer.engine_for(both(self.engine), FAMILY, ticket).run, inputs, out)
        deadline = time.monotonic() + 5
        while self._known() == before and not future.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return future

    def _known(self) -> int:
        return len(self.packer._present)

    def hold(self) -> Future[torch.Tensor]:
        """A job that is at the engine when this returns, so that what is asked next waits."""
        future = self.ask(inputs_of(0.0, tokens=2))
        assert self.engine.entered.acquire(timeout=5)
        return future

    def order(self) -> list[list[float]]:
        """The rows of each call after the held one, by their values."""
        return [call.tolist() for call in self.engine.calls[1:]]


@contextmanager
def desk_of(**settings: Any) -> Iterator[Desk]:
    engine = GatedEngine()
    packer = Packer(PackSettings(**settings))
    with ThreadPoolExecutor(32) as pool:
        try:
            yield Desk(packer, engine, pool)
        finally:
            engine.open()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with desk_of(max_rows=4) as each:
        yield each


def expected(value: float, table: float = 0.0, rows: int = 1, tokens: int = 4) -> torch.Tensor:
    return torch.full((rows, tokens, 3), value * 11 + table)


def test_jobs_that_wait_share_a_call_up_to_the_bound(desk):
    desk.hold()
    futures = [desk.ask(inputs_of(float(i))) for i in range(1, 7)]
    desk.engine.open()
    for i, future in enumerate(futures, 1):
        assert torch.equal(future.result(5), expected(float(i)))
    assert desk.order() == [[1, 2, 3, 4], [5, 6]]
    assert desk.sizes == [1, 4, 2]


def test_results_are_written_into_given_memory(desk):
    desk.hold()
    slots = torch.full((4, 1, 4, 3), torch.nan)
    futures = [desk.ask(inputs_of(float(i)), out=slots[i]) for i in (1, 3)]
    desk.engine.open()
    for i, future in zip((1, 3), futures, strict=True):
        assert future.result(5).data_ptr() == slots[i].data_ptr()
        assert torch.equal(slots[i], expected(float(i)))
    assert slots[0].isnan().all()
    assert slots[2].isnan().all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (inputs_of(1.0), inputs_of(2.0, tokens=5)),
        (inputs_of(1.0, table=0.0), inputs_of(2.0, table=1.0)),
        (inputs_of(1.0), {name: tensor.double() for name, tensor in inputs_of(2.0).items()}),
        (inputs_of(1.0), {**inputs_of(2.0), "more": torch.zeros(1)}),
    ],
    ids=["another size", "as many tokens and another table", "another dtype", "another input"],
)
def test_only_what_may_share_a_call_does(desk, one, other):
    desk.hold()
    futures = [desk.ask(one), desk.ask(other)]
    desk.engine.open()
    for future in futures:
        future.result(5)
    assert desk.order() == [[1.0], [2.0]]


def test_rows_count_where_a_request_has_two(desk):
    desk.hold()
    futures = [desk.ask(inputs_of(float(i), rows=2)) for i in (1, 2, 3)]
    desk.engine.open()
    for i, future in enumerate(futures, 1):
        assert torch.equal(future.result(5), expected(float(i), rows=2))
    assert desk.order() == [[1, 1, 2, 2], [3, 3]]
    assert desk.sizes == [1, 2, 1]


def test_a_request_of_more_rows_than_the_bound_goes_alone(desk):
    desk.hold()
    futures = [desk.ask(inputs_of(1.0, rows=6)), desk.ask(inputs_of(2.0))]
    desk.engine.open()
    assert futures[0].result(5).shape[0] == 6
    assert futures[1].result(5).shape[0] == 1
    assert desk.order() == [[1.0] * 6, [2.0]]


def test_the_oldest_job_goes_first_and_whoever_fits_goes_with_it(desk):
    desk.hold()
    futures = [desk.ask(inputs_of(float(i), tokens=4 + i % 2)) for i in range(1, 7)]
    desk.engine.open()
    for future in futures:
        future.result(5)
    assert desk.order() == [[1, 3, 5], [2, 4, 6]]


def test_priority_is_a_head_start_in_seconds():
    with desk_of(max_rows=1) as desk:
        desk.hold()
        futures = [desk.ask(inputs_of(float(i)), priority=priority) for i, priority in ((1, 0), (2, -60), (3, 60))]
        time.sleep(0.05)
        futures += [desk.ask(inputs_of(4.0), priority=0.01)]  # its head start is shorter than what it came later
        desk.engine.open()
        for future in futures:
            future.result(5)
        assert desk.order() == [[3], [1], [4], [2]]


def test_a_request_that_has_begun_waits_for_one_step_of_another_however_many_that_has_left():
    with desk_of(max_rows=1) as desk:
        desk.hold()

        def request(value: float, steps: int) -> None:
            engine = desk.packer.engine_for(both(desk.engine), FAMILY, Ticket())
            for _ in range(steps):
                engine.run(inputs_of(value))

        threads = [threading.Thread(target=request, args=arguments) for arguments in ((1.0, 30), (2.0, 3))]
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            wait_for(lambda waiting=waiting: len(desk.packer._queue) == waiting)
        desk.engine.open()
        for thread in threads:
            thread.join(5)
        assert desk.order()[:2] == [[1], [2]]


def test_calls_are_filled_up_where_bits_shall_not_depend_on_company():
    with desk_of(max_rows=4, fixed_rows=4) as desk:
        desk.engine.open()
        assert torch.equal(desk.ask(inputs_of(7.0)).result(5), expected(7.0))
        assert desk.engine.calls[0].tolist() == [7.0] * 4
        assert desk.sizes == [1], "the filling is nobody's"


def test_one_that_fails_does_not_take_the_others_with_it(desk):
    desk.hold()
    futures = [desk.ask(inputs_of(value)) for value in (1.0, float("nan"), 3.0)]
    desk.engine.open()
    assert torch.equal(futures[0].result(5), expected(1.0))
    with pytest.raises(RuntimeError, match="does not like this"):
        futures[1].result(5)
    assert torch.equal(futures[2].result(5), expected(3.0))
    assert torch.equal(desk.ask(inputs_of(4.0)).result(5), expected(4.0))


class Gone(Exception):
    pass


def giving_up(after: float) -> Callable[[], None]:
    end = time.monotonic() + after

    def check() -> None:
        if time.monotonic() > end:
            raise Gone

    return check


def test_a_request_that_gives_up_in_line_is_not_run(desk):
    desk.hold()
    first, gone = desk.ask(inputs_of(1.0)), desk.ask(inputs_of(2.0), check=giving_up(0.05))
    with pytest.raises(Gone):
        gone.result(5)
    desk.engine.open()
    first.result(5)
    assert desk.order() == [[1.0]]


def test_a_request_that_gives_up_at_the_engine_waits_until_its_memory_is_free(desk):
    out = torch.full((1, 4, 3), torch.nan)
    desk.hold()
    first, gone = desk.ask(inputs_of(1.0)), desk.ask(inputs_of(2.0), out=out, check=giving_up(0.2))
    desk.engine.gate.release()  # the held call ends, and the next one, of both, begins
    assert desk.engine.entered.acquire(timeout=5)
    time.sleep(0.4)
    assert not gone.done(), "the engine still writes"
    desk.engine.open()
    with pytest.raises(Gone):
        gone.result(5)
    assert torch.equal(out, expected(2.0))
    assert torch.equal(first.result(5), expected(1.0))


def test_company_is_awaited_for_no_longer_than_stated_and_only_where_there_is_some():
    with desk_of(max_rows=2, max_wait_s=0.3) as desk:
        desk.engine.open()
        alone, began = Ticket(), time.monotonic()
        engine = desk.packer.engine_for(both(desk.engine), FAMILY, alone)
        engine.run(inputs_of(1.0))
        assert time.monotonic() - began < 0.2, "nobody else is there"
        other = desk.ask(inputs_of(2.0))  # the first one is between two of its steps
        began = time.monotonic()
        other.result(5)
        assert 0.2 < time.monotonic() - began < 1.0
        assert desk.sizes == [1]


def test_company_that_comes_in_time_shares_the_call_at_once():
    with desk_of(max_rows=2, max_wait_s=5.0) as desk:
        desk.engine.open()
        absent = Ticket()
        desk.packer.engine_for(both(desk.engine), FAMILY, absent).run(inputs_of(1.0))
        began = time.monotonic()
        futures = [desk.ask(inputs_of(3.0)), desk.ask(inputs_of(4.0))]
        for future in futures:
            future.result(5)
        assert desk.sizes == [2], "the call is full: nobody waits for the absent one"
        desk.packer.leave(absent)
        assert time.monotonic() - began < 2


def test_a_call_that_is_broken_off_leaves_nobody_waiting():
    """What ends the thread that makes the call, such as an exit, ends that request and those that share its call."""

    class Breaking(GatedEngine):
        def run(self, inputs: dict[str, torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
            features = super().run(inputs, out)
            if (inputs["hidden_states"] == 13).any():
                raise SystemExit("the end")
            return features

    with desk_of(max_rows=2) as desk:
        desk.engine = Breaking()
        held = desk.hold()
        broken = [desk.ask(inputs_of(value)) for value in (13.0, 1.0)]
        later = desk.ask(inputs_of(2.0))
        desk.engine.open()
        held.result(5)
        with pytest.raises(SystemExit):
            broken[0].result(5)
        with pytest.raises(RuntimeError, match="broken off by the request that made it"):
            broken[1].result(5)
        assert torch.equal(later.result(5), expected(2.0))


def test_inputs_that_cannot_even_be_compared_do_not_stop_the_others(desk):
    desk.hold()
    strange = {**inputs_of(1.0), "rotary": torch.zeros(4, device="meta")}
    futures = [desk.ask(each) for each in (strange, inputs_of(2.0))]
    desk.engine.open()
    with pytest.raises(NotImplementedError, match="Meta tensors"):
        futures[0].result(5)
    assert torch.equal(futures[1].result(5), expected(2.0))
    assert torch.equal(desk.ask(inputs_of(3.0)).result(5), expected(3.0))


def test_a_request_that_is_alone_calls_the_engine_in_its_own_thread():
    threads: list[int] = []

    class Telling:
        name = "telling"

        def run(self, inputs: Any, out: Any = None) -> Any:
            threads.append(threading.get_ident())
            return inputs["hidden_states"]

    engine: Any = Telling()
    Packer(PackSettings(max_rows=4)).engine_for(both(engine), FAMILY, Ticket()).run(inputs_of(1.0))
    assert threads == [threading.get_ident()]


def test_as_many_calls_as_lanes_run_at_once_and_the_rest_is_packed_for_the_next_free_one():
    with desk_of(max_rows=4, lanes=2) as desk:
        futures = [desk.ask(inputs_of(1.0)), desk.ask(inputs_of(2.0))]
        for _ in futures:
            assert desk.engine.entered.acquire(timeout=5), "both are at the engine, before either has ended"
        futures += [desk.ask(inputs_of(value)) for value in (3.0, 4.0, 5.0)]
        assert not desk.engine.entered.acquire(timeout=0.1), "no third lane"
        desk.engine.gate.release()
        assert desk.engine.entered.acquire(timeout=5)
        desk.engine.open()
        for value, future in enumerate(futures, 1):
            assert torch.equal(future.result(5), expected(float(value)))
        assert sorted(call.tolist() for call in desk.engine.calls) == [[1], [2], [3, 4, 5]]


class NamedEngine(GatedEngine):
    """Always open; notes its name at each call."""

    def __init__(self, name: str, called: list[str]) -> None:
        super().__init__()
        self.name, self._called = name, called
        self.open()

    def run(self, inputs: dict[str, torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
        self._called.append(self.name)
        return super().run(inputs, out)


@pytest.mark.parametrize(("fixed_rows", "first"), [(None, "alone"), (4, "in lane")])
def test_a_request_with_company_leaves_cores_to_the_others_and_fixed_bits_always_come_from_one_engine(
    fixed_rows, first
):
    called: list[str] = []
    engine = PackedEngine(NamedEngine("alone", called), NamedEngine("in lane", called))
    packer = Packer(PackSettings(max_rows=4, lanes=2, fixed_rows=fixed_rows))
    one, other = Ticket(), Ticket()
    packer.engine_for(engine, FAMILY, one).run(inputs_of(1.0))
    packer.engine_for(engine, FAMILY, other).run(inputs_of(1.0))
    packer.leave(one)
    packer.engine_for(engine, FAMILY, other).run(inputs_of(1.0))
    assert called == [first, "in lane", first]


def test_company_that_runs_in_another_lane_is_not_awaited():
    with desk_of(max_rows=4, lanes=2, max_wait_s=5.0) as desk:
        held = desk.hold()
        began = time.monotonic()
        other = desk.ask(inputs_of(1.0))
        assert desk.engine.entered.acquire(timeout=2), "the only other request is at the engine"
        desk.engine.open()
        other.result(5)
        held.result(5)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_many_threads_that_come_go_and_give_up_all_get_their_own(lanes):
    """500 jobs of 16 threads with random settings; every tenth gives up."""
    engine: Any = GatedEngine()
    engine.open()
    engine.gate.release(10_000)
    packer = Packer(PackSettings(max_rows=3, lanes=lanes))

    def request(number: int) -> int:
        finished = 0
        for step in range(31):
            value = float(number * 100 + step)
            give_up = (number + step) % 10 == 0
            check = giving_up(0.0) if give_up else (lambda: None)
            try:
                features = packer.engine_for(both(engine), FAMILY, CheckedTicket(check=check)).run(
                    inputs_of(value, table=step % 3)
                )
                assert torch.equal(features, expected(value, table=step % 3))
                finished += 1
            except Gone:
                assert give_up
        return finished

    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(request, range(16)))
    assert min(counts) >= 27
    assert packer._queue == []
    assert not packer._leaders
    assert packer._running == 0


@pytest.mark.parametrize(
    "settings", [{"max_rows": 0}, {"lanes": 0}, {"max_rows": 2, "fixed_rows": 3}, {"fixed_rows": 0}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match="must be"):
        PackSettings(**settings)


def test_fewer_rows_of_more_tokens_share_a_call():
    settings = PackSettings(max_rows=8, tokens=64)
    assert [settings.rows_for(tokens) for tokens in (16, 64, 65, 128, 256, 4096)] == [8, 8, 7, 4, 2, 1]
    assert PackSettings(max_rows=4).rows_for(4096) == 4
    assert PackSettings(max_rows=4, tokens=64, fixed_rows=4).rows_for(4096) == 4
    with desk_of(max_rows=4, tokens=4) as desk:
        desk.hold()
        futures = [desk.ask(inputs_of(float(i), tokens=8)) for i in range(1, 5)]
        desk.engine.open()
        for future in futures:
            future.result(5)
        assert desk.order() == [[1, 2], [3, 4]]
