"""The decoupled model, `<name>_stream`: it owns the pipeline, and runs each request in a thread."""

from __future__ import annotations

import base64
import gc
import os
import secrets
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from plugin.denoising.media import encode
from plugin.errors import Outcome, Unavailable
from plugin.request import GenerationRequest, ResponseFormat, parse_request
from plugin.serving.admission import Admission
from plugin.serving.costs import CostModel
from plugin.serving.pacing import LoadPolicy, meet_deadline, shorten_queue
from plugin.serving.plan import architecture_of_pipe, plan_request
from plugin.strict_json import to_json
from plugin.tensors import CANCEL_PARAMETER, DESCRIBE_PARAMETER, PING_PARAMETER, STREAM_OUTPUTS
from plugin.triton_model.answers import Answers
from plugin.triton_model.backend import Request, ResponseSender, TritonConfig
from plugin.triton_model.inputs import file_bytes_of, values_of
from plugin.triton_model.intake import Intake
from plugin.triton_model.job import Job, Manner
from plugin.triton_model.reporting import Reporting
from plugin.triton_model.responses import FINAL, asked_format, error_response, parameters_of, with_tensors
from plugin.triton_model.settings import budget_bytes, configure, own_labels
from plugin.triton_model.unknown import warnings_of

if TYPE_CHECKING:
    from plugin.denoising.generation import Generation
    from plugin.denoising.host import PipelineHost


