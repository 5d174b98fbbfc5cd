"""What a loaded stream model does with its requests: takes them in, runs each in a thread, has it answered."""

from __future__ import annotations

import base64
import secrets
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from plugin.config import ModelConfig
from plugin.denoising.generation import Generation, generate
from plugin.denoising.media import encode
from plugin.denoising.picture_arguments import prepare_tasks
from plugin.errors import Outcome, Unavailable
from plugin.request import GenerationRequest, ResponseFormat, parse_request
from plugin.serving.admission import Admission
from plugin.serving.costs import CostModel
from plugin.serving.pacing import LoadPolicy, meet_deadline, shorten_queue
from plugin.serving.plan import architecture_of_pipe, plan_request
from plugin.strict_json import to_json
from plugin.tensors import CANCEL_PARAMETER, DESCRIBE_PARAMETER, PING_PARAMETER
from plugin.triton_model.answers import Answers
from plugin.triton_model.backend import Request, ResponseSender
from plugin.triton_model.inputs import file_bytes_of, values_of
from plugin.triton_model.intake import Intake
from plugin.triton_model.job import Job, Manner
from plugin.triton_model.residency import Residency
from plugin.triton_model.responses import FINAL, asked_format, error_response, parameters_of
from plugin.triton_model.unknown import warnings_of


class Runner:
    """Accepts requests, and runs each in a thread.

    Args:
        name: of the model.
        config: its settings.
        residency: has its pipeline and engine.
        admission: which requests run.
        answers: what sends their responses.
    """

    def __init__(
        self, name: str, config: ModelConfig, residency: Residency, admission: Admission, answers: Answers
    ) -> None:
        self._config = config
        self._residency = residency
        self._admission = admission
        self._answers = answers
        with residency.in_use(lambda: None) as host:
            self._architecture = architecture_of_pipe(host.pipe)
            prepare_tasks(host, self._architecture.tasks)
        self._costs = CostModel()
        self._load_policy = LoadPolicy(config.stretch_from_waiting, config.max_waiting, config.max_cache_interval)
        self._workers = ThreadPoolExecutor(config.max_in_flight, thread_name_prefix=name)
        self._intake = Intake(name)

    def take(self, requests: Sequence[Request]) -> None:
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

    def close(self) -> None:
        """Ends the requests in flight and the threads."""
        self._intake.close()
        self._answers.cancel()
        self._answers.sweep_queue()
        self._workers.shutdown(wait=not self._answers.stuck)

    def _control(self, parameters: Mapping[str, Any], sender: ResponseSender) -> bool:
        """Answers a cancel or a ping; False for a request to make something."""
        if CANCEL_PARAMETER in parameters:
            self._answers.cancel(parameters[CANCEL_PARAMETER])
            sender.send(flags=FINAL)
            return True
        if self._answers.failure:
            raise Unavailable(self._answers.failure)
        if PING_PARAMETER in parameters:
            self._answers.pong(sender)
            return True
        if DESCRIBE_PARAMETER in parameters:
            self._answers.tell(sender, to_json(self._description()))
            return True
        return False

    def _description(self) -> dict[str, Any]:
        tasks = [task.describe(self._config.limits.max_files) for task in self._architecture.tasks]
        return {"pipeline": self._architecture.pipeline, "tasks": tasks, "presets": [*self._config.presets]}

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
        self._answers.refuse(error, manner.trace_context, arrived)

    def _accept(self, values: Mapping[str, Any], manner: Manner, sender: ResponseSender, arrived: float) -> None:
        answers, job = self._answers, self._job(self._parse(values), manner, sender, arrived)
        answers.jobs.add(job)  # before it enters, which may start it at once
        try:
            self._admission.enter(job)
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
            self._admission.expected_wait_s() + self._residency.expected_load_s,
            self._config.max_cache_interval,
            alone=not self._admission.in_flight,
            added=int(self._architecture.experts is not None),
        )
        planned = plan_request(self._config, self._architecture, request)
        return Job(
            request,
            planned.cache_bytes + planned.working_bytes,
            manner,
            arrived,
            sender,
            on_start=lambda job: self._workers.submit(self._run, job),
            on_news=self._answers.post,
        )

    def _parse(self, values: Mapping[str, Any]) -> GenerationRequest:
        config, seed = self._config, secrets.randbelow(2**31)
        return parse_request(values, config.defaults, config.limits, seed, config.presets, self._architecture.tasks)

    def _run(self, job: Job) -> None:
        """One request from its slot to its answer; nothing that happens here leaves it without one."""
        outputs: dict[str, Any] = {}
        failure = None
        began = 0.0
        try:
            job.check()
            with self._residency.in_use(job.check_wanted) as host:
                began = job.begin()
                job.request = shorten_queue(job.request, self._load_policy, self._admission.waiting)
                generation = generate(
                    host,
                    job.request,
                    job,
                    max_sequence_length=self._config.max_sequence_length,
                    preview_interval=self._config.preview_interval,
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
        self._admission.leave(job)
        job.end(outputs, failure)


def _outputs(request: GenerationRequest, generation: Generation) -> dict[str, Any]:
    """The tensors of a result, by name."""
    num_steps = generation.report.num_steps
    outputs: dict[str, Any] = {"report": generation.report.to_json(), "step": num_steps, "num_steps": num_steps}
    if request.response_format is ResponseFormat.RAW:
        return outputs | {"image": generation.image}
    return outputs | {"b64_json": base64.b64encode(encode(generation.image, request.fps))}
