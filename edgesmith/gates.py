"""What a release must reach: the `gates:` part of a recipe, or a file of its own.

Only the limits are here. `bench.gates.judge` judges evidence against them. Gates of speed hold for every machine that
was measured, unless `devices` has a gate of the same kind for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

__all__ = [
    "AccuracyGate",
    "CpuGate",
    "DivergenceGate",
    "DownloadGate",
    "FlipsGate",
    "Gates",
    "GenerationGate",
    "LatencyGate",
    "MachineGates",
    "MemoryGate",
    "PerplexityGate",
    "RegressionGate",
    "SizeGate",
    "SpeedGate",
    "StartGate",
    "ThroughputGate",
]

Confidence = Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Scenario = Literal["single", "server", "load"]


class _Limit(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class AccuracyGate(_Limit):
    """How good the answers must be: a metric on its own, its loss against the baseline, or both."""

    metric: str | None = None
    """A metric of the task; the task's main one when left out."""
    max_drop: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    """The largest loss that may ship, in the metric's own unit: 0.01 is one point of accuracy. Artifact and baseline
    are compared on the same examples."""
    min: Annotated[float, Field(ge=-1, lt=1, allow_inf_nan=False)] | None = None
    """The least that the artifact's own metric may be, whatever the baseline's is."""
    confidence: Confidence = 0.95
    """Of the one-sided bound: a model that is worse by exactly `max_drop` passes with 1 − confidence."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_drop is None and self.min is None:
            raise ValueError("an accuracy gate needs max_drop or min")
        return self


class FlipsGate(_Limit):
    """A tripwire: how many answers may differ from the baseline's, right or wrong."""

    max_rate: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    """Largest share of changed answers, or of tokens whose likeliest successor changed for a language model: 0.02 is
    one in fifty. No sample can show that it is 0."""
    confidence: Confidence = 0.95
    """Of the one-sided bound on the share."""


class DivergenceGate(_Limit):
    """A tripwire: how far the probabilities of the classes, or of the next token, may move from the baseline's."""

    max_mean_kld: Positive
    """Largest mean of the divergence KL(baseline ‖ artifact), in nats: over the examples, or over the tokens of a
    text for a language model."""
    confidence: Confidence = 0.95
    """Of the one-sided bound on the mean."""


class PerplexityGate(_Limit):
    """How well a language model must predict the evaluation text."""

    max_ratio: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] | None = None
    """The most that the perplexity may be times the reference's on the same tokens: 1.03 is 3 % more."""
    max: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """The most that the perplexity itself may be. It hangs on the text and the tokenizer."""
    confidence: Confidence = 0.95
    """Of the one-sided bound; windows of the text are what is counted as independent."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_ratio is None and self.max is None:
            raise ValueError("a perplexity gate needs max_ratio or max")
        return self


class SizeGate(_Limit):
    """How large the artifact may be."""

    max_mb: Positive | None = None
    """Largest size in megabytes of 1,000,000 bytes."""
    min_reduction: Positive | None = None
    """How many times smaller than the baseline it must be: 3.9 is 3.9× smaller."""
    max_growth: Share | None = None
    """How much larger than the baseline it may be: 0.02 is 2 %."""
    of: Literal["model", "artifact"] = "model"
    """What is counted: the files with graph and weights, or all that ships (tokenizer, labels, …)."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_mb is None and self.min_reduction is None and self.max_growth is None:
            raise ValueError("a size gate needs max_mb, min_reduction or max_growth")
        return self


class DownloadGate(_Limit):
    """How much a device has to fetch."""

    max_mb: Positive
    """Largest size of all files, compressed together with zstd, in megabytes of 1,000,000 bytes."""


class MemoryGate(_Limit):
    """How much memory a fresh process may take that opens the artifact and answers."""

    max_mb: Positive
    """Largest resident set at its peak, in megabytes of 1,000,000 bytes: the most of several processes, with as much
    to spare as they differ."""


class StartGate(_Limit):
    """How long a fresh process may take until its first answer."""

    max_ms: Positive
    """Longest time in milliseconds from making the process to its first answer: interpreter, check of the files,
    opening the model, first answer. Of several starts, their median."""
    confidence: Confidence = 0.99
    """Of the bound on the median; 7 starts are needed for 99 %."""


class LatencyGate(_Limit):
    """A percentile of the time that requests take."""

    scenario: Scenario = "single"
    """`single`: one client in this process, whose next request starts when the last one is answered. `server`:
    requests arrive at random in this process, whether or not the last one is answered. `load`: a load test of a
    running server over the network."""
    rate: Positive | None = None
    """Requests that arrive in a second. `server` needs it; for `load` it picks one of several load tests."""
    percentile: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] = 99
    """Which percentile, in per cent."""
    max_ms: Positive
    """The most that the percentile may be, in milliseconds. A failed request counts as later than any limit."""
    confidence: Confidence = 0.99
    """Of the bound on the percentile."""

    @model_validator(mode="after")
    def _rate_fits_the_scenario(self) -> Self:
        if self.scenario == "server" and self.rate is None:
            raise ValueError("scenario server needs a rate: how many requests arrive in a second")
        if self.scenario == "single" and self.rate is not None:
            raise ValueError("scenario single has no rate: its next request starts when the last one is answered")
        return self


