"""Traffic as families of metrics.

Imports `prometheus_client`, so it is imported when somebody reads the metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily

from serve.traffic.arms import Arms
from serve.traffic.recorder import Recorder

if TYPE_CHECKING:
    from prometheus_client import Metric

    from serve.traffic.shadows import Shadow
    from serve.traffic.traffic import Traffic

__all__ = ["traffic_families"]

_VERSION = ("model", "version")
_STATES = ("undecided", "safe", "regression")


def traffic_families(traffic: Traffic) -> Iterator[Metric]:
    """Shares, arms, comparisons, shadows and the recording."""
    yield from _arms(list(traffic.models.values()))
    yield from _findings(list(traffic.models.values()))
    if traffic.shadows:
        yield from _shadows(traffic.shadows)
    if traffic.recorder is not None:
        yield from _recording(traffic.recorder)


def _arms(models: list[Arms]) -> Iterator[Metric]:
    share = GaugeMetricFamily("edgesmith_traffic_share", "Share of the requests that name no version.", labels=_VERSION)
    state = StateSetMetricFamily("edgesmith_canary_state", "What is proven of a version with a share.", labels=_VERSION)
    stopped = GaugeMetricFamily(
        "edgesmith_canary_stopped", "1 where a version's share was taken away for being worse.", labels=_VERSION
    )
    for model in models:
        for version in model.arms:
            labels = (model.name, version)
            share.add_metric(labels, model.split.shares.get(version, 0.0))
            if version != model.control:
                comparison = model.comparisons.get(version)
                now = "undecided" if comparison is None else comparison.state
                state.add_metric(labels, {one: one == now for one in _STATES})
                stopped.add_metric(labels, float(version in model.stopped))
    yield from (share, state, stopped)


def _findings(models: list[Arms]) -> Iterator[Metric]:
    labels = (*_VERSION, "harm")
    low = GaugeMetricFamily(
        "edgesmith_canary_harm_low", "The version is worse than the control by at least this.", labels=labels
    )
    high = GaugeMetricFamily(
        "edgesmith_canary_harm_high", "The version is worse than the control by at most this.", labels=labels
    )
    for model in models:
        for version, comparison in list(model.comparisons.items()):
            for finding in comparison.findings:
                low.add_metric((model.name, version, finding.harm), finding.low)
                high.add_metric((model.name, version, finding.harm), finding.high)
    yield from (low, high)


def _shadows(shadows: dict[str, Shadow]) -> Iterator[Metric]:
    copies = CounterMetricFamily(
        "edgesmith_shadow_copies", "Copies of requests, by what became of them.", labels=(*_VERSION, "result")
    )
    difference = GaugeMetricFamily(
        "edgesmith_shadow_max_abs_difference", "The largest difference of any output yet.", labels=_VERSION
    )
    for name, shadow in shadows.items():
        other = int(shadow.disagreements.total)
        for result, count in (
            ("same", shadow.disagreements.num - other),
            ("other", other),
            ("failed", shadow.num_failed),
            ("dropped", shadow.num_dropped),
        ):
            copies.add_metric((name, shadow.version, result), count)
        difference.add_metric((name, shadow.version), shadow.max_abs_difference)
    yield from (copies, difference)


def _recording(recorder: Recorder) -> Iterator[Metric]:
    yield CounterMetricFamily("edgesmith_recorded_lines", "Lines that were recorded.", value=recorder.num_lines)
    yield CounterMetricFamily("edgesmith_recording_dropped_lines", "Lines that were not.", value=recorder.num_dropped)
    yield CounterMetricFamily(
        "edgesmith_recording_gaps", "How often nothing could be recorded for a while.", value=recorder.num_gaps
    )
    yield GaugeMetricFamily(
        "edgesmith_recording_failed", "1 while recording has stopped on an error.", value=float(bool(recorder.failure))
    )
