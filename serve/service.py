"""The one way from a protocol to a model: choose who answers, hand the work over, count how it went.

Protocols turn bytes into jobs and jobs into bytes. What holds for every request, whatever protocol it came by, is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgesmith.errors import UnsupportedError, UsageError
from serve.config import Limits, ServerConfig
from serve.drift.monitor import DriftMonitor
from serve.errors import ModelNotFoundError, NotReadyError, RequestError, describe_failure
from serve.metrics import Metrics
from serve.models.graph_model import GraphModel
from serve.models.job import GenerationJob, Job
from serve.models.repository import Repository
from serve.models.text_model import TextModel
from serve.traffic import Traffic
from serve.traffic.outcome import outcome_of
from serve.verdicts import read_verdicts

__all__ = ["Service"]


class Service:
    """A server's models behind one door. All methods are for the loop's thread.

    Args:
        config: What the server was told.
        repository: The models.
        metrics: Counts every request.
        traffic: Shares requests among versions and compares them.

    Attributes:
        drift: Of each version whose artifact has a reference, what compares its requests with that.
        is_draining: The server was told to stop.
    """

    def __init__(
        self,
        config: ServerConfig,
        repository: Repository,
        metrics: Metrics,
        traffic: Traffic,
    ) -> None:
        self.config = config
        self.repository = repository
        self.metrics = metrics
        self.traffic = traffic
        self.drift: dict[tuple[str, str], DriftMonitor] = {}
        self.is_draining = False

    @property
    def limits(self) -> Limits:
        """The most that one client may ask for."""
        return self.config.limits

    def model(self, name: str, version: str | None = None) -> GraphModel | TextModel:
        """Look a model up.

        Raises:
            ModelNotFoundError: There is none of that name or version.
            NotReadyError: It is being loaded or unloaded, or has failed.
        """
        return self.repository.get(name, version)

    def infer(
        self,
        name: str,
        version: str | None,
        job: Job,
        *,
        protocol: str,
        key: str | None = None,
        request_id: str = "",
    ) -> GraphModel:
        """Run a job on a graph.

        Args:
            name: The model.
            version: None lets traffic's shares decide, or takes the newest.
            job: Its `done` is called once, later, on the loop's thread.
            protocol: What the request came by, for the counts.
            key: Requests of one key go to one version.
            request_id: For what is recorded of it.

        Returns:
            The model that answers.

        Raises:
            RequestError: It cannot be taken: no such model, not ready, queue full.
            UsageError: The job does not fit the model.
        """
        try:
            model = _graph(self._pick(name, version, key))
            self._follow(model, job, protocol, request_id)
            model.submit(job)
            self._mirror(name, job, request_id)
        except Exception as error:
            self.failed(name, protocol, error, received_ns=job.received_ns)
            raise
        return model

    def generate(
        self,
        name: str,
        version: str | None,
        job: GenerationJob,
        *,
        protocol: str,
        key: str | None = None,
        request_id: str = "",
    ) -> TextModel:
        """Let a language model write; as `infer`."""
        try:
            model = _generator(self._pick(name, version, key))
            _check_tokens(job, self.limits)
            self._follow(model, job, protocol, request_id)
            model.submit(job)
        except Exception as error:
            self.failed(name, protocol, error, received_ns=job.received_ns)
            raise
        return model

    def failed(self, name: str | None, protocol: str, error: BaseException, *, received_ns: int = 0) -> None:
        """Count a request that never became a job."""
        _, reason, _ = describe_failure(error)
        waited_ns = time.monotonic_ns() - received_ns if received_ns else 0
        self.metrics.count_request(name or "", "", protocol, reason, waited_ns)

    def verdicts(self, name: str, version: str) -> dict[str, Any] | None:
        """What its release's gates said of a version, as `read_verdicts` has it; None if nothing is known."""
        return read_verdicts(self.repository.get(name, version).artifact)

    def _pick(self, name: str, version: str | None, key: str | None) -> GraphModel | TextModel:
        """The model that answers; where the chosen version is just not there, the one it is compared with."""
        if version is not None or (chosen := self.traffic.choose(name, key)) is None:
            return self.repository.get(name, version)
        try:
            return self.repository.get(name, chosen)
        except (ModelNotFoundError, NotReadyError):
            return self.repository.get(name, self.traffic.control(name))

    def _follow(self, model: GraphModel | TextModel, job: Job | GenerationJob, protocol: str, request_id: str) -> None:
        """Have the job's end counted and shown to those who watch, after the client has its answer."""
        answer: Callable[[Any], None] = job.done
        drift = self.drift.get((model.name, model.version))
        watched = self.traffic.watches(model.name)

        def finish(ended: Any) -> None:
            answer(ended)
            if ended.is_cancelled:
                reason = "cancelled"
            else:
                reason = "ok" if ended.error is None else describe_failure(ended.error)[1]
            waited_ns = time.monotonic_ns() - ended.received_ns
            self.metrics.count_request(model.name, model.version, protocol, reason, waited_ns)
            if drift is not None:
                drift.observe(ended)
            if watched:
                task = getattr(model, "task", None)
                labels = getattr(task, "labels", None)
                self.traffic.observe(model.name, model.version, outcome_of(ended, request_id, labels))

        job.done = finish

    def _mirror(self, name: str, job: Job, request_id: str) -> None:
        """Give the shadow version a copy, if there is one and it has room."""
        shadow = self.traffic.shadow(name)
        if shadow is None:
            return
        with suppress(RequestError):
            model = self.repository.get(name, shadow)
            if isinstance(model, GraphModel):
                self.traffic.mirror(name, job, request_id, model.submit)


def _graph(model: GraphModel | TextModel) -> GraphModel:
    if not isinstance(model, GraphModel):
        raise UnsupportedError(
            f"{model.name} is a language model and takes no arrays", mend="Use /v1/completions or /predict."
        )
    return model


def _generator(model: GraphModel | TextModel) -> TextModel:
    if not isinstance(model, TextModel):
        raise UnsupportedError(
            f"{model.name} writes no text", mend=f"Use /predict/{model.name} or /v2/models/{model.name}/infer."
        )
    return model


def _check_tokens(job: GenerationJob, limits: Limits) -> None:
    if job.max_tokens > limits.max_tokens:
        raise UsageError(f"max_tokens is {job.max_tokens}; this server writes at most {limits.max_tokens} tokens")