class ThroughputGate(_Limit):
    """How many examples must be answered in a second when all of them wait to be taken in batches."""

    min_per_second: Positive
    """Fewest examples a second."""
    confidence: Confidence = 0.95
    """Of the one-sided bound."""


class GenerationGate(_Limit):
    """How fast a language model must write."""

    min_tokens_per_second: Positive | None = None
    """Fewest tokens that an answer grows by in a second, after its first one."""
    max_ttft_ms: Positive | None = None
    """Longest time from a request to its first text, in milliseconds, the prompt's reading included."""
    percentile: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)] = 50
    """Which percentile of the times to the first text `max_ttft_ms` limits, in per cent."""
    confidence: Confidence = 0.95
    """Of the one-sided bounds."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.min_tokens_per_second is None and self.max_ttft_ms is None:
            raise ValueError("a generation gate needs min_tokens_per_second or max_ttft_ms")
        return self


class CpuGate(_Limit):
    """How much CPU time a request may take: steadier than wall time on a machine that others use too."""

    max_ms: Positive
    """The most that the median request may take over all threads, in milliseconds, one request after the other."""
    confidence: Confidence = 0.95
    """Of the bound on the median."""


class SpeedGate(_Limit):
    """How many times less CPU time a request must take than with the baseline, both run in turns."""

    min_speedup: Positive
    """2.0 means at most half of the baseline's CPU time."""
    confidence: Confidence = 0.95
    """Of the one-sided bound on the ratio."""


class RegressionGate(_Limit):
    """How much worse than an earlier release it may be; than the baseline where no earlier release is named."""

    max_slowdown: Share | None = None
    """0.05 is 5 % more time for a request, both run in turns."""
    of: Literal["cpu", "wall"] = "cpu"
    """What the slowdown is of: CPU time, or the time that a caller waits."""
    max_growth: Share | None = None
    """0.02 is 2 % more bytes in the files with graph and weights."""
    max_drop: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None
    """The largest loss of a metric on the same examples, in the metric's own unit."""
    metric: str | None = None
    """What the loss is of: a metric of the task; its main one when left out."""
    max_perplexity_ratio: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] | None = None
    """For a language model, the most that its perplexity may be times the earlier release's on the same tokens."""
    confidence: Confidence = 0.95
    """Of the one-sided bounds on slowdown, loss and perplexity."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_slowdown is None and not self.limits_model:
            raise ValueError("a regression gate needs max_slowdown, max_growth, max_drop or max_perplexity_ratio")
        return self

    @property
    def limits_model(self) -> bool:
        """Whether anything but the speed is limited: what is the same on every machine."""
        return any(one is not None for one in (self.max_growth, self.max_drop, self.max_perplexity_ratio))


def _one_or_more(gate: type[_Limit], value: Any) -> Any:
    """Take one mapping as a list of one; its faults keep the place that the user wrote them at."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return (gate.model_validate(value),)
    if isinstance(value, gate):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be one gate or a list of gates, not {value!r}")  # noqa: TRY004 - pydantic's own
    return tuple(value)


AccuracyGates = Annotated[
    tuple[AccuracyGate, ...],
    BeforeValidator(
        lambda value: _one_or_more(AccuracyGate, value), json_schema_input_type=AccuracyGate | list[AccuracyGate] | None
    ),
]
LatencyGates = Annotated[
    tuple[LatencyGate, ...],
    BeforeValidator(
        lambda value: _one_or_more(LatencyGate, value), json_schema_input_type=LatencyGate | list[LatencyGate] | None
    ),
]


class MachineGates(_Limit):
    """The gates whose figures belong to a machine."""

    memory: MemoryGate | None = None
    """How much memory a fresh process may take."""
    start: StartGate | None = None
    """How long a fresh process may take until its first answer."""
    latency: LatencyGates = ()
    """How long a request may take: one limit, or a list of them."""
    throughput: ThroughputGate | None = None
    """How many examples must be answered in a second, in batches."""
    cpu: CpuGate | None = None
    """How much CPU time a request may take."""
    generation: GenerationGate | None = None
    """How fast a language model must write."""
    speed: SpeedGate | None = None
    """How much faster than the baseline it must be."""
    regression: RegressionGate | None = None
    """How much worse than an earlier release it may be."""

    @model_validator(mode="after")
    def _latencies_differ(self) -> Self:
        kinds = [(one.scenario, one.rate, one.percentile) for one in self.latency]
        for scenario, rate, percentile in kinds:
            if kinds.count((scenario, rate, percentile)) > 1:
                at = f" at {rate:g} requests/s" if rate else ""
                raise ValueError(f"latency has two limits on p{percentile:g} of scenario {scenario}{at}")
        return self

    def kinds(self) -> frozenset[str]:
        """Names of the gates of a machine that are set."""
        is_timed = self.regression is not None and self.regression.max_slowdown is not None
        names = set(MachineGates.model_fields) - (set() if is_timed else {"regression"})
        return frozenset(name for name in names if getattr(self, name))

    def _without_baseline(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in MachineGates.model_fields if name not in ("speed", "regression")}


