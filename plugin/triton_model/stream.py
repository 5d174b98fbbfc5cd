"""The Python-backend models: `<name>_stream` owns pipeline and threads, `<name>` answers plain calls through it; with
engine triton a third one may run the block stack.

Light to import: the front's instances are processes of their own and never load torch.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import queue
import secrets
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from plugin.errors import Outcome, Unavailable, message_of
from plugin.ops.huge_pages import ask_for_huge_pages
from plugin.paths import lock_file
from plugin.serving.admission import Admission, Entry
from plugin.tensors import (
    BLOCK_STACK_OUTPUT,
    ERROR_REPORT_PARAMETER,
    INPUTS,
    OUTPUTS,
    PING_PARAMETER,
    STREAM_OUTPUTS,
)
from plugin.triton_model.instance import count_on_device, device_of, label_of

if TYPE_CHECKING:
    import torch

    from plugin.config import ModelConfig
    from plugin.denoising.generation import Generation, Pixels
    from plugin.denoising.text_cache import TextCache
    from plugin.engines.base import EngineError
    from plugin.engines.packer import PackSettings
    from plugin.families.base import BlockInputs
    from plugin.request import GenerationRequest
    from plugin.triton_model.tracing import Spans
    from taylorseer import StepKind

_CANCEL_PARAMETER = "taylorseer_cancel"  # a request that carries it cancels the request whose key is its value
_KEY_PARAMETER = "taylorseer_key"  # the key under which a front's request can be cancelled
_QUIET_PARAMETER = "taylorseer_quiet"  # present where heartbeats are wanted in place of progress
_HEARTBEAT_S = 0.1  # a front hears this often from its request, and looks whether its client is still there
_CANCEL_POLL_S = 0.02  # how often Triton is asked which streams have been cancelled
_STEP_BUCKETS_S = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_REQUEST_BUCKETS_S = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
_BATCH_BUCKETS = [1, 2, 4, 8, 16, 32]

_MOST_UNTOLD = 10_000  # changes of metrics that are kept while another instance has them

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class StreamModel:
    """The decoupled model: loads the pipeline once, runs each request in a thread, streams its progress.

    A subclass in a model.py may override `load_host` to serve a pipeline that is made rather than loaded.
    """

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Adds the tensors, so that a config.pbtxt says only what is the model's own."""
        config.set_model_transaction_policy({"decoupled": True})
        return _with_tensors(config, STREAM_OUTPUTS)

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the pipeline and builds its engine; an exception here is Triton's message for the failed load."""
        ask_for_huge_pages(os.environ)
        from plugin.serving.deadlines import CostModel, LoadPolicy
        from plugin.serving.plan import architecture_of_pipe

        self.name: str = args["model_name"]
        self.config = _configure(args)
        self.host = self.load_host()
        self._architecture = architecture_of_pipe(self.host.pipe)
        self._costs = CostModel()
        self._load_policy = LoadPolicy(
            self.config.stretch_from_waiting, self.config.max_waiting, self.config.max_cache_interval
        )
        self._metrics = _MetricsInTurn({"model": self.name.removesuffix("_stream"), **_own_labels(args)})
        device = self.config.source.device
        budget = self.config.memory_budget_mib * 2**20 or _free_bytes(device) // count_on_device(args, device)
        self._admission = Admission(self.config.max_in_flight, self.config.max_waiting, budget)
        self._spans = self._wanted_spans()
        pb_utils.Logger.log_info(f"{self.name}: {budget / 2**20:,.0f} MiB for requests in flight")
        self._workers = ThreadPoolExecutor(self.config.max_in_flight, thread_name_prefix=self.name)
        self._jobs: set[_Job] = set()
        self._failure: str | None = None
        self._stuck = False  # whether that is why: a thread of ours cannot be ended
        self._outbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._empty_outbox, name=f"{self.name}-responses", daemon=True)
        self._sender.start()
        self._closing = threading.Event()
        self._listener = threading.Thread(target=self._hear_cancels, name=f"{self.name}-cancels", daemon=True)
        self._listener.start()
        # From the start on, so that what scales or alerts by them finds them before the first request.
        self._outbox.put(partial(self._metrics.tell, self._set_gauges))
        # What has been loaded stays: half a million objects, and each of Python's full searches for garbage among them
        # would stop every thread for a third of a second. The second search has Python forget how many there were: full
        # ones wait until a quarter of that is new.
        gc.collect()
        gc.freeze()
        gc.collect()

    def load_host(self) -> Any:
        """The `PipelineHost` of the configured pipeline."""
        from plugin.denoising.host import PipelineHost, load_pipeline, only_denoiser
        from plugin.engines.triton_engine import TritonEngine

        config, called = self.config, self.config.engine_model
        pb_utils.Logger.log_info(f"{self.name}: loading {config.source.pipeline}")
        pipe = load_pipeline(config.source)
        pb_utils.Logger.log_info(f"{self.name}: preparing engine {config.engine}")
        if called is not None:
            only_denoiser(pipe, f"engine triton with engine_model {called.name}")
            made = partial(TritonEngine, call=_call_model, model=called.name, batched=called.max_batch_size > 0)
            return PipelineHost(pipe, made, text_cache_bytes=config.text_cache_mib * 2**20, release_blocks=True)
        host = PipelineHost(
            pipe,
            config.engine,
            engine_threads=config.engine_threads or None,
            engine_lanes=config.engine_lanes,
            text_cache_bytes=config.text_cache_mib * 2**20,
            release_blocks=config.engine != "torch",
        )
        settings = _pack_settings(config, host)
        pb_utils.Logger.log_info(
            f"{self.name}: up to {settings.max_rows} rows in one engine call, {settings.lanes} calls at once"
        )
        host.pack(settings)
        return host

    def execute(self, requests: list[Any]) -> None:
        """Takes the requests over and returns at once; each is answered through its own response sender."""
        for request in requests:
            sender, arrived = request.get_response_sender(), time.perf_counter()
            try:
                self._accept(request, sender, arrived)
            except Exception as error:
                as_report = ERROR_REPORT_PARAMETER in (request.parameters() or "")
                sender.send(_error_response(error, as_report), flags=_FINAL)
                self._outbox.put(partial(self._count_refused, error, _trace_context(request), arrived))

    def finalize(self) -> None:
        """Ends the requests in flight and the threads."""
        for job in list(self._jobs):
            job.cancelled = True
        self._sweep_line()
        self._workers.shutdown(wait=not self._stuck)
        self._closing.set()
        self._listener.join()
        self._outbox.put(None)
        self._sender.join()
        if self._spans:
            self._spans.close()
        # What belongs to Triton and outlives the model crashes its process.
        gc.unfreeze()
        self._metrics.give_up()
        del self._metrics, self._sender, self._listener, self._workers, self._outbox
        gc.collect()
        if self._stuck:
            os._exit(1)  # the process would wait for that thread, and hold its memory, for ever

    def _accept(self, request: Any, sender: Any, arrived: float) -> None:
        parameters = json.loads(request.parameters() or "{}")
        if _CANCEL_PARAMETER in parameters:
            for job in list(self._jobs):
                job.cancelled = job.cancelled or job.key == parameters[_CANCEL_PARAMETER]
            sender.send(flags=_FINAL)
            return
        if self._failure:
            raise Unavailable(self._failure)
        if PING_PARAMETER in parameters:
            self._outbox.put(partial(sender.send, flags=_FINAL))
            return
        from plugin.serving.deadlines import meet_deadline

        asked = self._parse(request)
        admission = self._admission
        fitting = meet_deadline(
            asked,
            self._costs,
            admission.expected_wait_s(),
            self.config.max_cache_interval,
            alone=not admission.in_flight,
        )
        key = parameters.get(_KEY_PARAMETER)
        quiet, as_report = (name in parameters for name in (_QUIET_PARAMETER, ERROR_REPORT_PARAMETER))
        job = _Job(key, fitting, sender, self._post, arrived, quiet, as_report, _trace_context(request))
        job.entry = Entry(self._bytes_of(fitting), time.monotonic() - fitting.priority, partial(self._start, job))
        self._jobs.add(job)  # before it enters, which may start it at once
        try:
            self._admission.enter(job.entry)
        except Exception:
            self._jobs.discard(job)
            raise

    def _bytes_of(self, request: GenerationRequest) -> int:
        """What a request will hold at most while it is worked on."""
        from plugin.serving.plan import plan_request

        planned = plan_request(self.config, self._architecture, request)
        return planned.cache_bytes + planned.working_bytes

    def _start(self, job: _Job) -> None:
        self._workers.submit(self._run, job)

    def _sweep_line(self) -> None:
        """Ends the requests in line that have been cancelled or are late."""
        for job in list(self._jobs):
            if job.ended or job.entry is None or job.entry.began is not None:
                continue
            try:
                job.check_alive()
            except Exception as error:
                if self._admission.withdraw(job.entry):
                    job.end({}, error)

    def _parse(self, request: Any) -> GenerationRequest:
        from plugin.request import parse_request

        values = {tensor.name(): _scalar(tensor) for tensor in request.inputs()}
        return parse_request(
            values, self.config.defaults, self.config.limits, secrets.randbelow(2**31), self.config.presets
        )

    def _run(self, job: _Job) -> None:
        """One request from its slot to its answer; nothing that happens here leaves it without one."""
        from plugin.denoising.generation import generate
        from plugin.serving.deadlines import shorten_line

        outputs: dict[str, Any] = {}
        failure = None
        began = time.perf_counter()
        try:
            job.check_alive()
            job.request = shorten_line(job.request, self._load_policy, self._admission.waiting)
            generation = generate(
                self.host,
                job.request,
                _JobEvents(job),
                max_sequence_length=self.config.max_sequence_length,
                preview_interval=self.config.preview_interval,
                arrived=job.arrived,
            )
            outputs = _final_outputs(job.request, generation)
        except BaseException as error:
            if Outcome.of(error) is Outcome.ERROR:
                pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
            failure = error.with_traceback(None)  # it would keep what the request held
        if failure is None:
            self._costs.observe(job.request, job.steps, time.perf_counter() - began)
        assert job.entry is not None
        self._admission.leave(job.entry)
        job.end(outputs, failure)

    def _hear_cancels(self) -> None:
        """The thread that asks Triton which streams have been cancelled: on a busy machine an answer takes
        milliseconds, which no step shall wait for."""
        while not self._closing.wait(_CANCEL_POLL_S):
            for job in list(self._jobs):
                job.hear_cancel()

    def _post(self, job: _Job) -> None:
        self._outbox.put(partial(self._try_to_send, job))

    def _empty_outbox(self) -> None:
        """The thread that sends every response, so that no step waits for Triton. It alone touches the metrics:
        changes of metrics from two threads at once have crashed the server (24.10)."""
        beat_at = time.monotonic()
        while True:
            with suppress(queue.Empty):
                work = self._outbox.get(timeout=_HEARTBEAT_S)
                if work is None:
                    return
                work()
            if time.monotonic() - beat_at >= _HEARTBEAT_S:
                beat_at = time.monotonic()
                self._sweep_line()
                self._fail_if_stuck()
                self._metrics.tell(self._set_gauges)
                for job in [each for each in list(self._jobs) if each.quiet]:
                    self._try_to_send(job)

    def _try_to_send(self, job: _Job) -> None:
        try:
            self.send(job)
        except pb_utils.TritonModelException as error:  # Triton did not take this one response
            job.cancelled = True
            self._answer_with_error(job, error)
        except BaseException as error:
            self._give_up(job, error)

    def send(self, job: _Job) -> None:
        """Sends what a job has ready: its end, a heartbeat, or its latest progress."""
        if job not in self._jobs:
            return  # its end overtook the progress that was queued before it
        if job.ended:
            job.respond(job.final_response(), final=True)
            self._jobs.remove(job)
            self._metrics.tell(partial(_Metrics.count_job, job=job))
            self._metrics.tell(partial(_Metrics.count_texts, texts=self.host.text_cache))
            self._metrics.tell(self._set_gauges)
            kinds = tuple(kind for kind, _ in job.steps)
            self._trace(job.trace_context, job.arrived, job.error, kinds, job.outputs.get("report"))
        elif job.quiet:
            job.respond(pb_utils.InferenceResponse(_tensors({"step": 0, "num_steps": 0})))
        elif progress := job.take_progress():
            job.respond(pb_utils.InferenceResponse(_tensors(progress)))

    def _count_refused(self, error: Exception, trace_context: str | None, arrived: float) -> None:
        self._metrics.tell(partial(_Metrics.count_request, outcome=Outcome.of(error).label))
        self._trace(trace_context, arrived, error)

    def _trace(
        self,
        context: str | None,
        arrived: float,
        error: BaseException | None,
        steps: tuple[str, ...] = (),
        report: str | None = None,
    ) -> None:
        """Exports the spans of a request that has ended, where Triton traces it and somebody wants them."""
        if self._spans is None or context is None:
            return
        from plugin.triton_model.tracing import Ended

        outcome, message = Outcome.of(error).label, None if error is None else message_of(error)
        read = None if report is None else json.loads(report)
        self._spans.add(Ended(context, self.name, arrived, outcome, steps, message, read))

    def _wanted_spans(self) -> Spans | None:
        from plugin.triton_model.tracing import Spans, TracingUnavailable

        try:
            return Spans.wanted_by(os.environ)
        except TracingUnavailable as error:  # a model without spans is better than none
            pb_utils.Logger.log_warn(f"{self.name}: {error}")
            return None

    def _set_gauges(self, metrics: _Metrics) -> None:
        metrics.set_gauges(self._admission, self._jobs)

    def _give_up(self, job: _Job, error: BaseException) -> None:
        """Takes the model out of service when its responses can no longer be trusted to go out.

        The job at hand is answered here, the others at their next step; each gets the reason.
        """
        self._failure = f"the model failed: {type(error).__name__}: {error}"
        pb_utils.Logger.log_error(f"{self.name}: {self._failure}")
        for each in list(self._jobs):
            each.failure = self._failure
        self._answer_with_error(job, Unavailable(self._failure))
        try:
            pb_utils.unload_model(self.name)  # readiness then tells; works where the server allows model control
        except Exception as refused:
            pb_utils.Logger.log_error(f"{self.name}: stays loaded and refuses all requests: {refused}")

    def _fail_if_stuck(self) -> None:
        """Takes the model out of service where a request has been at one operation for too long: nothing can end that,
        and it may hold up all others. All are answered here; `serve` loads the model again, as pings tell it to."""
        limit_s = self.config.stuck_after_s
        if self._failure or not limit_s or not any(job.busy_s > limit_s for job in list(self._jobs)):
            return
        self._stuck = True
        self._failure = f"the model failed: a request has been at one operation for more than {limit_s:g} s"
        pb_utils.Logger.log_error(f"{self.name}: {self._failure}")
        for job in list(self._jobs):
            job.failure = self._failure
            self._answer_with_error(job, Unavailable(self._failure))

    def _answer_with_error(self, job: _Job, error: Exception) -> None:
        if job not in self._jobs:
            return
        self._jobs.remove(job)
        self._metrics.tell(partial(_Metrics.count_request, outcome="error"))
        try:
            job.respond(_error_response(error, job.errors_as_report), final=True)
        except Exception as lost:
            pb_utils.Logger.log_error(f"{self.name}: a request could not be answered: {lost}")


