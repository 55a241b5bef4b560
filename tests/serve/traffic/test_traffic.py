from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgesmith.errors import UsageError
from serve.config import Limits
from serve.errors import DeadlineError, EngineFailedError, MalformedError, ModelNotFoundError, OverloadedError
from serve.models.job import GenerationJob, Job
from serve.traffic import Outcome, Traffic, TrafficSettings, outcome_of, refusal
from serve.traffic.comparison import Units
from serve.traffic.routes import routes

SPLIT = {"news": {"1": 0.8, "2": 0.2}}


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def serve(traffic: Traffic, num: int, rates: dict[str, float], *, seed: int = 0, **values: Any) -> None:
    """Answer requests whose versions fail at these rates, looking at the comparison again and again."""
    rng = np.random.default_rng(seed)
    for number in range(num):
        version = traffic.choose("news") or ""
        error = EngineFailedError("broken") if rng.random() < rates[version] else None
        outcome = refusal(error, "") if error else Outcome(f"{seed}-{number}", True, 1_000_000)
        for name, value in values.items():
            setattr(outcome, name, value)
        traffic.observe("news", version, outcome)
        if number % 10 == 9:
            traffic.models["news"].judge()


def test_a_version_that_fails_more_often_loses_its_share(caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic(SPLIT, seed=0)
    serve(traffic, 1500, {"1": 0.01, "2": 0.2})
    report = traffic.report("news", "2")
    assert report is not None
    assert (report["arm"], report["share"]) == ("stopped", 0.0)
    assert report["comparison"]["state"] == "regression"
    assert "failure: " in report["stopped"]
    assert "news:2 gets no more requests" in caplog.text
    assert {traffic.choose("news", f"key {number}") for number in range(100)} == {"1"}
    assert report["requests"] < 300


def test_a_version_that_is_as_good_is_found_safe_and_stays() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(failure_margin=0.05), seed=0)
    serve(traffic, 3000, {"1": 0.01, "2": 0.01})
    report = traffic.report("news", "2")
    assert report is not None
    assert report["comparison"]["state"] == "safe"
    assert (report["arm"], report["share"]) == ("canary", 0.2)


def test_little_evidence_decides_nothing() -> None:
    traffic = Traffic(SPLIT, seed=0)
    serve(traffic, 20, {"1": 0.0, "2": 0.0})
    report = traffic.report("news", "2")
    assert report is not None
    assert report["comparison"]["state"] == "undecided"
    failure = report["comparison"]["findings"][0]
    assert failure["low"] < 0 < failure["margin"] < failure["high"]


def test_a_regression_can_be_shown_without_stopping() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(stops=False), seed=0)
    serve(traffic, 1500, {"1": 0.01, "2": 0.2})
    report = traffic.report("news", "2")
    assert report is not None
    assert (report["comparison"]["state"], report["share"], report["stopped"]) == ("regression", 0.2, None)


def test_slow_answers_are_a_harm_where_there_is_an_objective() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(slo_ms=50), seed=0)
    for number in range(600):
        version = traffic.choose("news") or ""
        traffic.observe("news", version, Outcome(f"r{number}", True, 80_000_000 if version == "2" else 20_000_000))
    traffic.models["news"].judge()
    report = traffic.report("news", "2")
    assert report is not None
    assert report["stopped"].startswith("slow: 100.00%")


def test_what_clients_spoil_or_leave_says_nothing_of_a_version() -> None:
    traffic = Traffic(SPLIT, seed=0)
    for _ in range(500):
        traffic.observe("news", "2", refusal(UsageError("no such input"), ""))
        traffic.observe("news", "2", Outcome("", False, 0, "engine_failed", 503, is_cancelled=True))
        traffic.observe("news", "2", refusal(EngineFailedError("broken"), ""), is_chosen=False)
    arm = traffic.models["news"].arms["2"]
    assert (arm.answers.num, arm.answers.total, arm.num_requests) == (0, 0, 1000)


def test_a_full_queue_is_the_versions_fault() -> None:
    assert refusal(OverloadedError("full"), "").is_fault


def test_feedback_counts_once_for_the_version_that_answered() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(max_recent=2))
    for number in range(3):
        traffic.observe("news", "2", Outcome(f"r{number}", True, 1))
    assert traffic.feedback("news", "r0", 1.0) is None  # forgotten
    assert traffic.feedback("other", "r1", 1.0) is None
    assert traffic.feedback("news", "r1", 0.25) == "2"
    assert traffic.feedback("news", "r1", 0.25) is None
    report = traffic.report("news", "2")
    assert report is not None
    assert report["feedback"] == {"num": 1, "mean": 0.25}