class StreamModel:
    """The decoupled model: loads the pipeline once, runs each request in a thread, streams its progress.

    A subclass in a model.py may override `load_host` to serve a pipeline that is made rather than loaded.

    Attributes:
        name: of the model.
        config: its settings.
        host: its pipeline and engine.
        admission: which requests run.
        answers: which have not been answered.
    """

    @staticmethod
    def auto_complete_config(config: TritonConfig) -> TritonConfig:
        """Adds the tensors, so that a config.pbtxt says only what is the model's own."""
        config.set_model_transaction_policy({"decoupled": True})
        return with_tensors(config, STREAM_OUTPUTS)

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the pipeline and builds its engine; an exception here is Triton's message for the failed load."""
        self.name: str = args["model_name"]
        self.config = configure(args)
        # Not at the head: `auto_complete_config` is called in a process of its own first, which would load diffusers,
        # several seconds of work, for nothing.
        from plugin.denoising.generation import generate
        from plugin.denoising.picture_arguments import prepare_tasks

        self._generate = generate
        self.host = self.load_host()
        self._architecture = architecture_of_pipe(self.host.pipe)
        prepare_tasks(self.host, self._architecture.tasks)
        self._costs = CostModel()
        config, budget = self.config, budget_bytes(self.config, args)
        self._load_policy = LoadPolicy(config.stretch_from_waiting, config.max_waiting, config.max_cache_interval)
        self.admission = Admission(config.max_in_flight, config.max_waiting, budget)
        pb_utils.Logger.log_info(f"{self.name}: {budget / 2**20:,.0f} MiB for requests in flight")
        self._workers = ThreadPoolExecutor(config.max_in_flight, thread_name_prefix=self.name)
        self._intake = Intake(self.name)
        self.answers = Answers(
            self.name,
            self.admission,
            Reporting(self.name, own_labels(args), self.admission, self.host.text_cache),
            self.send,
            config.stuck_after_s,
        )
        self.answers.start()
        # The loaded model is half a million objects that never die; a full collection that walks them stops all threads
        # for a third of a second. `freeze` hides them from the collector. The second `collect` resets its count of
        # survivors: a full collection starts only after a quarter of that count is new, which half a million would put
        # off for too long.
        gc.collect()
        gc.freeze()
        gc.collect()

    def load_host(self) -> PipelineHost:
        """The host of the configured pipeline."""
        from plugin.triton_model.loading import load_host  # late for the same reason

        return load_host(self.config, self.name)

    def execute(self, requests: Sequence[Request]) -> None:
        """Takes the requests over and returns at once; each is answered through its own response sender."""
        for request in requests:
            sender, arrived = request.get_response_sender(), time.perf_counter()
            manner = Manner()
            try:
                parameters = parameters_of(request)
                manner = Manner.of(parameters, request.trace())
                if not self._control(parameters, sender):
                    self._take_in(request, manner, sender, arrived)
            except Exception as error:
                self._refuse(error, manner, sender, arrived)

    def finalize(self) -> None:
        """Ends the requests in flight and the threads."""
        answers = self.answers
        self._intake.close()
        answers.cancel()
        answers.sweep_queue()
        self._workers.shutdown(wait=not answers.stuck)
        answers.close()
        # Triton's objects crash the process if they outlive the model.
        gc.unfreeze()
        del self.answers, self._workers
        gc.collect()
        # Not by Python's way out: it takes half a second with torch, and would wait for a thread that is stuck forever.
        os._exit(0)

    def send(self, job: Job) -> None:
        """Sends what a job has ready."""
        self.answers.send_news(job)

    def _control(self, parameters: Mapping[str, Any], sender: ResponseSender) -> bool:
        """Answers a cancel or a ping; False for a request to make something."""
        if CANCEL_PARAMETER in parameters:
            self.answers.cancel(parameters[CANCEL_PARAMETER])
            sender.send(flags=FINAL)
            return True
        if self.answers.failure:
            raise Unavailable(self.answers.failure)
        if PING_PARAMETER in parameters:
            self.answers.pong(sender)
            return True
        if DESCRIBE_PARAMETER in parameters:
            self.answers.tell(sender, to_json(self._description()))
            return True
        return False

    def _description(self) -> dict[str, Any]:
        tasks = [task.describe(self.config.limits.max_files) for task in self._architecture.tasks]
        return {"pipeline": self._architecture.pipeline, "tasks": tasks}

    def _take_in(self, request: Request, manner: Manner, sender: ResponseSender, arrived: float) -> None:
        """Accepts a request, in the intake's thread where it brings files."""
        values = values_of(request)
        values |= asked_format(values.get("response_format"), request.requested_output_names())
        if nbytes := file_bytes_of(values):
            self._intake.submit(nbytes, lambda: self._accept_or_refuse(values, manner, sender, arrived))
        else:
            self._accept(values, manner, sender, arrived)

    def _accept_or_refuse(
        self, values: Mapping[str, Any], manner: Manner, sender: ResponseSender, arrived: float
    ) -> None:
        try:
            self._accept(values, manner, sender, arrived)
        except Exception as error:
            self._refuse(error, manner, sender, arrived)

    def _refuse(self, error: Exception, manner: Manner, sender: ResponseSender, arrived: float) -> None:
        sender.send(error_response(error, manner.errors_as_report))
        sender.send(flags=FINAL)
        self.answers.refuse(error, manner.trace_context, arrived)

    def _accept(self, values: Mapping[str, Any], manner: Manner, sender: ResponseSender, arrived: float) -> None:
        answers, job = self.answers, self._job(self._parse(values), manner, sender, arrived)
        answers.jobs.add(job)  # before it enters, which may start it at once
        try:
            self.admission.enter(job)
        except Exception:
            answers.jobs.discard(job)
            raise
        if manner.quiet or manner.heartbeats:
            answers.post(job)  # the first heartbeat

    def _job(self, request: GenerationRequest, manner: Manner, sender: ResponseSender, arrived: float) -> Job:
        """The job of a request, with the interval that meets its deadline, and what it will hold at most."""
        request = meet_deadline(
            request,
            self._costs,
            self.admission.expected_wait_s(),
            self.config.max_cache_interval,
            alone=not self.admission.in_flight,
            added=int(self._architecture.experts is not None),
        )
        planned = plan_request(self.config, self._architecture, request)
        return Job(
            request,
            planned.cache_bytes + planned.working_bytes,
            manner,
            arrived,
            sender,
            on_start=lambda job: self._workers.submit(self._run, job),
            on_news=self.answers.post,
        )

    def _parse(self, values: Mapping[str, Any]) -> GenerationRequest:
        config, seed = self.config, secrets.randbelow(2**31)
        return parse_request(values, config.defaults, config.limits, seed, config.presets, self._architecture.tasks)

    def _run(self, job: Job) -> None:
        """One request from its slot to its answer; nothing that happens here leaves it without one."""
        outputs: dict[str, Any] = {}
        failure = None
        began = time.perf_counter()
        try:
            job.check()
            job.request = shorten_queue(job.request, self._load_policy, self.admission.waiting)
            generation = self._generate(
                self.host,
                job.request,
                job,
                max_sequence_length=self.config.max_sequence_length,
                preview_interval=self.config.preview_interval,
                arrived=job.arrived,
                notes=warnings_of(job.manner.unknown),
            )
            outputs = _outputs(job.request, generation)
        except BaseException as error:
            if Outcome.of(error) is Outcome.ERROR:
                pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
            failure = error.with_traceback(None)  # it would keep what the request held
        if failure is None:
            self._costs.observe(job.request, job.steps, time.perf_counter() - began)
        self.admission.leave(job)
        job.end(outputs, failure)


def _outputs(request: GenerationRequest, generation: Generation) -> dict[str, Any]:
    """The tensors of a result, by name."""
    num_steps = generation.report.num_steps
    outputs: dict[str, Any] = {"report": generation.report.to_json(), "step": num_steps, "num_steps": num_steps}
    if request.response_format is ResponseFormat.RAW:
        return outputs | {"image": generation.image}
    return outputs | {"b64_json": base64.b64encode(encode(generation.image, request.fps))}