class FrontModel:
    """The plain model: hands each call to `<name>_stream` and returns its last response.

    One call at a time per instance; the number of instances bounds the unary calls in flight.
    """

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Adds the tensors, so that a config.pbtxt says only what is the model's own."""
        return _with_tensors(config, OUTPUTS)

    def initialize(self, args: dict[str, str]) -> None:
        """Needs nothing but its own name."""
        self._stream_name = f"{args['model_name']}_stream"

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        # Everything in one thread: calls of one request from two threads have crashed the process (24.10).
        key = str(uuid.uuid4())
        # Copies: Triton's own input tensors cannot be sent on, their text arrives damaged (24.10).
        inputs = [pb_utils.Tensor(tensor.name(), tensor.as_numpy().copy()) for tensor in request.inputs()]
        last = None
        try:
            for response in self._request(
                inputs,
                {_KEY_PARAMETER: key, _QUIET_PARAMETER: True, ERROR_REPORT_PARAMETER: True},
                trace=request.trace(),
            ):
                if response.has_error() or response.output_tensors():
                    last = response
                if request.is_cancelled():  # told again at each heartbeat: which instance hears it is Triton's choice
                    for _ in self._request([], {_CANCEL_PARAMETER: key}):
                        pass
            return _plain_response(last)
        except pb_utils.TritonModelException as error:  # the stream model is not loaded
            return _error_response(Unavailable(str(error)))
        except Exception as error:
            return _error_response(error)

    def _request(self, inputs: list[Any], parameters: dict[str, Any], **trace: Any) -> Iterator[Any]:
        request = pb_utils.InferenceRequest(
            model_name=self._stream_name, inputs=inputs, requested_output_names=[], parameters=parameters, **trace
        )
        yield from request.exec(decoupled=True)


