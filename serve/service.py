"""The one way from a protocol to a model: choose who answers, hand the work over, count how it went.

Protocols turn bytes into jobs and jobs into bytes. What holds for every request, whatever protocol it came by, is here.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks import Task
from serve.config import Limits, ServerConfig
from serve.drift.monitor import DriftMonitor
from serve.drift.reference import read_reference
from serve.errors import ModelNotFoundError, NotReadyError, describe_failure
from serve.metrics import Metrics
from serve.models.graph_model import GraphModel
from serve.models.job import GenerationJob, Job
from serve.models.repository import Repository
from serve.models.text_model import TextModel
from serve.traffic import Traffic, VersionWatcher, refusal
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
        traffic.attach(lambda name, version, job: _graph(repository.get(name, version)).submit(job))
        self._watched: dict[tuple[str, str], _Watched] = {}
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
        is_chosen: bool | None = None,
        counts: bool = True,
    ) -> GraphModel:
        """Run a job on a graph.

        Args:
            name: The model.
            version: None lets traffic's shares decide, or takes the newest.
            job: Its `done` is called once, later, on the loop's thread.
            protocol: What the request came by, for the counts.
            key: Requests of one key go to one version.
            request_id: For what is recorded of it.
            is_chosen: Whether `choose` gave the version, so that the request has a part in comparing versions; None
                where that is so if `version` is None.
            counts: False of the further jobs of a request whose first one stands for it.

        Returns:
            The model that answers.

        Raises:
            RequestError: It cannot be taken: no such model, not ready, queue full.
            UsageError: The job does not fit the model.
        """
        try:
            is_chosen = version is None if is_chosen is None else is_chosen
            model = _graph(self.choose(name, version, key))
            if counts:
                self._follow(model, job, protocol, request_id, is_chosen=is_chosen)
            self._submit(model, job, request_id, is_chosen=is_chosen, counts=counts)
        except Exception as error:
            if counts:
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
        is_chosen: bool | None = None,
        counts: bool = True,
    ) -> TextModel:
        """Let a language model write; as `infer`."""
        try:
            is_chosen = version is None if is_chosen is None else is_chosen
            model = _generator(self.choose(name, version, key))
            _check_tokens(job, self.limits)
            if counts:
                self._follow(model, job, protocol, request_id, is_chosen=is_chosen)
            self._submit(model, job, request_id, is_chosen=is_chosen, counts=counts)
        except Exception as error:
            if counts:
                self.failed(name, protocol, error, received_ns=job.received_ns)
            raise
        return model

    def _submit(self, model: GraphModel | TextModel, job: Any, request_id: str, *, is_chosen: bool, counts: bool) -> None:
        """Hand a job over; a refusal counts against the version, as its client sees it."""
        try:
            model.submit(job)
        except Exception as error:
            if counts and self.traffic.watches(model.name):
                outcome = refusal(error, request_id)
                self.traffic.observe(model.name, model.version, outcome, is_chosen=is_chosen)
            raise

    def failed(self, name: str | None, protocol: str, error: BaseException, *, received_ns: int = 0) -> None:
        """Count a request that never became a job."""
        _, reason, _ = describe_failure(error)
        waited_ns = time.monotonic_ns() - received_ns if received_ns else 0
        self.metrics.count_request(name or "", "", protocol, reason, waited_ns)

    def verdicts(self, name: str, version: str) -> dict[str, Any] | None:
        """What its release's gates said of a version, as `read_verdicts` has it; None if nothing is known."""
        return read_verdicts(self.repository.get(name, version).artifact)

    def choose(self, name: str, version: str | None, key: str | None) -> GraphModel | TextModel:
        """The model that answers; where the chosen version is just not there, the one it is compared with."""
        if version is not None or (chosen := self.traffic.choose(name, key)) is None:
            return self.repository.get(name, version)
        try:
            return self.repository.get(name, chosen)
        except (ModelNotFoundError, NotReadyError):
            return self.repository.get(name, self.traffic.control(name))

    def _follow(
        self,
        model: GraphModel | TextModel,
        job: Job | GenerationJob,
        protocol: str,
        request_id: str,
        *,
        is_chosen: bool,
    ) -> None:
        """Have the job's end counted and shown to those who watch, after the client has its answer."""
        answer: Callable[[Any], None] = job.done
        name, version = model.name, model.version
        watched = self._watched.get((name, version))
        if watched is None or watched.model() is not model:
            watched = self._watch(model)

        def finish(ended: Any) -> None:
            answer(ended)
            if ended.is_cancelled:
                reason = "cancelled"
            else:
                reason = "ok" if ended.error is None else describe_failure(ended.error)[1]
            self.metrics.count_request(name, version, protocol, reason, time.monotonic_ns() - ended.received_ns)
            if watched.drift is not None:
                watched.drift.observe(ended)
            if watched.traffic is not None:
                watched.traffic.observe(ended, request_id=request_id, is_chosen=is_chosen)

        job.done = finish

    def _watch(self, model: GraphModel | TextModel) -> _Watched:
        """Find out who is to be told of a model's jobs: once for each model that is loaded."""
        key = (model.name, model.version)
        before = self._watched.get(key)
        if before is not None and before.drift is not None:
            before.drift.close()
        labels = getattr(getattr(model, "task", None), "labels", None)
        found = _Watched(weakref.ref(model), _drift_monitor(model), self.traffic.watcher(*key, labels))
        self._watched[key] = found
        return found

    @property
    def drift(self) -> dict[tuple[str, str], DriftMonitor]:
        """Model and version → monitor, of every version whose artifact has a reference."""
        return {
            key: watched.drift
            for key, watched in self._watched.items()
            if watched.drift is not None and watched.model() is not None
        }

    def start_watching(self) -> None:
        """Begin to watch all models that are ready, so that the first request need not wait for that."""
        for entry in self.repository.index():
            if entry.state == "READY":
                self._watch(self.repository.get(entry.name, entry.version))

    def stop_watching(self) -> None:
        """End the threads of those who watch."""
        for watched in self._watched.values():
            if watched.drift is not None:
                watched.drift.close()


@dataclass(frozen=True, slots=True)
class _Watched:
    """A loaded model, and who is told of its jobs."""

    model: weakref.ref[GraphModel | TextModel]  # an unloaded one must be free to go
    drift: DriftMonitor | None
    traffic: VersionWatcher | None


def _drift_monitor(model: GraphModel | TextModel) -> DriftMonitor | None:
    reference = read_reference(model.artifact)
    if reference is None or not isinstance(model, GraphModel):
        return None
    monitor = DriftMonitor(reference, model.task if isinstance(model.task, Task) else None)
    monitor.start()
    return monitor


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