def test_bad_feedback_stops_a_version() -> None:
    traffic = Traffic(SPLIT, seed=0)
    for number in range(1000):
        version = traffic.choose("news") or ""
        traffic.observe("news", version, Outcome(f"r{number}", True, 1))
        traffic.feedback("news", f"r{number}", 0.9 if version == "1" else 0.3)
    traffic.models["news"].judge()
    assert traffic.models["news"].stopped["2"].startswith("feedback: 70.00%")


def test_changed_shares_begin_the_comparison_anew() -> None:
    traffic = Traffic(SPLIT, seed=0)
    serve(traffic, 1500, {"1": 0.01, "2": 0.2})
    traffic.set_split("news", {"1": 1, "2": 1})
    report = traffic.report("news", "2")
    assert report is not None
    assert (report["arm"], report["share"], report["requests"], report["stopped"]) == ("canary", 0.5, 0, None)
    with pytest.raises(UsageError, match="other has no split"):
        traffic.set_split("other", {"1": 1})


def test_versions_that_are_not_served_are_refused() -> None:
    def versions_of(name: str) -> list[str]:
        return {"news": ["1", "2"]}.get(name, [])

    Traffic(SPLIT, {"news": "0"}).check(lambda name: ["0", "1", "2"])
    Traffic(SPLIT).check(versions_of)
    with pytest.raises(UsageError, match="news:3 is asked for, but news has 1, 2"):
        Traffic({"news": {"1": 1, "3": 1}}).check(versions_of)
    with pytest.raises(UsageError, match="there is no model old"):
        Traffic(shadows={"old": "1"}).check(versions_of)
    with pytest.raises(UsageError, match="one of them"):
        Traffic(SPLIT, {"news": "2"}).check(versions_of)


def job(**values: Any) -> Job:
    given: dict[str, Any] = {"received_ns": 1_000_000, "started_ns": 2_000_000, "finished_ns": 4_000_000, "num_rows": 1}
    return Job(**given | {"arrays": {}, "done": lambda job: None} | values)


def test_recorded_lines_say_what_was_answered_and_hold_no_text(tmp_path: Path) -> None:
    traffic = Traffic(SPLIT, {"news": "3"}, record_to=tmp_path / "r.jsonl", seed=0)
    copies: list[Job] = []
    traffic.attach(lambda name, version, copy: copies.append(copy))
    traffic.start()
    watcher = traffic.watcher("news", "1", ["bad", "good"])
    language = traffic.watcher("novel", "1")
    assert watcher is not None
    assert language is not None
    watcher.observe(job(outputs={"logits": np.array([[0.0, 2.0]])}, arrays={"x": np.ones(1)}), request_id="a")
    watcher.observe(job(error=OverloadedError("full")), request_id="b")
    watcher.observe(job(outputs={"logits": np.zeros((2, 2))}, num_rows=2, is_cancelled=True), request_id="c")
    language.observe(
        GenerationJob("Tell me a secret", 5, lambda chunk: None, lambda job: None, 0, num_tokens=5), request_id="d"
    )
    copies[0].outputs = {"logits": np.array([[0.0, 1.0]])}
    copies[0].done(copies[0])
    traffic.feedback("news", "a", 1.0)
    until(lambda: traffic.recorder is not None and traffic.recorder.num_lines == 6)
    traffic.close()
    text = (tmp_path / "r.jsonl").read_text()
    assert "secret" not in text
    found = sorted((json.loads(line) for line in text.splitlines()), key=lambda line: (line["kind"], line["id"]))
    for line in found:
        assert abs(line.pop("time") - time.time()) < 60
    base = {
        "kind": "request",
        "model": "news",
        "version": "1",
        "arm": "control",
        "rows": 1,
        "queue_ms": 1.0,
        "duration_ms": 3.0,
    }
    assert found == [
        {"kind": "feedback", "id": "a", "model": "news", "version": "1", "score": 1.0},
        base | {"id": "a", "status": "ok", "label": "good", "score": 0.880797},
        base | {"id": "b", "status": "queue_full"},
        base | {"id": "c", "status": "cancelled", "rows": 2, "labels": ["bad", "bad"], "scores": [0.5, 0.5]},
        base | {"id": "d", "status": "ok", "model": "novel", "arm": "only", "tokens": 5}
        | {"queue_ms": 0.0, "duration_ms": 0.0},
        {"kind": "shadow", "id": "a", "model": "news", "version": "3", "arm": "shadow", "status": "ok"}
        | {"agrees": True, "max_abs_difference": 1.0, "cosine": 1.0},
    ]  # fmt: skip
    assert len(copies) == 1  # neither the failed nor the cancelled one was copied


def test_the_shadows_own_answers_are_not_copied_to_it() -> None:
    traffic = Traffic(shadows={"news": "2"})
    traffic.attach(lambda name, version, copy: pytest.fail("it was copied"))
    watcher = traffic.watcher("news", "2")
    assert watcher is not None
    watcher.observe(job(outputs={"logits": np.zeros((1, 2))}))