class BlockStackModel:
    """A block stack for engine triton: runs what Triton's dynamic batcher gathers in as few engine calls as it may.

    Its config.pbtxt has `max_batch_size`, `dynamic_batching`, the tensors of the family's block stack, and those
    parameters of a stream model that tell how to load a pipeline and which engine to run.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the transformer and builds its engine; an exception here is Triton's message for the failed load."""
        ask_for_huge_pages(os.environ)
        from plugin.denoising.host import load_pipeline, only_denoiser
        from plugin.engines import make_engine
        from plugin.engines.block_stack import BlockStack
        from plugin.families import family_of

        self.name: str = args["model_name"]
        if not json.loads(args["model_config"])["max_batch_size"]:
            raise ValueError(f"max_batch_size of {self.name} is 0, must be at least 1: every input has a batch axis")
        config = _configure(args)
        pipe = load_pipeline(config.source, denoisers_only=True)
        family = family_of(only_denoiser(pipe, self.name))
        self._device = config.source.device
        self._stack = BlockStack(family, make_engine(config.engine, family, threads=config.engine_threads or None))
        if config.engine != "torch":
            family.release_blocks()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request, in order."""
        import torch

        with torch.no_grad():
            return [self._respond(result) for result in self._stack.run([self._read(each) for each in requests])]

    def _read(self, request: Any) -> BlockInputs:
        from torch.utils.dlpack import from_dlpack

        tensors = {tensor.name(): from_dlpack(tensor.to_dlpack()) for tensor in request.inputs()}
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _respond(self, result: torch.Tensor | EngineError) -> Any:
        if isinstance(result, Exception):
            pb_utils.Logger.log_error(f"{self.name}: {result}")
            return pb_utils.InferenceResponse(error=_named_error("INTERNAL", str(result)))
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(BLOCK_STACK_OUTPUT, result)])


def _call_model(model: str, inputs: BlockInputs) -> torch.Tensor:
    """A `plugin.engines.triton_engine.ModelCall` through Triton; tensors go in and come out without a copy of ours."""
    from torch.utils.dlpack import from_dlpack

    from plugin.engines.base import EngineError
    from plugin.engines.triton_engine import EngineUnavailable

    device = inputs["hidden_states"].device
    memory = pb_utils.TRITONSERVER_MEMORY_GPU if device.type == "cuda" else pb_utils.TRITONSERVER_MEMORY_CPU
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor.from_dlpack(name, tensor.detach()) for name, tensor in inputs.items()],
        requested_output_names=[BLOCK_STACK_OUTPUT],
        preferred_memory=pb_utils.PreferredMemory(memory, device.index or 0),
    )
    try:
        response = request.exec()
        failure = response.error().message() if response.has_error() else None
    except pb_utils.TritonModelException as error:
        failure = str(error)
    if failure is not None:
        reason = failure.removeprefix(f"Model {model} - Error when running inference: ")
        raise (EngineUnavailable if _not_ready(reason) else EngineError)(reason)
    return from_dlpack(response.output_tensors()[0].to_dlpack())


def _not_ready(message: str) -> bool:
    """Whether another model's error says that it is not loaded. Only the text tells: between models every code becomes
    INTERNAL. To ask Triton whether the model is ready while the server stops has crashed the server and left it hanging
    (24.10)."""
    return message.rstrip(".").endswith("not ready")


def _pack_settings(config: ModelConfig, host: Any) -> PackSettings:
    """How full steps are packed: as configured, or up to the knee of the engine at the model's own size."""
    from plugin.engines.batch_limit import calibrated_rows
    from plugin.engines.packer import PackSettings
    from plugin.serving.plan import architecture_of_pipe, axis_sizes, example_request, feature_of

    settings = partial(PackSettings, max_wait_s=config.max_batch_wait_ms / 1000, lanes=config.engine_lanes)
    if config.fixed_batch:
        return settings(config.fixed_batch, fixed_rows=config.fixed_batch)
    if config.max_batch:
        return settings(config.max_batch)
    architecture, request = architecture_of_pipe(host.pipe), example_request(config)
    axes = axis_sizes(config, architecture, request)
    rows = calibrated_rows(
        host.lane_engine, host.family, axes, config.engine_threads or None, lanes=config.engine_lanes
    )
    tokens, _, _ = feature_of(config, architecture, request)
    return settings(rows, tokens)


