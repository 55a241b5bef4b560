"""The one way from a protocol to a model: choose who answers, hand the work over, count how it went.

Protocols turn bytes into jobs and jobs into bytes. What holds for every request, whatever protocol it came by, is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from edgesmith.errors import UnsupportedError
from serve.config import Limits, ServerConfig
from serve.errors import describe_failure
from serve.metrics import Metrics
from serve.models.graph_model import GraphModel
from serve.models.job import GenerationJob, Job
from serve.models.repository import Repository
from serve.models.text_model import TextModel

__all__ = ["Router", "Service", "Watcher"]


class Router(Protocol):
    """What shares a model's requests among its versions."""

    def choose(self, name: str, key: str | None) -> str | None:
        """The version that answers; None leaves it to the repository."""


class Watcher(Protocol):
    """Something that is told of every finished request of one version, after its answer was sent."""

    def observe(self, job: Job | GenerationJob, *, request_id: str) -> None:
        """Take note; on the loop's thread, so it must be quick."""


class Service:
    """A server's models behind one door. All methods are for the loop's thread.

    Args:
        config: What the server was told.
        repository: The models.
        metrics: Counts every request.
        traffic: Shares requests among versions; None has none to share.
        verdicts: Model's name → what a release's gates said of it, JSON-able, for the page.
    """

    def __init__(
        self,
        config: ServerConfig,
        repository: Repository,
        metrics: Metrics,
        *,
        traffic: Router | None = None,
        verdicts: Mapping[str, object] | None = None,
    ) -> None:
        self.config = config
        self.repository = repository
        self.metrics = metrics
        self.traffic = traffic
        self.verdicts = dict(verdicts or {})
        self.watchers: dict[tuple[str, str], list[Watcher]] = {}
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
            model = self._pick(name, version, key)
            if not isinstance(model, GraphModel):
                raise UnsupportedError(
                    f"{name} is a language model and takes no arrays", mend="Use /v1/completions or /predict."
                )
            self._follow(model, job, protocol, request_id)
            model.submit(job)
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
            model = self._pick(name, version, key)
            if not isinstance(model, TextModel):
                raise UnsupportedError(
                    f"{name} writes no text", mend=f"Use /predict/{name} or /v2/models/{name}/infer."
                )
            if job.max_tokens > self.limits.max_tokens:
                raise UnsupportedError(
                    f"max_tokens is {job.max_tokens}; this server writes at most {self.limits.max_tokens} tokens"
                )
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

    def _pick(self, name: str, version: str | None, key: str | None) -> GraphModel | TextModel:
        if version is None and self.traffic is not None:
            version = self.traffic.choose(name, key)
        return self.repository.get(name, version)

    def _follow(
        self, model: GraphModel | TextModel, job: Job | GenerationJob, protocol: str, request_id: str
    ) -> None:
        """Have the job's end counted and shown to those who watch, after the client has its answer."""
        answer: Callable[[Job | GenerationJob], None] = job.done  # type: ignore[assignment]
        watchers = self.watchers.get((model.name, model.version))

        def finish(ended: Job | GenerationJob) -> None:
            answer(ended)
            if ended.error is not None:
                reason = describe_failure(ended.error)[1]
            else:
                reason = "cancelled" if ended.is_cancelled else "ok"
            self.metrics.count_request(
                model.name, model.version, protocol, reason, time.monotonic_ns() - ended.received_ns
            )
            if watchers:
                for watcher in watchers:
                    watcher.observe(ended, request_id=request_id)

        job.done = finish