def test_models_without_any_traffic_cost_nothing() -> None:
    traffic = Traffic(SPLIT)
    assert traffic.watcher("other", "1") is None
    assert traffic.choose("other", "key") is None
    assert traffic.report("other", "1") is None


def test_comparison_goes_on_in_the_background() -> None:
    traffic = Traffic(SPLIT, seed=0)
    traffic.start()
    for number in range(400):
        version = traffic.choose("news") or ""
        bad = refusal(EngineFailedError("broken"), "")
        traffic.observe("news", version, bad if version == "2" else Outcome(f"r{number}", True, 1))
    until(lambda: "2" in traffic.models["news"].stopped)
    traffic.close()
    traffic.close()


def test_metrics_are_what_prometheus_reads() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    traffic = Traffic(SPLIT, {"old": "1"}, seed=0)
    serve(traffic, 1500, {"1": 0.01, "2": 0.2})
    registry = CollectorRegistry()
    registry.register(traffic)  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["edgesmith_canary_stopped", "2", "news"] == 1
    assert samples["edgesmith_traffic_share", "2", "news"] == 0
    assert samples["edgesmith_canary_state", "2", "news", "regression"] == 1
    assert samples["edgesmith_canary_harm_low", "2", "failure", "news"] > 0.005
    assert samples["edgesmith_shadow_copies_total", "1", "old", "same"] == 0


class Asked:
    """A request that holds what it is answered."""

    def __init__(self, body: Any, **params: str) -> None:
        self.body = json.dumps(body).encode()
        self.params = params
        self.answer: Any = None

    def respond(self, response: Any) -> None:
        self.answer = json.loads(response.body)


def ask(traffic: Traffic, method: str, path: str, body: Any = None) -> Any:
    handler = next(
        route.handler
        for route in routes(traffic, Limits())
        if (route.method, route.pattern.split("/")[-1]) == (method, path)
    )
    request = Asked(body, model="news")
    handler(request)  # type: ignore[arg-type]
    return request.answer


def test_feedback_route_joins_by_the_id() -> None:
    traffic = Traffic(SPLIT)
    traffic.observe("news", "2", Outcome("r1", True, 1))
    assert ask(traffic, "POST", "feedback", {"id": "r1", "correct": False}) == {"id": "r1", "version": "2"}
    with pytest.raises(ModelNotFoundError, match="no request 'r1' to news waits for feedback"):
        ask(traffic, "POST", "feedback", {"id": "r1", "score": 0.5})


@pytest.mark.parametrize(
    "body",
    [[], {}, {"id": 3, "correct": True}, {"id": "r"}, {"id": "r", "correct": 1}, {"id": "r", "score": 1.5},
     {"id": "r", "score": True}, {"id": "r", "score": 0.5, "correct": True}, {"id": "r", "correct": True, "text": "x"}],
)  # fmt: skip
def test_feedback_that_says_nothing_clear_is_refused(body: Any) -> None:
    with pytest.raises(MalformedError):
        ask(Traffic(SPLIT), "POST", "feedback", body)


def test_shares_are_shown_and_changed_by_their_route() -> None:
    traffic = Traffic(SPLIT)
    assert ask(traffic, "GET", "traffic")["versions"]["2"]["share"] == pytest.approx(0.2)
    assert ask(traffic, "POST", "traffic", {"weights": {"1": 1, "2": 1}})["versions"]["2"]["share"] == 0.5
    with pytest.raises(UsageError, match="news has no version '3'; it has 1, 2"):
        ask(traffic, "POST", "traffic", {"weights": {"3": 1}})
    with pytest.raises(MalformedError, match="no weights"):
        ask(traffic, "POST", "traffic", {"weights": [1]})
    access = {(route.method, route.pattern.split("/")[-1]): route.access for route in routes(traffic, Limits())}
    assert access == {("POST", "feedback"): "user", ("GET", "traffic"): "user", ("POST", "traffic"): "admin"}


@pytest.mark.parametrize(
    "values",
    [{"alpha": 0}, {"alpha": 0.5}, {"failure_margin": -0.1}, {"slo_ms": 0}, {"shadow_share": 2}, {"max_recent": 0}],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        TrafficSettings(**values)  # type: ignore[arg-type]


def test_large_logits_are_not_kept() -> None:
    assert outcome_of(job(outputs={"logits": np.zeros((2, 600))}), "r").logits is None
    assert outcome_of(job(outputs={"logits": np.zeros((2, 500))}), "r").logits is not None


def test_of_each_key_one_request_is_compared_and_all_are_counted() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(slo_ms=1))
    watcher = traffic.watcher("news", "2")
    assert watcher is not None
    for key in ("ann", "ann", "bob", "ann", None, None):
        watcher.observe(job(outputs={}), key=key)
    traffic.observe("news", "2", refusal(EngineFailedError("broken"), "", key="ann"))
    traffic.observe("news", "2", refusal(UsageError("no such input"), "", key="eve"))
    watcher.observe(job(outputs={}), key="eve")  # what was spoiled did not stand for her
    arm = traffic.models["news"].arms["2"]
    assert (arm.answers.num, arm.answers.total, arm.slow.total) == (5, 0, 5)
    assert (arm.num_requests, arm.num_failed, arm.num_slow) == (9, 1, 8)
    report = traffic.report("news", "2")
    assert report is not None
    assert (report["requests"], report["compared"], report["failures"]) == (9, 5, 1)