def _own_labels(args: dict[str, str]) -> dict[str, str]:
    """Labels that tell an instance from the first one, and a version from version 1: processes that are there at once
    cannot share a metric."""
    labels = {}
    if instance := label_of(args):
        labels["instance"] = instance
    if args["model_version"] != "1":
        labels["version"] = args["model_version"]
    return labels


def _free_bytes(device: str) -> int:
    """The share of the free memory that requests may take: the rest is for what a model needs on the way."""
    import torch

    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return free * 4 // 5
    import psutil

    return psutil.virtual_memory().available // 2


def _configure(args: dict[str, str]) -> ModelConfig:
    """The settings of a model that runs torch, from what Triton tells it; torch's threads are set by them."""
    import torch

    from plugin.config import ModelConfig

    model_config = json.loads(args["model_config"])
    parameters = {name: value["string_value"] for name, value in model_config["parameters"].items()}
    folder = Path(args["model_repository"])
    config = ModelConfig.from_parameters(parameters, folder, os.environ, model=args["model_name"])
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    return replace(config, source=replace(config.source, device=device_of(args, config.source.device)))


def _with_tensors(config: Any, outputs: dict[str, tuple[str, list[int]]]) -> Any:
    config.set_max_batch_size(0)
    for name, data_type in INPUTS.items():
        config.add_input({"name": name, "data_type": data_type, "dims": [1], "optional": True})
    for name, (data_type, dims) in outputs.items():
        config.add_output({"name": name, "data_type": data_type, "dims": dims})
    return config


