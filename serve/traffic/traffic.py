"""Traffic between the versions of models: who answers, what it was like, and whether a new version may stay."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import UsageError
from serve.models.job import GenerationJob, Job
from serve.traffic.arms import Arms
from serve.traffic.background import Background
from serve.traffic.lines import feedback_line, request_line, shadow_line
from serve.traffic.outcome import MAX_ID, Outcome, bounded_id, outcome_of
from serve.traffic.recorder import Recorder
from serve.traffic.settings import TrafficSettings
from serve.traffic.shadows import Agreement, Shadow

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["Traffic", "VersionWatcher"]

_Answered = tuple[str, str, bool, int | None]
"""Model and version, whether `choose` gave it, and what stands for the key."""
Submit = Callable[[str, str, Job], None]
"""Model, version and job → handed over, or an error raised."""


def _nowhere(name: str, version: str, job: Job) -> None:
    del job
    raise UsageError(f"nothing says how {name}:{version} is reached")


class Traffic:
    """Splits, shadows, recording and comparison of a server's models.

    Methods are for the loop's thread unless they say otherwise, and none of them waits: what costs time happens in a
    thread of its own, at most ten times a second.

    Args:
        splits: Model → version → weight; the version with the largest is the control of the others.
        shadows: Model → version that gets a copy of what others answered.
        record_to: File with a line for each request.
        settings: Margins, levels and limits.
        seed: Of the draws for requests without a key.

    Attributes:
        models: Model → its split and comparison.
        shadows: Model → its shadow.
        recorder: Writes lines; None records nothing.

    Raises:
        UsageError: Weights are no shares.
        StorageError: The recording cannot be opened.
    """

    def __init__(
        self,
        splits: Mapping[str, Mapping[str, float]] | None = None,
        shadows: Mapping[str, str] | None = None,
        *,
        record_to: Path | None = None,
        settings: TrafficSettings | None = None,
        seed: int | None = None,
    ) -> None:
        self.settings = settings or TrafficSettings()
        self._rng = random.Random(seed)  # noqa: S311 - shares traffic; nothing is kept secret by it
        self.models = {name: Arms(name, weights, self.settings, self._rng) for name, weights in (splits or {}).items()}
        self._submit: Submit = _nowhere
        self.shadows = {name: self._shadow(name, version) for name, version in (shadows or {}).items()}
        self._recent: OrderedDict[str, _Answered] = OrderedDict()
        self._versions_of: Callable[[str], Collection[str]] | None = None
        self._slo_ns = float("inf") if self.settings.slo_ms is None else self.settings.slo_ms * 1e6
        self._background = Background(self._work, "traffic")
        self.recorder = None
        if record_to is not None:
            self.recorder = Recorder(record_to, max_bytes=self.settings.max_record_bytes)

    def attach(self, submit: Submit) -> None:
        """Say how a copy reaches a version: `lambda name, version, job: repository.get(name, version).submit(job)`."""
        self._submit = submit

    def check(self, versions_of: Callable[[str], Collection[str]]) -> None:
        """Compare with the models that there are.

        Args:
            versions_of: Model → its versions; empty of a model that is not known. It is asked again when shares are
                changed.

        Raises:
            UsageError: A split or shadow names a model or version that is not served.
        """
        self._versions_of = versions_of
        named = [(name, version) for name, arms in self.models.items() for version in arms.arms]
        named += [(name, shadow.version) for name, shadow in self.shadows.items()]
        for name, version in named:
            if version not in (known := versions_of(name)):
                has = f"{name} has {', '.join(sorted(known))}" if known else f"there is no model {name}"
                raise UsageError(
                    f"traffic for {name}:{version} is asked for, but {has}",
                    mend=f"Serve it too: {name}:{version}=PATH",
                )
        for name, shadow in self.shadows.items():
            if name in self.models and shadow.version in self.models[name].split.shares:
                raise UsageError(
                    f"{name}:{shadow.version} is to have a share and to be a shadow; it can be one of them"
                )

    def start(self) -> None:
        """Start the thread."""
        self._background.start()

    def close(self) -> None:
        """Write what is not written yet and end the thread; closing twice is harmless."""
        self._background.close()
        if self.recorder is not None:
            self.recorder.close()

    def choose(self, name: str, key: str | None = None) -> str | None:
        """The version that answers a request that names none; None where the model has no split."""
        arms = self.models.get(name)
        return None if arms is None else arms.split.choose(key)

    def control(self, name: str) -> str | None:
        """The version that others are compared with: who answers while the chosen one is not ready."""
        arms = self.models.get(name)
        return None if arms is None else arms.control

    def watches(self, name: str) -> bool:
        """Whether anything is done with this model's outcomes."""
        return self.recorder is not None or name in self.models or name in self.shadows

    def watcher(self, name: str, version: str, labels: Sequence[str] | None = None) -> VersionWatcher | None:
        """What is to be told of a version's finished jobs; None where nothing is done with them.

        Args:
            name: The model.
            version: Of it.
            labels: Of its task, in the order of its logits.
        """
        return VersionWatcher(self, name, version, labels) if self.watches(name) else None

    def observe(self, name: str, version: str, outcome: Outcome, *, is_chosen: bool = True) -> None:
        """Count and record what became of a request.

        Args:
            name: The model.
            version: That answered, or should have.
            outcome: How it went.
            is_chosen: Whether `choose` gave the version. A client that names one is not part of the comparison.
        """
        arms = self.models.get(name)
        if arms is not None:
            arm = arms.arms.get(version)
            if arm is not None and is_chosen:
                arm.add(outcome, self._slo_ns, arms.answered)
        if self.recorder is not None:
            role = "only" if arms is None else arms.role(version)
            self.recorder.put(request_line(time.time(), name, version, role, outcome))
        if outcome.is_ok and 0 < len(outcome.request_id) <= MAX_ID:
            self._recent[outcome.request_id] = (name, version, is_chosen, outcome.unit)
            self._recent.move_to_end(outcome.request_id)  # an id that was given before is as fresh as any
            if len(self._recent) > self.settings.max_recent:
                self._recent.popitem(last=False)
        self._background.wake()

    def mirror(self, name: str, version: str, job: Job, request_id: str) -> None:
        """Send a copy of a job that was answered to the model's shadow, if it has one; never raises."""
        shadow = self.shadows.get(name)
        if shadow is None or job.outputs is None or job.is_cancelled or version == shadow.version:
            return
        if self.settings.shadow_share >= 1 or self._rng.random() < self.settings.shadow_share:
            shadow.mirror(job, bounded_id(request_id), self._background.wake)

    def feedback(self, name: str, request_id: str, score: float) -> str | None:
        """Count a judgement of an answer, once for each.

        Args:
            name: The model.
            request_id: Of the request, as the client was told it.
            score: From 0, bad, to 1, good.

        Returns:
            The version that answered; None where the request is not remembered, or was judged before.
        """
        found = self._recent.get(request_id)
        if found is None or found[0] != name:
            return None
        del self._recent[request_id]
        _, version, is_chosen, unit = found
        arms = self.models.get(name)
        arm = None if arms is None else arms.arms.get(version)
        if arms is not None and arm is not None and is_chosen and arms.judged.is_new(unit):
            arm.feedback.total += 1.0 - score
            arm.feedback.num += 1
        if self.recorder is not None:
            self.recorder.put(feedback_line(time.time(), name, version, request_id, score))
        self._background.wake()
        return version

    def set_split(self, name: str, weights: Mapping[str, float]) -> None:
        """Change a model's shares. Its comparison begins anew, and versions that were stopped may answer again.

        Args:
            name: The model.
            weights: Version → weight, of any version that is served; 0 for one that is to get nothing.

        Raises:
            UsageError: The model has no split, a version is not served or is a shadow, or weights are no shares.
        """
        if name not in self.models:
            raise UsageError(f"{name} has no split", mend=f"Start the server with one: --split {name}=1:95,2:5")
        known = self.models[name].arms if self._versions_of is None else self._versions_of(name)
        if unknown := sorted(weights.keys() - set(known)):
            raise UsageError(f"{name} has no version {unknown[0]!r}; it has {', '.join(sorted(known))}")
        shadow = self.shadows.get(name)
        if shadow is not None and weights.get(shadow.version):
            raise UsageError(f"{name}:{shadow.version} is a shadow and can have no share")
        self.models[name] = Arms(name, weights, self.settings, self._rng)

    def report(self, name: str, version: str) -> dict[str, Any] | None:
        """State of one version for the page, JSON-able; None where it has no part in any traffic. Any thread."""
        arms, shadow = self.models.get(name), self.shadows.get(name)
        said = None if arms is None else arms.report(version)
        if shadow is not None and shadow.version == version:
            said = {"arm": "shadow", "share": 0.0, "shadow": shadow.report(self.settings.alpha)}
        return said

    def collect(self) -> Iterable[Metric]:
        """Families of metrics, as `prometheus_client` has them. Any thread."""
        from serve.traffic.families import traffic_families

        return traffic_families(self)

    def _shadow(self, name: str, version: str) -> Shadow:
        def submit(job: Job) -> None:
            self._submit(name, version, job)

        def compared(request_id: str, agreement: Agreement | None) -> None:
            if self.recorder is not None:
                self.recorder.put(shadow_line(time.time(), name, version, request_id, agreement))

        return Shadow(version, submit, compared, max_pending=self.settings.max_shadow_pending)

    def _work(self) -> None:
        for shadow in self.shadows.values():
            shadow.compare()
        for arms in list(self.models.values()):
            arms.judge()
        if self.recorder is not None:
            self.recorder.flush()


class VersionWatcher:
    """Tells traffic of one version's finished jobs."""

    __slots__ = ("_labels", "_name", "_traffic", "_version")

    def __init__(self, traffic: Traffic, name: str, version: str, labels: Sequence[str] | None) -> None:
        self._traffic, self._name, self._version, self._labels = traffic, name, version, labels

    def observe(
        self, job: Job | GenerationJob, *, request_id: str = "", is_chosen: bool = True, key: str | None = None
    ) -> None:
        """Take note of a job whose answer was sent; `key` gave it its version, if it had one."""
        outcome = outcome_of(job, request_id, self._labels, key=key)
        self._traffic.observe(self._name, self._version, outcome, is_chosen=is_chosen)
        if isinstance(job, Job):
            self._traffic.mirror(self._name, self._version, job, request_id)
