"""Packs full steps of several requests into one engine call."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass, field

import torch

from plugin.engines.base import Engine
from plugin.engines.packing import joined, longest, may_share_a_call, unpadded
from plugin.families.base import BlockInputs, Family

_POLL_S = 0.02  # how often a request that waits checks whether it must end


@dataclass(frozen=True)
class PackSettings:
    """How full steps are packed.

    Attributes:
        max_rows: most rows of one engine call; 1 packs nothing. A request counts for two where its pipeline gives the
            transformer both guidance branches as one batch.
        tokens: what `max_rows` was found for: of inputs with more tokens proportionally fewer rows share a call. None
            for the same bound at every size.
        fixed_rows: every call is padded to this many rows, so that results are bit-identical whatever else is running;
            None for calls as large as their jobs. Not above `max_rows`.
        max_wait_s: longest time that a call waits for requests that are between two full steps.
        lanes: concurrent engine calls, at least 1.
    """

    max_rows: int = 1
    tokens: int | None = None
    fixed_rows: int | None = None
    max_wait_s: float = 0.0
    lanes: int = 1

    def __post_init__(self) -> None:
        for name in ("max_rows", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.fixed_rows is not None and not 1 <= self.fixed_rows <= self.max_rows:
            raise ValueError(f"fixed_rows is {self.fixed_rows}, must be from 1 to max_rows, which is {self.max_rows}")

    def rows_for(self, tokens: int) -> int:
        """Most rows of one call of inputs with this many tokens each, at least 1."""
        if self.fixed_rows is not None:
            return self.fixed_rows
        return self.max_rows if self.tokens is None else max(1, self.max_rows * min(self.tokens, tokens) // tokens)


@dataclass(frozen=True)
class PackedEngine:
    """An engine in the two forms that a packer calls; they compute the same.

    Attributes:
        alone: for a request that has the machine to itself.
        in_lane: for calls beside others; on a CPU each has its share of the cores. Threads of one call wait for each
            other at each operation, those of two calls do not.
    """

    alone: Engine
    in_lane: Engine


class Ticket:
    """One request as the packer knows it; a subclass may check whether it must end, and count its calls.

    Attributes:
        priority: seconds of head start: a job is served as if it had come that much earlier (or, negative, later).
        batches: for each engine call whose first job was this request's, how many requests shared it.
    """

    priority: float
    batches: list[int]

    def __init__(self, priority: float = 0.0) -> None:
        self.priority = priority
        self.batches = []

    def check(self) -> None:
        """Called while the request waits; what it raises ends the wait and reaches the request."""


@dataclass(eq=False)
class _EngineJob:
    """One full step of one request: what the engine is to compute, and what became of it."""

    engine: PackedEngine
    family: Family
    ticket: Ticket
    inputs: BlockInputs
    out: torch.Tensor | None
    due: float
    woken: threading.Event = field(
        default_factory=threading.Event
    )  # set when it is done, or when its thread must make the next call
    done: bool = False
    result: torch.Tensor | None = None
    error: BaseException | None = None

    @property
    def rows(self) -> int:
        return self.inputs["hidden_states"].shape[0]

    @property
    def tokens(self) -> int:
        return self.inputs["hidden_states"].shape[1]


class Packer:
    """Batches the engine calls of all requests of one model instance.

    The oldest job goes first, together with the jobs that may share its call; up to `lanes` calls run at once.

    Jobs share a call where engine, dtypes and shapes are the same and the inputs that a family shares between requests
    are equal in content: another height x width has other rotary tables even with as many tokens. Texts of unequal
    lengths are padded where the family has a mask for them, and where results may depend on the company (no
    `fixed_rows`). A request has one job at a time, and a new job goes behind those that wait. So requests take turns
    step by step, however many steps each has left.

    The thread of the oldest job makes the call for all jobs that share it. Then it wakes their threads, and the thread
    that makes the next call. So a request that is alone calls the engine itself: to hand each full step to another
    thread and back cost 1.5 ms of 14 on two cores.

    Args:
        settings: how to pack.
    """

    def __init__(self, settings: PackSettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()  # a leader waits here for other requests
        self._queue: list[_EngineJob] = []
        self._leaders: set[_EngineJob] = set()  # whose threads make the present calls, or are woken to; at most `lanes`
        self._running = 0  # jobs in the present calls
        # Requests between their first job and their end, or until nothing refers to them.
        self._present: weakref.WeakSet[Ticket] = weakref.WeakSet()

    def engine_for(self, engine: PackedEngine, family: Family, ticket: Ticket) -> Engine:
        """The engine as one request sees it: each call waits for its turn and may share it."""
        return _RequestEngine(self, engine, family, ticket)

    def leave(self, ticket: Ticket) -> None:
        """Says that a request has no more jobs, so that no call waits for it."""
        with self._changed:
            self._present.discard(ticket)
            self._changed.notify_all()

    def run(self, job: _EngineJob) -> torch.Tensor:
        """Waits for a job's turn and result, in the request's thread."""
        with self._changed:
            self._present.add(job.ticket)
            self._queue.append(job)
            self._fill_lanes()
            self._changed.notify_all()
        try:
            while not job.woken.wait(_POLL_S):
                job.ticket.check()
        except BaseException:
            self._withdraw(job)
            raise
        if not job.done:
            self._lead(job)
        if job.error is not None:
            raise job.error
        assert job.result is not None
        return job.result

    def _lead(self, job: _EngineJob) -> None:
        """Takes this job and those that may share its call, runs the engine, and wakes their threads."""
        jobs = [job]
        try:
            jobs = self._take(job)
            with torch.no_grad():
                self._call(jobs, self._engine_of(job))
        finally:
            with self._changed:
                for each in jobs:
                    if each in self._queue:  # not even taken: what was compared with it raised
                        self._queue.remove(each)
                    else:
                        self._running -= 1
                    if not each.done:  # this thread is being ended in the middle of the call
                        each.error = each.error or RuntimeError("the call was broken off by the request that made it")
                        each.done = True
                    each.woken.set()
                self._leaders.remove(job)
                self._fill_lanes()

    def _fill_lanes(self) -> None:
        """Wakes the threads of the oldest waiting jobs to lead, up to `lanes` at once; the lock is held."""
        while len(self._leaders) < self._settings.lanes and (waiting := self._waiting()):
            leader = min(waiting, key=lambda each: each.due)
            self._leaders.add(leader)
            leader.woken.set()

    def _waiting(self) -> list[_EngineJob]:
        """The jobs in the queue that lead no call themselves."""
        return [job for job in self._queue if job not in self._leaders]

    def _withdraw(self, job: _EngineJob) -> None:
        """Takes back a job whose request has ended; one that is being run is waited for: its memory is in use."""
        with self._changed:
            waiting = job in self._queue
            if waiting:
                self._queue.remove(job)
                self._leaders.discard(job)
                self._fill_lanes()
        if not waiting:
            job.woken.wait()

    def _take(self, leader: _EngineJob) -> list[_EngineJob]:
        """The jobs of a leader's call, out of the queue."""
        with self._changed:
            wait_until = time.monotonic() + self._settings.max_wait_s
            while True:
                jobs = self._gather(leader)
                full = sum(job.rows for job in jobs) + jobs[0].rows > self._rows_for(jobs[0])
                left = wait_until - time.monotonic()
                if full or left <= 0 or len(self._queue) + self._running >= len(self._present):
                    for job in jobs:
                        self._queue.remove(job)
                    self._running += len(jobs)
                    return jobs
                self._changed.wait(left)

    def _gather(self, first: _EngineJob) -> list[_EngineJob]:
        """The leader's job and those that may share its call, oldest first, as many as there is room for."""
        jobs, rows, most, pads = [first], first.rows, first.inputs, self._settings.fixed_rows is None
        for job in sorted(self._waiting(), key=lambda each: each.due):
            fits = job.engine == first.engine and rows + job.rows <= min(self._rows_for(first), self._rows_for(job))
            if fits and may_share_a_call(first.family, most, job.inputs, pads=pads):
                jobs.append(job)
                rows += job.rows
                most = longest(first.family, [most, job.inputs])
        return jobs

    def _rows_for(self, job: _EngineJob) -> int:
        return self._settings.rows_for(job.tokens)

    def _engine_of(self, job: _EngineJob) -> Engine:
        """The engine of a call: beside other requests, the one that leaves cores to the other calls."""
        alone = len(self._present) <= 1 and self._settings.fixed_rows is None
        return job.engine.alone if alone else job.engine.in_lane

    def _call(self, jobs: list[_EngineJob], engine: Engine) -> None:
        try:
            self._run(jobs, engine)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:  # one of them breaks the call: each on its own, so that only that one fails
                    self._call([job], engine)
                return
        jobs[0].ticket.batches.append(len(jobs))
        for job in jobs:
            job.done = True

    def _run(self, jobs: list[_EngineJob], engine: Engine) -> None:
        first, rows = jobs[0], sum(job.rows for job in jobs)
        padding = max(0, (self._settings.fixed_rows or rows) - rows)
        if len(jobs) == 1 and not padding:
            first.result = engine.run(first.inputs, first.out)
        else:
            features = engine.run(joined(first.family, [job.inputs for job in jobs], padding))
            begin = 0
            for job in jobs:
                part = unpadded(job.family, features[begin : begin + job.rows], job.tokens)
                begin += job.rows
                job.result = part if job.out is None else job.out.copy_(part)
        device = first.inputs["hidden_states"].device
        if device.type == "cuda":
            # Jobs that come meanwhile must meet in the queue, not behind calls that are only enqueued.
            torch.cuda.current_stream(device).synchronize()


class _RequestEngine:
    """One request's view of an engine behind a packer."""

    def __init__(self, packer: Packer, engine: PackedEngine, family: Family, ticket: Ticket) -> None:
        self.name = engine.alone.name
        self._packer = packer
        self._engine = engine
        self._family = family
        self._ticket = ticket

    def run(self, inputs: BlockInputs, out: torch.Tensor | None = None) -> torch.Tensor:
        """See `Engine.run`; waits for its turn."""
        due = time.monotonic() - self._ticket.priority
        return self._packer.run(_EngineJob(self._engine, self._family, self._ticket, inputs, out, due))