@dataclass(eq=False)
class _Job:
    """One accepted request. Its worker thread writes it, the sender thread reads it."""

    key: str | None
    request: GenerationRequest
    _sender: Any  # None once the final response is sent: to ask it anything after that crashes the server
    post: Callable[[_Job], None]  # has the sender thread look at the job
    arrived: float  # time.perf_counter()
    quiet: bool
    errors_as_report: bool
    trace_context: str | None  # of Triton's span, where it traces the request
    entry: Entry | None = None
    cancelled: bool = False
    failure: str | None = None  # why the model failed, once it has
    ended: bool = False
    error: BaseException | None = None
    outputs: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[str, float]] = field(default_factory=list)  # kind and seconds of each step
    engine_batches: list[int] = field(default_factory=list)
    cache_bytes: int = 0
    _alive_at: float = field(default_factory=time.monotonic)
    _progress: dict[str, Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sender_lock: threading.Lock = field(default_factory=threading.Lock)

    def check_alive(self, step: int = 0, num_steps: int = 0) -> None:
        """Raises where the request has been cancelled or is late. Called at each step, and while it waits."""
        self._alive_at = time.monotonic()
        from plugin.errors import Cancelled, DeadlinePassed

        where = f"after {step} of {num_steps} steps" if num_steps else "before it began"
        now = time.perf_counter()
        deadline_ms = self.request.deadline_ms
        if deadline_ms is not None and now - self.arrived > deadline_ms / 1000:
            raise DeadlinePassed(f"DEADLINE: deadline_ms of {deadline_ms} passed {where}")
        if self.failure:
            raise Unavailable(self.failure)
        if self.cancelled or self._sender is None:
            raise Cancelled(f"cancelled {where}")

    @property
    def busy_s(self) -> float:
        """How long the request has been at one operation: an engine call, the text encoder, the autoencoder."""
        return 0.0 if self.ended else time.monotonic() - self._alive_at

    def hear_cancel(self) -> None:
        """Asks Triton whether the client of a stream is gone; of a front's client the front tells."""
        if not self.quiet:
            with self._sender_lock:
                self.cancelled = self.cancelled or (self._sender is not None and self._sender.is_cancelled())

    def respond(self, response: Any, final: bool = False) -> None:
        """Sends a response unless the final one has been sent."""
        with self._sender_lock:
            if self._sender is None:
                return
            self._sender.send(response, flags=_FINAL if final else 0)
            if final:
                self._sender = None

    def tell(self, progress: dict[str, Any]) -> None:
        """Leaves the latest progress for the sender; what it has not sent yet is replaced."""
        with self._lock:
            unsent, self._progress = self._progress, progress
            if unsent and progress["preview"] is None:
                progress["preview"] = unsent["preview"]
        if not unsent:
            self.post(self)

    def take_progress(self) -> dict[str, Any] | None:
        """The progress to send, once."""
        with self._lock:
            progress, self._progress = self._progress, None
        return progress

    @property
    def outcome(self) -> str:
        """The outcome label of an ended job."""
        return Outcome.of(self.error).label

    def end(self, outputs: dict[str, Any], error: BaseException | None) -> None:
        """Ends with a result, or with an error."""
        self.outputs, self.error = outputs, error
        self.ended = True
        self.post(self)

    def final_response(self) -> Any:
        """The last response."""
        if self.error is not None:
            return _error_response(self.error, self.errors_as_report)
        return pb_utils.InferenceResponse(_tensors(self.outputs))


class _JobEvents:
    """What a running generation tells a job and asks of it: a `RunEvents`, by its methods alone."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def check(self, step: int, num_steps: int) -> None:
        self._job.check_alive(step, num_steps)

    def progress(self, step: int, num_steps: int, preview: Pixels | None) -> None:
        if not self._job.quiet:
            self._job.tell({"step": step, "num_steps": num_steps, "preview": preview})

    def step_done(self, kind: StepKind, seconds: float) -> None:
        self._job.steps.append((kind.value, seconds))

    def engine_called(self, batch_size: int) -> None:
        self._job.engine_batches.append(batch_size)

    def cache_changed(self, delta_bytes: int) -> None:
        self._job.cache_bytes += delta_bytes


class _MetricsInTurn:
    """The metrics of a model, once those of the instance before it are gone.

    While a model is loaded again, the new instance and the old one are there at once. Metrics of one name and the same
    labels are one object in the server, which goes with the first of its owners; the other would write into freed
    memory (24.10). So the owner holds a lock that the processes of one server share, and who comes meanwhile keeps what
    it has to tell.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        from filelock import FileLock

        self._labels = labels
        self._lock = FileLock(lock_file(os.getppid(), "-".join(labels.values())))
        self._metrics: _Metrics | None = None
        self._untold: deque[Callable[[_Metrics], None]] = deque(maxlen=_MOST_UNTOLD)
        self.tell(lambda _: None)

    def tell(self, change: Callable[[_Metrics], None]) -> None:
        """Applies a change to the metrics, now or when their turn has come."""
        from filelock import Timeout

        self._untold.append(change)
        if self._metrics is None:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return
            self._metrics = _Metrics(self._labels)
        while self._untold:
            self._untold.popleft()(self._metrics)

    def give_up(self) -> None:
        """Deletes the metrics, and lets the next instance have them."""
        self._metrics = None
        self._untold.clear()
        gc.collect()
        self._lock.release()


class _Metrics:
    """The plugin's metrics on Triton's own port. A change costs a round trip to the server process, so what steps
    leave behind is reported when a request ends, from the sender thread."""

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        self._families: list[Any] = []  # a family must outlive its metrics
        self._told: dict[Any, int] = {}  # what each gauge was last set to, and how many texts have been counted
        kinds = ("full", "forecast")
        steps = self._family("taylorseer_steps_total", "Denoising steps done", "COUNTER")
        self._steps = {kind: self._metric(steps, kind=kind) for kind in kinds}
        seconds = self._family("taylorseer_step_seconds", "Seconds of a denoising step", "HISTOGRAM")
        self._seconds = {kind: self._metric(seconds, _STEP_BUCKETS_S, kind=kind) for kind in kinds}
        requests = self._family("taylorseer_requests_total", "Requests by their outcome", "COUNTER")
        self._requests = {
            outcome: self._metric(requests, outcome=outcome) for outcome in (each.label for each in Outcome)
        }
        stretched = self._family("taylorseer_stretched_total", "Requests whose interval was stretched", "COUNTER")
        self._stretched = {reason: self._metric(stretched, reason=reason) for reason in ("deadline", "load")}
        texts = self._family("taylorseer_texts_total", "Encodings of prompts, by whether they were known", "COUNTER")
        self._texts = {result: self._metric(texts, result=result) for result in ("hit", "miss")}
        batch = self._family("taylorseer_engine_batch_size", "Requests in one engine call", "HISTOGRAM")
        self._batch = self._metric(batch, _BATCH_BUCKETS)
        self._in_flight = self._metric(
            self._family("taylorseer_requests_in_flight", "Requests being worked on", "GAUGE")
        )
        self._waiting = self._metric(self._family("taylorseer_requests_waiting", "Requests in line", "GAUGE"))
        self._cache_bytes = self._metric(self._family("taylorseer_cache_bytes", "Bytes of all anchors", "GAUGE"))
        self._reserved = self._metric(
            self._family("taylorseer_reserved_bytes", "Bytes set aside for the requests being worked on", "GAUGE")
        )
        self._budget = self._metric(
            self._family("taylorseer_budget_bytes", "Bytes that may be set aside at most", "GAUGE")
        )
        self._request_seconds = self._metric(
            self._family("taylorseer_request_seconds", "Seconds from arrival to picture", "HISTOGRAM"),
            _REQUEST_BUCKETS_S,
        )

    def set_gauges(self, admission: Admission, jobs: set[_Job]) -> None:
        """Reports who is in flight, who waits, and what the caches hold; what has not changed costs nothing."""
        values = {
            self._in_flight: admission.in_flight,
            self._waiting: admission.waiting,
            self._cache_bytes: sum(job.cache_bytes for job in list(jobs)),
            self._reserved: admission.held_bytes,
            self._budget: admission.budget_bytes,
        }
        for gauge, value in values.items():
            if self._told.get(gauge) != value:
                self._told[gauge] = value
                gauge.set(value)

    def count_request(self, outcome: str) -> None:
        """Counts a request that has ended."""
        self._requests[outcome].increment(1)

    def count_job(self, job: _Job) -> None:
        """Counts all that an ended job has done."""
        self.count_request(job.outcome)
        if job.outcome == "ok":
            self._request_seconds.observe(time.perf_counter() - job.arrived)
        if job.request.stretched_by is not None:
            self._stretched[job.request.stretched_by.value].increment(1)
        for kind in self._steps:
            self._steps[kind].increment(sum(each == kind for each, _ in job.steps))
        for kind, seconds in job.steps:
            self._seconds[kind].observe(seconds)
        for batch_size in job.engine_batches:
            self._batch.observe(batch_size)

    def count_texts(self, texts: TextCache) -> None:
        """Counts the prompts that have been encoded, or not, since the last time."""
        for result, total in (("hit", texts.hits), ("miss", texts.misses)):
            new = total - self._told.get(result, 0)
            self._told[result] = total
            self._texts[result].increment(new)

    def _family(self, name: str, description: str, kind: str) -> Any:
        family = pb_utils.MetricFamily(name=name, description=description, kind=getattr(pb_utils.MetricFamily, kind))
        self._families.append(family)
        return family

    def _metric(self, family: Any, buckets: Sequence[float] = (), **labels: str) -> Any:
        return family.Metric(labels={**self._labels, **labels}, **({"buckets": list(buckets)} if buckets else {}))


def _error_response(error: BaseException, as_report: bool = False) -> Any:
    """The response that carries an error, which calls between models and streams rob of its code, or one whose report
    has both code and message."""
    code, message = Outcome.of(error).code, message_of(error)
    assert code is not None
    if as_report:
        report = json.dumps({"error": {"code": code, "message": message}})
        return pb_utils.InferenceResponse(_tensors({"report": report, "step": 0, "num_steps": 0}))
    return pb_utils.InferenceResponse(error=_named_error(code, message))


def _trace_context(request: Any) -> str | None:
    """The W3C headers of Triton's span of a request, in JSON; None where it is not traced in OpenTelemetry's mode."""
    return request.trace().get_context()


def _plain_response(response: Any) -> Any:
    """What the front answers, from the last response of the stream model."""
    if response.has_error():
        message = response.error().message()
        if _not_ready(message):
            return _error_response(Unavailable(message))
        return pb_utils.InferenceResponse(error=response.error())
    tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
    report = json.loads(tensors["report"].as_numpy()[0])
    if "error" in report:
        return pb_utils.InferenceResponse(error=_named_error(**report["error"]))
    picture = tensors.get("b64_json") or tensors["image"]
    return pb_utils.InferenceResponse([picture, tensors["report"]])


def _named_error(code: str, message: str) -> Any:
    return pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))


