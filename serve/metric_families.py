"""The server's counts as families of metrics, named and in the units that Prometheus' conventions ask for.

Imports `prometheus_client`, so it is imported when somebody reads the metrics.

Source: prometheus.io/docs/practices/naming, prometheus.io/docs/instrumenting/writing_clientlibs (process metrics).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from serve.metrics import REQUEST_BOUNDS_NS
from serve.models.stats import Buckets
from serve.models.text_model import TextModel
from serve.process_figures import read_process

if TYPE_CHECKING:
    from prometheus_client import Metric

    from serve.http.shared import Counters
    from serve.metrics import RequestCounts
    from serve.models.repository import Model, Repository

__all__ = ["model_families", "process_families", "request_families", "transport_families"]

_MODEL = ("model", "version")
_SECOND = 1e9
"""Nanoseconds."""


def request_families(requests: dict[tuple[str, str, str, str], RequestCounts]) -> Iterator[Metric]:
    """Requests by reason, and how long they took."""
    labels = (*_MODEL, "protocol")
    counted = CounterMetricFamily(
        "edgesmith_requests", "Requests by how they ended: ok, or why they failed.", labels=(*labels, "reason")
    )
    took = HistogramMetricFamily(
        "edgesmith_request_duration_seconds",
        "Time from a request's last byte to its answer, by whether it was answered.",
        labels=(*labels, "outcome"),
    )
    durations: dict[tuple[str, ...], Buckets] = {}
    for (model, version, protocol, reason), counts in requests.copy().items():
        counted.add_metric((model, version, protocol, reason), counts.count)
        outcome = "ok" if reason == "ok" else "failed"
        merged = durations.setdefault((model, version, protocol, outcome), Buckets(REQUEST_BOUNDS_NS))
        merged.counts = [a + b for a, b in zip(merged.counts, counts.durations.counts, strict=True)]
        merged.total += counts.durations.total
    for names, buckets in durations.items():
        _add(took, names, buckets, _SECOND)
    yield counted
    yield took


def model_families(repository: Repository) -> Iterator[Metric]:
    """Every version of every model: whether it answers, what it is, what it has done."""
    models = repository.models()
    ready = GaugeMetricFamily("edgesmith_model_ready", "1 where the model answers, 0 where it does not.", labels=_MODEL)
    for entry in repository.index():
        ready.add_metric((entry.name, entry.version), float(entry.state == "READY"))
    yield ready
    yield _info(models)
    yield from _waiting(models)
    yield from _histograms(models)
    yield from _counters(models)
    yield from _life_cycle(repository)


def _info(models: Sequence[Model]) -> Metric:
    family = InfoMetricFamily("edgesmith_model", "What is served.", labels=_MODEL)
    for model in models:
        manifest = model.artifact.manifest
        facts = {
            "digest": model.artifact.digest,
            "kind": manifest.kind,
            "precision": manifest.precision or "",
            "task": manifest.task or "",
            "engine": model.engine_name,
        }
        family.add_metric((model.name, model.version), facts)
    return family


def _waiting(models: Sequence[Model]) -> Iterator[Metric]:
    queue = GaugeMetricFamily("edgesmith_queue_length", "Requests that wait for the engine.", labels=_MODEL)
    running = GaugeMetricFamily("edgesmith_running_requests", "Requests that the engine works on.", labels=_MODEL)
    padding = GaugeMetricFamily(
        "edgesmith_padding_ratio", "Share of the elements run that were padding, since the start.", labels=_MODEL
    )
    for model in models:
        labels = (model.name, model.version)
        queue.add_metric(labels, model.num_waiting if isinstance(model, TextModel) else model.num_queued)
        running.add_metric(labels, model.num_running)
        padding.add_metric(labels, model.stats.padding_share)
    yield from (queue, running, padding)


def _histograms(models: Sequence[Model]) -> Iterator[Metric]:
    for name, text, attribute, unit in (
        ("queue_duration_seconds", "Time that an answered request waited for the engine.", "queue_ns", _SECOND),
        ("compute_duration_seconds", "Time of one run of the engine.", "compute_ns", _SECOND),
        ("batch_rows", "Rows of one run of the engine.", "batch_rows", 1.0),
        ("time_to_first_token_seconds", "Time from a request to its first token.", "first_token_ns", _SECOND),
        ("inter_token_duration_seconds", "Time from one token of a text to its next.", "between_tokens_ns", _SECOND),
    ):
        family = HistogramMetricFamily(f"edgesmith_{name}", text, labels=_MODEL)
        for model in models:
            _add(family, (model.name, model.version), getattr(model.stats, attribute), unit)
        yield family


def _counters(models: Sequence[Model]) -> Iterator[Metric]:
    for name, text, attribute in (
        ("rows", "Rows that were answered.", "inference_count"),
        ("runs", "Runs of the engine.", "execution_count"),
        ("given_elements", "Elements that clients sent, of runs of several lengths together.", "elements_given"),
        ("run_elements", "Elements that were run for them, padding included.", "elements_run"),
        ("prompt_tokens", "Tokens of prompts, reused ones included.", "prompt_tokens"),
        ("reused_tokens", "Tokens of prompts that were not read again.", "reused_tokens"),
        ("generated_tokens", "Tokens that were written.", "generated_tokens"),
    ):
        family = CounterMetricFamily(f"edgesmith_{name}", text, labels=_MODEL)
        for model in models:
            family.add_metric((model.name, model.version), getattr(model.stats, attribute))
        yield family


def _life_cycle(repository: Repository) -> Iterator[Metric]:
    for name, text, attribute in (
        ("model_loads", "Models that were opened.", "num_loads"),
        ("model_swaps", "Models that were replaced while they answered.", "num_swaps"),
        ("model_load_failures", "Models that could not be opened.", "num_load_failures"),
        ("child_restarts", "Engines that died in a process of their own and were started again.", "num_restarts"),
    ):
        if (value := getattr(repository, attribute, None)) is not None:
            yield CounterMetricFamily(f"edgesmith_{name}", text, value=value)


def transport_families(transport: Counters) -> Iterator[Metric]:
    """Connections and bytes of HTTP."""
    yield GaugeMetricFamily("edgesmith_connections", "Connections that are open.", value=transport.connections)
    for name, text, value in (
        ("accepted_connections", "Connections that were accepted.", transport.connections_total),
        ("refused_connections", "Connections above the limit.", transport.connections_refused),
        ("received_bytes", "Bytes of requests, headers included.", transport.bytes_in),
        ("sent_bytes", "Bytes of answers, headers included.", transport.bytes_out),
        ("gone_clients", "Requests whose client left before the answer.", transport.client_gone),
    ):
        yield CounterMetricFamily(f"edgesmith_{name}", text, value=value)
    errors = CounterMetricFamily(
        "edgesmith_protocol_errors", "Requests that no handler saw, by reason.", labels=("reason",)
    )
    for reason, count in transport.errors.copy().items():
        errors.add_metric((reason,), count)
    yield errors


def process_families() -> Iterator[Metric]:
    """Processor time, memory and descriptors, by the names that every client library gives them."""
    now = read_process()
    yield CounterMetricFamily("process_cpu_seconds", "User and system processor time.", value=now.cpu_s)
    yield GaugeMetricFamily("process_start_time_seconds", "Start since the epoch.", value=now.started_s)
    for name, text, value in (
        ("resident_memory_bytes", "Memory in RAM, mapped files included.", now.resident_bytes),
        ("private_memory_bytes", "Memory in RAM without mapped files.", now.private_bytes),
        ("peak_memory_bytes", "The most memory that was in RAM.", now.peak_bytes),
        ("threads", "Threads.", now.num_threads),
        ("open_fds", "Open file descriptors.", now.num_descriptors),
        ("max_fds", "File descriptors that may be open.", now.max_descriptors),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"process_{name}", text, value=value)


def _add(family: HistogramMetricFamily, labels: Iterable[str], buckets: Buckets, unit: float) -> None:
    # Read once, so that the last bucket is the count even while another thread goes on counting.
    cumulative, total = buckets.cumulative(), buckets.total
    bounds = [f"{bound / unit:g}" for bound in buckets.bounds] + ["+Inf"]
    family.add_metric(list(labels), list(zip(bounds, cumulative, strict=True)), total / unit)