def test_feedback_of_a_key_is_compared_once() -> None:
    traffic = Traffic(SPLIT)
    watcher = traffic.watcher("news", "2")
    assert watcher is not None
    for number in range(4):
        watcher.observe(job(outputs={}), request_id=f"r{number}", key="ann" if number < 3 else None)
        assert traffic.feedback("news", f"r{number}", 0.0) == "2"
    assert traffic.models["news"].arms["2"].feedback.num == 2


def test_no_more_keys_are_remembered_than_are_allowed() -> None:
    units = Units(2)
    assert [units.is_new(unit) for unit in (1, 2, 1, 3, 1, 2)] == [True, True, False, True, False, True]


def test_a_few_large_clients_do_not_stop_a_version_that_is_no_worse() -> None:
    """Most requests of one version are of a client whose texts are slow, as chance will have it."""
    traffic = Traffic({"news": {"1": 1, "2": 1}}, settings=TrafficSettings(slo_ms=50))
    slow, fast = job(outputs={}, finished_ns=90_000_000), job(outputs={})
    watchers = {version: traffic.watcher("news", version) for version in ("1", "2")}
    for number in range(3000):
        for version, watcher in watchers.items():
            assert watcher is not None
            is_large = version == "2" and number % 2
            watcher.observe(slow if is_large else fast, key="large" if is_large else f"{version} {number % 50}")
    traffic.models["news"].judge()
    assert not traffic.models["news"].stopped


def test_a_deadline_that_the_client_set_is_not_the_versions_fault() -> None:
    own = outcome_of(job(error=DeadlineError("late"), is_own_deadline=True), "r")
    ours = outcome_of(job(error=DeadlineError("late")), "r")
    broken = outcome_of(job(error=EngineFailedError("broken"), is_own_deadline=True), "r")
    assert [one.is_fault for one in (own, ours, broken)] == [False, True, True]
    assert not own.is_evidence


def test_long_ids_are_neither_remembered_nor_recorded_whole(tmp_path: Path) -> None:
    traffic = Traffic(SPLIT, record_to=tmp_path / "r.jsonl")
    watcher = traffic.watcher("news", "1")
    assert watcher is not None
    for length in (128, 129, 1 << 21):
        watcher.observe(job(outputs={}), request_id="x" * length)
    traffic.close()
    ids = [json.loads(line)["id"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [len(one) for one in ids] == [128, 129, 129]
    assert list(traffic._recent) == ["x" * 128]


def test_an_id_that_is_given_again_is_as_fresh_as_the_last() -> None:
    traffic = Traffic(SPLIT, settings=TrafficSettings(max_recent=2))
    for request_id in ("a", "b", "a", "c"):
        traffic.observe("news", "2", Outcome(request_id, True, 1))
    assert traffic.feedback("news", "b", 1.0) is None
    assert traffic.feedback("news", "a", 1.0) == "2"


def test_a_version_that_was_left_out_can_come_back() -> None:
    traffic = Traffic(SPLIT, {"news": "3"})
    traffic.check(lambda name: ["1", "2", "3"])
    assert set(ask(traffic, "POST", "traffic", {"weights": {"1": 100}})["versions"]) == {"1", "3"}
    assert ask(traffic, "POST", "traffic", {"weights": {"1": 95, "2": 5}})["versions"]["2"]["share"] == 0.05
    told = ask(traffic, "POST", "traffic", {"weights": {"1": 1, "2": 0}})["versions"]
    assert (told["1"]["share"], told["2"]["share"]) == (1.0, 0.0)
    assert traffic.choose("news", "key") == "1"
    for weights, fault in (({"1": 1, "4": 1}, "no version '4'"), ({"1": 1, "3": 1}, "is a shadow")):
        with pytest.raises(UsageError, match=fault):
            ask(traffic, "POST", "traffic", {"weights": weights})
    with pytest.raises(UsageError, match="add up to"):
        ask(traffic, "POST", "traffic", {"weights": {"1": 1e308, "2": 1e308}})
    assert traffic.choose("news", "key") == "1"
