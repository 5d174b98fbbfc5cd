"""The decoupled model, `<name>_stream`, as Triton calls it; what it does with requests is in `runner`."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import triton_python_backend_utils as pb_utils

from plugin.serving.admission import Admission
from plugin.tensors import STREAM_OUTPUTS
from plugin.triton_model.backend import Request, TritonConfig
from plugin.triton_model.responses import with_tensors

if TYPE_CHECKING:
    from plugin.denoising.host import PipelineHost
    from plugin.triton_model.job import Job


class StreamModel:
    """The decoupled model: loads the pipeline once, runs each request in a thread, streams its progress.

    A subclass in a model.py may override `load_host`, to serve a pipeline that is made rather than loaded or to change
    `config` before anything is loaded by it.

    Attributes:
        name: of the model.
        config: its settings.
        host: its pipeline and engine; None while they are not in memory (parameter unload_after_s).
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
        # Not at the head: `auto_complete_config` is called in a process of its own first, which would load torch and
        # diffusers, several seconds of work, for nothing.
        from plugin.triton_model.answers import Answers
        from plugin.triton_model.reporting import Reporting
        from plugin.triton_model.residency import Residency
        from plugin.triton_model.runner import Runner
        from plugin.triton_model.settings import budget_bytes, configure, own_labels

        self.name: str = args["model_name"]
        self.config = configure(args)
        self._residency = residency = Residency(self.name, self.load_host)
        config = self.config  # which `load_host` may have changed
        with residency.in_use(lambda: None) as host:
            budget = budget_bytes(config, args, host.idle_bytes)
        self.admission = Admission(config.max_in_flight, config.max_waiting, budget)
        pb_utils.Logger.log_info(f"{self.name}: {budget / 2**20:,.0f} MiB for requests in flight")
        reporting = Reporting(self.name, own_labels(args), self.admission, residency)
        self.answers = Answers(
            self.name, self.admission, reporting, self.send, config.stuck_after_s, lambda: residency.failure
        )
        self._runner = Runner(self.name, config, residency, self.admission, self.answers)
        self.answers.start()
        residency.start(config.unload_after_s, config.source.device)

    @property
    def host(self) -> PipelineHost | None:
        """See above. What keeps it keeps its memory."""
        return self._residency.host

    def load_host(self) -> PipelineHost:
        """The host of the configured pipeline; called again whenever the model comes back into memory."""
        from plugin.triton_model.loading import load_host  # late for the same reason

        return load_host(self.config, self.name)

    def execute(self, requests: Sequence[Request]) -> None:
        """Takes the requests over and returns at once; each is answered through its own response sender."""
        self._runner.take(requests)

    def finalize(self) -> None:
        """Ends the requests in flight and the threads."""
        self._runner.close()
        self.answers.close()
        self._residency.close()
        # Triton's objects crash the process if they outlive the model.
        gc.unfreeze()
        del self.answers, self._runner, self._residency
        gc.collect()
        # Not by Python's way out: it takes half a second with torch, and would wait for a thread that is stuck forever.
        os._exit(0)

    def send(self, job: Job) -> None:
        """Sends what a job has ready."""
        self.answers.send_news(job)