def _has_a_gate(limits: MachineGates) -> MachineGates:
    if not limits.kinds():
        raise ValueError(f"has no gate; set one of {', '.join(MachineGates.model_fields)}")
    regression = limits.regression
    if regression is not None and regression.limits_model:
        raise ValueError(
            "regression: max_growth, max_drop and max_perplexity_ratio are the same on every machine; "
            "set them outside devices"
        )
    return limits


class Gates(MachineGates):
    """All gates of a release; those that are left out are not judged."""

    accuracy: AccuracyGates = ()
    """How good the answers must be: one limit, or a list of them. Of several, all must be shown to hold."""
    flips: FlipsGate | None = None
    """How many answers may differ from the baseline's."""
    divergence: DivergenceGate | None = None
    """How far the probabilities of the classes, or of the next token, may move from the baseline's."""
    perplexity: PerplexityGate | None = None
    """How well a language model must predict the evaluation text."""
    size: SizeGate | None = None
    """How large the files may be."""
    download: DownloadGate | None = None
    """How much a device has to fetch."""
    devices: dict[Annotated[str, Field(min_length=1)], Annotated[MachineGates, AfterValidator(_has_a_gate)]] = Field(
        default_factory=dict
    )
    """Shell pattern of a machine's name, such as `*Cortex-A76*` → its own limits, which take the place of those
    above that are of the same kind. A machine that nothing was measured on leaves its gates INCONCLUSIVE."""

    @model_validator(mode="after")
    def _metrics_differ(self) -> Self:
        metrics = [one.metric for one in self.accuracy]
        for metric in metrics:
            if metrics.count(metric) > 1:
                raise ValueError(f"accuracy has two limits for {metric or 'the main metric'}; write them as one")
        return self

    def updated(self, other: Gates) -> Gates:
        """These gates with those that `other` sets in their place."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})

    @property
    def are_set(self) -> bool:
        """Whether there is anything to judge."""
        return any(getattr(self, name) for name in type(self).model_fields)

    @property
    def absolute(self) -> Gates:
        """The gates that need no baseline: for an artifact that is its own."""
        perplexity = self.perplexity and self.perplexity.model_copy(update={"max_ratio": None})
        size = self.size and self.size.model_copy(update={"min_reduction": None, "max_growth": None})
        devices = {pattern: MachineGates(**limits._without_baseline()) for pattern, limits in self.devices.items()}
        return Gates(
            **self._without_baseline(),
            accuracy=tuple(one.model_copy(update={"max_drop": None}) for one in self.accuracy if one.min is not None),
            perplexity=perplexity if perplexity and perplexity.max is not None else None,
            size=size if size and size.max_mb is not None else None,
            download=self.download,
            devices={pattern: limits for pattern, limits in devices.items() if limits.kinds()},
        )

    @property
    def metrics(self) -> tuple[str | None, ...]:
        """The metrics that are judged; None is the task's main one."""
        regression = self.regression
        further = () if regression is None or regression.max_drop is None else (regression.metric,)
        return (*(one.metric for one in self.accuracy), *further)

    @property
    def needs_baseline(self) -> bool:
        """Whether any gate compares with a baseline."""
        return self != self.absolute

    @property
    def needs_classes(self) -> bool:
        """Whether a gate compares predicted classes, which not every task has."""
        return self.flips is not None or self.divergence is not None

    @property
    def needs_answers(self) -> bool:
        """Whether a language model's answers to the evaluation prompts are needed."""
        loses = self.regression is not None and self.regression.max_drop is not None
        return bool(self.accuracy) or loses

    @property
    def needs_language_reference(self) -> bool:
        """Whether the reference's predictions on the evaluation text are needed, for a language model."""
        return self.needs_classes or (self.perplexity is not None and self.perplexity.max_ratio is not None)

    @property
    def needs_throughput(self) -> bool:
        """Whether batches must be timed, on this machine or a device."""
        return any(limits.throughput for limits in self._of_machines())

    @property
    def latencies(self) -> tuple[LatencyGate, ...]:
        """All limits on percentiles of latency, on this machine or a device."""
        return tuple(one for limits in self._of_machines() for one in limits.latency)

    @property
    def scenarios(self) -> frozenset[tuple[Scenario, float | None]]:
        """Scenario and rate of all latencies that are needed, on this machine or a device."""
        wanted: set[tuple[Scenario, float | None]] = set()
        for limits in self._of_machines():
            wanted.update((one.scenario, one.rate) for one in limits.latency)
            if limits.cpu:
                wanted.add(("single", None))
        return frozenset(wanted)

    def _of_machines(self) -> Iterator[MachineGates]:
        yield self
        yield from self.devices.values()
