from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from serve.config import ModelSpec, ServerConfig
from serve.live import percentile_ns
from serve.metrics import MAX_SERIES, REQUEST_BOUNDS_NS
from tests.serve.page.running import Running, running

OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture
def server(classifier_path: Path) -> Iterator[Running]:
    spec = ModelSpec(name="news", path=classifier_path, threads=1)
    with running(ServerConfig(models=(spec,), port=0, drain_s=5)) as found:
        yield found


def families(server: Running) -> dict[str, Metric]:
    return {family.name: family for family in parse(server.ask("GET", "/metrics").body.decode())}


def value(server: Running, name: str, **labels: str) -> float:
    """Sum of the samples of that name with these labels."""
    samples = [sample for family in families(server).values() for sample in family.samples]
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


def test_counts_are_what_was_sent(server: Running) -> None:
    for _ in range(3):
        answer = server.ask("POST", "/predict/news", "A goal.", {"content-type": "text/plain"})
        assert answer.status == 200
    assert server.ask("POST", "/predict/news", json.dumps({"rows": []})).status == 400
    assert server.ask("POST", "/v2/models/news/infer", "{").status == 400
    news = {"model": "news", "version": "1"}
    assert value(server, "edgesmith_requests_total", **news, protocol="predict", reason="ok") == 3
    assert value(server, "edgesmith_requests_total", model="news", protocol="oip", reason="malformed") == 1
    assert value(server, "edgesmith_requests_total") == 5
    assert value(server, "edgesmith_request_duration_seconds_count", **news, outcome="ok") == 3
    assert value(server, "edgesmith_request_duration_seconds_count") == 5
    assert 0 < value(server, "edgesmith_request_duration_seconds_sum", **news, outcome="ok") < 60
    assert value(server, "edgesmith_queue_duration_seconds_count", **news) == 3
    assert value(server, "edgesmith_rows_total", **news) == 3
    assert value(server, "edgesmith_runs_total", **news) == value(server, "edgesmith_compute_duration_seconds_count")
    assert value(server, "edgesmith_batch_rows_sum", **news) == 3
    assert value(server, "edgesmith_queue_length", **news) == 0
    assert value(server, "edgesmith_model_ready", **news) == 1


def test_model_is_told_by_what_it_is(server: Running, classifier_path: Path) -> None:
    (info,) = families(server)["edgesmith_model_info"].samples
    model = server.app.service.model("news")
    assert info.labels["digest"] == model.artifact.digest
    assert info.labels["engine"].startswith("onnxruntime")
    assert (info.labels["kind"], info.labels["task"]) == ("onnx", "text-classification")


def test_invented_names_make_no_series(server: Running) -> None:
    for number in range(20):
        assert server.ask("POST", f"/predict/invented-{number}", "text").status == 404
        assert server.ask("POST", f"/predict/news/versions/{number + 2}", "text").status == 404
    keys = set(server.app.service.metrics.requests)
    assert keys == {("", "", "predict", "not_found"), ("news", "", "predict", "not_found")}
    assert value(server, "edgesmith_requests_total", reason="not_found") == 40


def test_series_are_bounded_whatever_is_counted(server: Running) -> None:
    metrics = server.app.service.metrics
    for number in range(MAX_SERIES + 50):
        metrics.count_request("news", "1", "test", f"reason-{number}", 1)
    named = [labels for labels in metrics.requests if labels[0]]
    assert len(named) == MAX_SERIES


def test_processes_figures_have_the_names_that_all_libraries_give_them(server: Running) -> None:
    assert value(server, "process_cpu_seconds_total") > 0
    assert value(server, "process_start_time_seconds") > 1.6e9
    resident, private = (value(server, f"process_{kind}_memory_bytes") for kind in ("resident", "private"))
    assert 10e6 < private < resident
    assert 3 < value(server, "process_open_fds") < value(server, "process_max_fds")


def test_every_family_has_help_and_a_name_with_its_unit(server: Running) -> None:
    server.ask("POST", "/predict/news", "A goal.")
    for family in families(server).values():
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_ns", "_us", "_mb", "_percent")), family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name


def test_both_formats_say_the_same(server: Running) -> None:
    server.ask("POST", "/predict/news", "A goal.")
    plain = server.ask("GET", "/metrics")
    openmetrics = server.ask("GET", "/metrics", headers=OPENMETRICS)
    assert plain.headers["content-type"].startswith("text/plain")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")
    names = [
        {sample.name for family in parsed for sample in family.samples}
        for parsed in (parse(plain.body.decode()), parse_openmetrics(openmetrics.body.decode()))
    ]
    assert names[0] == names[1]


def test_further_collectors_are_asked_at_each_reading(server: Running) -> None:
    server.app.service.metrics.extra_collectors.append(lambda: [GaugeMetricFamily("more", "More.", value=7)])
    assert value(server, "more") == 7


def test_live_figures_are_of_the_last_minute(server: Running) -> None:
    for _ in range(4):
        server.ask("POST", "/predict/news", "A goal.")
    server.ask("POST", "/predict/news", "")
    live = server.ask("GET", "/live.json").json()
    (model,) = live["models"]
    assert (live["all"]["answered"], model["answered"]) == (4, 4)
    assert live["all"]["failures"] == model["failures"] == {"malformed": 1}
    assert sum(model["durations"]) == 4
    assert model["p50_ms"] <= model["p99_ms"]
    assert model["answered_per_s"] == pytest.approx(4 / live["window_s"], rel=0.01)
    assert sum(count for _, count in model["batch_rows"]) >= 1


def test_percentile_is_within_its_bucket() -> None:
    counts = [0] * (len(REQUEST_BOUNDS_NS) + 1)
    assert percentile_ns(counts, 0.5) is None
    counts[6] = 100
    assert REQUEST_BOUNDS_NS[5] < (percentile_ns(counts, 0.5) or 0) <= REQUEST_BOUNDS_NS[6]
    counts[-1] = 1000
    assert percentile_ns(counts, 0.99) == REQUEST_BOUNDS_NS[-1]