def _scalar(tensor: Any) -> Any:
    """The one value of an input of shape [1]; text stays bytes."""
    from plugin.request import InvalidRequest

    values = tensor.as_numpy()
    if values.shape != (1,):
        raise InvalidRequest(f"{tensor.name()} has shape {list(values.shape)}, must be [1]")
    return values[0] if values.dtype == object else values[0].item()


def _final_outputs(request: GenerationRequest, generation: Generation) -> dict[str, Any]:
    from plugin.denoising.media import encode
    from plugin.request import ResponseFormat

    num_steps = generation.report.num_steps
    outputs: dict[str, Any] = {"report": generation.report.to_json(), "step": num_steps, "num_steps": num_steps}
    if request.response_format is ResponseFormat.RAW:
        return outputs | {"image": generation.image}
    return outputs | {"b64_json": base64.b64encode(encode(generation.image, request.fps))}


def _tensors(outputs: dict[str, Any]) -> list[Any]:
    """The tensors of a response: every output of the contract, empty where there is nothing to say."""
    image, preview, b64_json = outputs.get("image"), outputs.get("preview"), outputs.get("b64_json")
    arrays = {
        "image": np.zeros((0, 0, 0, 3), np.uint8) if image is None else image,
        "report": np.array([outputs.get("report", "").encode()], dtype=np.object_),
        "step": np.array([outputs["step"]], dtype=np.int32),
        "num_steps": np.array([outputs["num_steps"]], dtype=np.int32),
        "preview": np.zeros((0, 0, 3), np.uint8) if preview is None else preview,
    }
    if b64_json is not None:
        arrays["b64_json"] = np.array([b64_json], dtype=np.object_)
    return [pb_utils.Tensor(name, array) for name, array in arrays.items()]
