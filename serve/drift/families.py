"""Drift as families of metrics.

Imports `prometheus_client`, so it is imported when somebody reads the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from serve.drift.monitor import DriftMonitor

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["families_of"]

_VERSION = ("model", "version")


def families_of(monitors: Iterable[tuple[str, str, DriftMonitor]]) -> Iterator[Metric]:
    """Alarms and statistics of (model, version, monitor)."""
    watched = list(monitors)
    alarm = GaugeMetricFamily(
        "edgesmith_drift_alarm", "1 where the last window differs from the reference.", labels=(*_VERSION, "feature")
    )
    statistic = GaugeMetricFamily(
        "edgesmith_drift_statistic", "Pearson's statistic of the last window.", labels=(*_VERSION, "feature")
    )
    threshold = GaugeMetricFamily(
        "edgesmith_drift_threshold", "What the statistic is compared with.", labels=(*_VERSION, "feature")
    )
    distance = GaugeMetricFamily(
        "edgesmith_drift_distance", "Total variation from the reference, 0 to 1.", labels=(*_VERSION, "feature")
    )
    for name, version, monitor in watched:
        for look in monitor.looks:
            labels = (name, version, look.feature.name)
            alarm.add_metric(labels, float(look.state == "alarm"))
            statistic.add_metric(labels, look.difference.statistic)
            if math.isfinite(look.difference.threshold):
                threshold.add_metric(labels, look.difference.threshold)
            distance.add_metric(labels, look.difference.distance)
    yield from (alarm, statistic, threshold, distance)
    yield from _counters(watched)


def _counters(watched: Iterable[tuple[str, str, DriftMonitor]]) -> Iterator[Metric]:
    for suffix, text, attribute in (
        ("windows", "Windows of requests that were compared with the reference.", "num_windows"),
        ("alarms", "Of them, those that differed.", "num_alarms"),
        ("rows", "Requests that were looked at.", "num_rows"),
        ("unread", "Requests that could not be looked at.", "num_unread"),
    ):
        family = CounterMetricFamily(f"edgesmith_drift_{suffix}", text, labels=_VERSION)
        for name, version, monitor in watched:
            family.add_metric((name, version), getattr(monitor, attribute))
        yield family
