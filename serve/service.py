"""The one way from a protocol to a model: choose who answers, hand the work over, count how it went.

Protocols turn bytes into jobs and jobs into bytes. What holds for every request, whatever protocol it came by, is here.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks import Task
from serve.config import Limits, ServerConfig
from serve.drift.monitor import DriftMonitor
from serve.errors import describe_failure
from serve.metrics import Metrics
from serve.models.graph_model import GraphModel
from serve.models.job import GenerationJob, Job
from serve.models.loading import Loaded
from serve.models.repository import Repository
from serve.models.text_model import TextModel
from serve.traffic import Traffic, VersionWatcher, refusal
from serve.verdicts import read_verdicts

__all__ = ["Service"]

_LOG = logging.getLogger(__name__)
_DRIFT_S = 10.0  # for what it is at, in the thread that cleans up after a model


class Service:
    """A server's models behind one door. All methods are for the loop's thread.

    Args:
        config: What the server was told.
        repository: The models.
        metrics: Counts every request.
        traffic: Shares requests among versions and compares them.

    Attributes:
        is_draining: The server was told to stop.
        num_watch_faults: Times that drift or traffic failed on a request; the request never does for that.
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
        self._known_faults: set[tuple[type[Exception], str]] = set()
        self.num_watch_faults = 0
        self.is_draining = False
        repository.observer = self

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
            model = _graph(self.choose(name, version, key))
            is_chosen = self._is_compared(name, version, is_chosen)
            if counts:
                self._follow(model, job, protocol, request_id, key, is_chosen=is_chosen)
            self._submit(model, job, request_id, key, is_chosen=is_chosen, counts=counts)
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
            model = _generator(self.choose(name, version, key))
            is_chosen = self._is_compared(name, version, is_chosen)
            _check_tokens(job, self.limits)
            if counts:
                self._follow(model, job, protocol, request_id, key, is_chosen=is_chosen)
            self._submit(model, job, request_id, key, is_chosen=is_chosen, counts=counts)
        except Exception as error:
            if counts:
                self.failed(name, protocol, error, received_ns=job.received_ns)
            raise
        return model

    def _is_compared(self, name: str, version: str | None, is_chosen: bool | None) -> bool:
        """Whether a request has a part in comparing versions: not while one of them is not there to be chosen."""
        if not (version is None if is_chosen is None else is_chosen):
            return False
        arms = self.traffic.models.get(name)
        return arms is None or all(self.repository.has(name, one) for one in arms.split.shares)

    def _submit(
        self,
        model: GraphModel | TextModel,
        job: Any,
        request_id: str,
        key: str | None,
        *,
        is_chosen: bool,
        counts: bool,
    ) -> None:
        """Hand a job over; a refusal counts against the version, as its client sees it."""
        try:
            model.submit(job)
        except Exception as error:
            if counts and self.traffic.watches(model.name):
                try:
                    outcome = refusal(error, request_id, key=key)
                    self.traffic.observe(model.name, model.version, outcome, is_chosen=is_chosen)
                except Exception as fault:  # noqa: BLE001 - see _note_fault
                    self._note_fault("traffic", fault)
            raise

    def _note_fault(self, what: str, error: Exception) -> None:
        """No request fails because somebody looks at it: the fault is counted, and logged once of each kind."""
        self.num_watch_faults += 1
        if (kind := (type(error), what)) not in self._known_faults:
            self._known_faults.add(kind)
            _LOG.error("%s failed; requests are answered all the same, and this is said once", what, exc_info=error)

    def failed(self, name: str | None, protocol: str, error: BaseException, *, received_ns: int = 0) -> None:
        """Count a request that never became a job."""
        _, reason, _ = describe_failure(error)
        waited_ns = time.monotonic_ns() - received_ns if received_ns else 0
        self.metrics.count_request(name or "", "", protocol, reason, waited_ns)

    def verdicts(self, name: str, version: str) -> dict[str, Any] | None:
        """What its release's gates said of a version, as `read_verdicts` has it; None if nothing is known."""
        return read_verdicts(self.repository.get(name, version).artifact)

    def choose(self, name: str, version: str | None, key: str | None) -> GraphModel | TextModel:
        """The model that answers.

        Where the chosen version is just not there it is the one that it is compared with, then any that shares the
        model's requests, then the newest.
        """
        if version is not None or (chosen := self.traffic.choose(name, key)) is None:
            return self.repository.get(name, version)
        shares = self.traffic.models[name].split.shares
        for one in (chosen, self.traffic.control(name), *shares):
            if one is not None and self.repository.has(name, one):
                return self.repository.get(name, one)
        return self.repository.get(name)

    def _follow(
        self,
        model: GraphModel | TextModel,
        job: Job | GenerationJob,
        protocol: str,
        request_id: str,
        key: str | None,
        *,
        is_chosen: bool,
    ) -> None:
        """Have the job's end counted and shown to those who watch, after the client has its answer."""
        answer: Callable[[Any], None] = job.done
        name, version = model.name, model.version
        watched = self._watched.get((name, version))
        if watched is not None and watched.model() is not model:
            watched = None

        def finish(ended: Any) -> None:
            answer(ended)
            if ended.error is not None:
                reason = describe_failure(ended.error)[1]
            else:
                reason = "cancelled" if ended.is_cancelled else "ok"
            self.metrics.count_request(name, version, protocol, reason, time.monotonic_ns() - ended.received_ns)
            if watched is None:
                return
            if watched.drift is not None:
                try:
                    watched.drift.observe(ended)
                except Exception as error:  # noqa: BLE001 - see _note_fault
                    self._note_fault("drift", error)
            if watched.traffic is not None:
                try:
                    watched.traffic.observe(ended, request_id=request_id, is_chosen=is_chosen, key=key)
                except Exception as error:  # noqa: BLE001 - see _note_fault
                    self._note_fault("traffic", error)

        job.done = finish

    def published(self, loaded: Loaded) -> None:
        """Begin to watch a model that answers from now on; the repository's `Observer`."""
        model = loaded.model
        key = (model.name, model.version)
        drift: DriftMonitor | None = None
        traffic: VersionWatcher | None = None
        try:
            drift = _drift_monitor(loaded)
            traffic = self.traffic.watcher(*key, getattr(getattr(model, "task", None), "labels", None))
        except Exception as error:  # noqa: BLE001 - the model answers all the same
            self._note_fault("watching", error)
        self._watched[key] = _Watched(weakref.ref(model), drift, traffic)

    def withdrawn(self, model: GraphModel | TextModel) -> Callable[[], None] | None:
        """Forget a model that gets no more requests; what it was given is still watched."""
        key = (model.name, model.version)
        watched = self._watched.get(key)
        if watched is None or watched.model() is not model:
            return None
        del self._watched[key]
        return None if watched.drift is None else partial(watched.drift.close, _DRIFT_S)

    @property
    def drift(self) -> dict[tuple[str, str], DriftMonitor]:
        """Model and version → monitor, of every version that answers and whose artifact has a reference."""
        return {key: watched.drift for key, watched in list(self._watched.items()) if watched.drift is not None}


@dataclass(frozen=True, slots=True)
class _Watched:
    """A loaded model, and who is told of its jobs."""

    model: weakref.ref[GraphModel | TextModel]  # an unloaded one must be free to go
    drift: DriftMonitor | None
    traffic: VersionWatcher | None


def _drift_monitor(loaded: Loaded) -> DriftMonitor | None:
    model = loaded.model
    if loaded.reference is None or not isinstance(model, GraphModel):
        return None
    monitor = DriftMonitor(loaded.reference, model.task if isinstance(model.task, Task) else None)
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
