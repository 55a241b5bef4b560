from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from edgesmith.errors import UsageError
from edgesmith.tasks import Task
from serve.drift import DriftMonitor, DriftSettings, Reference, drift_families, make_reference, make_text_reference
from serve.drift.features import given_values, log_shares
from serve.drift.making import _describe, _Vocabulary
from serve.drift.windows import Window, look_at
from serve.models.job import GenerationJob, Job
from serve.runtime import Engine
from tests.serve.drift.conftest import NUM_REFERENCE

STEP_NS = 1_200_000_000
SETTINGS = DriftSettings(window_rows=240, max_window_rows=300)
"""With that step, windows of 240 to 250 rows."""


class Served:
    """A monitor, and jobs that a real engine answered, on a clock of its own."""

    def __init__(self, engine: Engine, task: Task, reference: Reference, settings: DriftSettings = SETTINGS) -> None:
        self.engine, self.task = engine, task
        self.now_ns = 1
        self.monitor = DriftMonitor(reference, task, settings=settings, clock_ns=lambda: self.now_ns)

    def answer(self, texts: Sequence[str], bias: Sequence[float] = (), scale: float = 1.0) -> None:
        for begin in range(0, len(texts), 16):
            arrays = self.task.encode(texts[begin : begin + 16])
            outputs = self.engine.run(arrays)
            if "logits" in outputs:
                outputs = {"logits": outputs["logits"] * scale + np.array(bias or 0.0, np.float32)}
            for row in range(len(arrays["input_ids"])):
                self.now_ns += STEP_NS
                one = {name: array[row : row + 1] for name, array in arrays.items()}
                own = {name: array[row : row + 1] for name, array in outputs.items()}
                self.monitor.observe(Job(one, lambda job: None, 1, 0, finished_ns=self.now_ns, outputs=own))
                self.monitor.work()

    def alarms(self) -> set[str]:
        return {one["name"] for one in self.monitor.report()["features"] if one["state"] == "alarm"}


def test_more_of_the_same_is_no_alarm(classifier: tuple[Engine, Task], reference: Reference, news: list[str]) -> None:
    served = Served(*classifier, reference)
    served.answer(news[NUM_REFERENCE : NUM_REFERENCE + 1500])
    report = served.monitor.report()
    assert report["windows"] >= 5
    assert (report["state"], report["alarms"], report["since"]) == ("ok", 0, None)
    for feature in report["features"]:
        assert feature["statistic"] < feature["threshold"]
        assert sum(feature["reference"]) == pytest.approx(1) == sum(feature["window"])


def test_other_text_is_an_alarm_and_the_usual_text_ends_it(
    classifier: tuple[Engine, Task], reference: Reference, news: list[str], manual: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    served = Served(*classifier, reference)
    served.answer(manual[:260])
    assert served.monitor.state == "alarm"
    assert "surprise" in served.alarms()
    assert "what is asked or answered has changed" in caplog.text
    since = served.monitor.report()["since"]
    assert abs(since - time.time()) < 60
    served.answer(manual[260:600])
    assert served.monitor.report()["since"] == since
    served.answer(news[NUM_REFERENCE + 100 : NUM_REFERENCE + 700])
    assert (served.monitor.state, served.monitor.report()["since"]) == ("ok", None)
    assert served.monitor.num_alarms >= 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"bias": (0.0, 15.0, 0.0)}, "label"), ({"scale": 0.3}, "confidence")],
)
def test_other_answers_to_the_same_text_are_an_alarm(
    classifier: tuple[Engine, Task], reference: Reference, news: list[str], changes: dict[str, Any], expected: str
) -> None:
    served = Served(*classifier, reference)
    served.answer(news[NUM_REFERENCE : NUM_REFERENCE + 260], **changes)
    assert expected in served.alarms()
    assert not {"length", "surprise", "token", "unknown"} & served.alarms()


def test_unknown_characters_are_an_alarm(
    classifier: tuple[Engine, Task], reference: Reference, news: list[str]
) -> None:
    served = Served(*classifier, reference)
    served.answer([f"{text} ⚙ ⚙" for text in news[NUM_REFERENCE : NUM_REFERENCE + 260]])
    assert "unknown" in served.alarms()


def test_embeddings_of_other_text_are_an_alarm(
    embedder: tuple[Engine, Task], news: list[str], manual: list[str]
) -> None:
    made = make_reference(*embedder, news[:NUM_REFERENCE])
    served = Served(*embedder, made)
    served.answer(news[NUM_REFERENCE : NUM_REFERENCE + 700])
    assert (served.monitor.state, served.monitor.num_alarms) == ("ok", 0)
    served.answer(manual[:600])
    assert any(name.startswith(("norm", "direction")) for name in served.alarms())


def test_prompts_of_a_language_model_are_watched(news: list[str], manual: list[str]) -> None:
    def tokenize(text: str) -> list[int]:
        return [hash_ for word in text.split() for hash_ in [sum(map(ord, word)) % 5000]]

    now_ns = 1
    monitor = DriftMonitor(
        make_text_reference(tokenize, news[:NUM_REFERENCE]),
        tokenize=tokenize,
        settings=SETTINGS,
        clock_ns=lambda: now_ns,
    )
    for texts, state in ((news[NUM_REFERENCE : NUM_REFERENCE + 400], "ok"), (manual[:600], "alarm")):
        for text in texts:
            now_ns += STEP_NS
            monitor.observe(GenerationJob(text, 1, lambda chunk: None, lambda job: None, 0, finished_ns=now_ns))
            monitor.work()
        assert monitor.state == state


def test_false_alarms_within_a_day_come_no_oftener_than_is_said(reference: Reference) -> None:
    """Days of windows, rows drawn from one distribution, reference included; alpha is large to be seen at all."""
    settings = DriftSettings(alpha_per_day=0.3, first_window_s=4320.0, window_s=4320.0)
    assert settings.windows_per_day == 20
    rng = np.random.default_rng(0)
    shares = {feature.name: np.array(feature.counts) / reference.num_rows for feature in reference.features}
    num_days, days_with_alarm = 60, 0
    for _ in range(num_days):
        drawn = reference.model_copy(
            update={
                "features": tuple(
                    one.model_copy(update={"counts": tuple(rng.multinomial(500, shares[one.name]).tolist())})
                    for one in reference.features
                )
            }
        )
        has_alarm = False
        for _ in range(settings.windows_per_day):
            window = Window(drawn)
            window.num_rows = 300
            window.counts = {name: rng.multinomial(300, share).tolist() for name, share in shares.items()}
            has_alarm |= any(look.state == "alarm" for look in look_at(window, drawn, settings))
        days_with_alarm += has_alarm
    # 18 would be as said, 3.5 the standard deviation.
    assert days_with_alarm <= 29


@pytest.mark.parametrize(
    ("kind", "num_reference", "num_window"), [("zipf", 300, 2000), ("flat", 300, 300), ("flat", 100, 2000)]
)
def test_a_reference_made_anew_each_time_differs_no_oftener_than_is_said(
    kind: str, num_reference: int, num_window: int
) -> None:
    """Rows of one distribution, through the whole making: what it chooses by looking at its rows is in the figures."""
    rng = np.random.default_rng(7)
    shares = np.cumsum(1 / np.arange(1, 5001) if kind == "zipf" else np.ones(5000))

    def drawn(num: int) -> tuple[list[Any], Any]:
        lengths = rng.integers(5, 40, num)
        tokens = np.searchsorted(shares / shares[-1], rng.random(lengths.sum()))
        return np.split(tokens, np.cumsum(lengths)[:-1]), rng.normal(size=num)

    num_trials, level = 24, 0.01
    p_values: dict[str, list[float]] = {}
    for _ in range(num_trials):
        rows, confidences = drawn(num_reference)
        made = _describe(rows, [{"confidence": one, "label": one * 30 // 1} for one in confidences],
                         _Vocabulary(ignored=np.zeros(0, np.int64), unknown_id=None), "logits", ())  # fmt: skip
        window, logs = Window(made), log_shares(made.bucket_counts)
        rows, confidences = drawn(num_window)
        for row, one in zip(rows, confidences, strict=True):
            values = given_values(
                row, ignored=made.ignored, unknown_id=None, logs=logs, draw=random.Random(int(row[0]))
            )
            window.add(values | {"confidence": one, "label": one * 30 // 1})
        for look in look_at(window, made, DriftSettings()):
            p_values.setdefault(look.feature.name, []).append(look.difference.p_value)
    assert {"length", "surprise", "token", "label", "confidence"} == set(p_values)
    for name, found in p_values.items():
        # 0.24 are expected of 24; more than 4 come less than once in a hundred thousand times.
        assert sum(p_value <= level for p_value in found) <= 4, (name, sorted(found)[:6])
        assert min(found) > 1e-6, name


def test_few_rows_are_no_verdict(classifier: tuple[Engine, Task], reference: Reference, manual: list[str]) -> None:
    served = Served(*classifier, reference)
    served.answer(manual[:100])
    report = served.monitor.report()
    assert (report["state"], report["windows"], report["window"]["rows"]) == ("too few", 0, 100)


def test_a_burst_is_looked_at_as_a_sample(classifier: tuple[Engine, Task], reference: Reference) -> None:
    engine, task = classifier
    monitor = DriftMonitor(reference, task, clock_ns=lambda: 1)
    arrays = task.encode(["A late goal won the cup."] * 3)
    outputs = engine.run(arrays)
    for number in range(1000):  # a second of 1,000 requests
        job = Job(arrays, lambda job: None, 3, 0, finished_ns=1 + number * 1_000_000, outputs=outputs)
        monitor.observe(job)
        monitor.work()
    assert monitor.num_rows == 200


def test_what_cannot_be_read_is_counted_and_does_no_harm(classifier: tuple[Engine, Task], reference: Reference) -> None:
    monitor = DriftMonitor(reference, classifier[1], clock_ns=lambda: 1)
    arrays = classifier[1].encode(["Shares fell."])
    strange: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"x": np.zeros((1, 4))}, {"y": np.zeros((1, 3))}),
        (arrays, {"logits": np.zeros((1, 7), np.float32)}),
        (arrays, {"logits": np.full((1, 3), np.nan, np.float32)}),
        (arrays, None),
    ]
    for number, (given, outputs) in enumerate(strange):
        monitor.observe(Job(given, lambda job: None, 1, 0, finished_ns=1 + number * 10**9, outputs=outputs))
        monitor.work()
    monitor.observe(Job(arrays, lambda job: None, 1, 0, finished_ns=10**12, error=UsageError("no")))
    monitor.work()
    assert (monitor.num_unread, monitor.num_rows) == (3, 0)


def test_the_thread_does_the_work(classifier: tuple[Engine, Task], reference: Reference) -> None:
    engine, task = classifier
    monitor = DriftMonitor(reference, task)
    monitor.start()
    arrays = task.encode(["Shares fell."])
    monitor.observe(Job(arrays, lambda job: None, 1, 0, finished_ns=time.monotonic_ns(), outputs=engine.run(arrays)))
    monitor.close(timeout_s=20)
    monitor.close()
    assert monitor.num_rows == 1


def test_windows_of_a_day_share_its_alpha() -> None:
    settings = DriftSettings()
    assert settings.windows_per_day == 292
    assert settings.alpha_per_window * settings.windows_per_day == pytest.approx(settings.alpha_per_day)
    assert [settings.shortest_s(index) for index in (0, 1, 4, 5, 10**6)] == [10, 20, 160, 300, 300]


@pytest.mark.parametrize(
    "values",
    [{"alpha_per_day": 0}, {"window_rows": 5}, {"window_rows": 3000}, {"first_window_s": 0}, {"first_window_s": 301}],
)
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        DriftSettings(**values)  # type: ignore[arg-type]


def test_metrics_name_the_features_in_alarm(
    classifier: tuple[Engine, Task], reference: Reference, manual: list[str]
) -> None:
    served = Served(*classifier, reference)
    served.answer(manual[:260])

    class Collector:
        def collect(self) -> Any:
            return drift_families([("news", "1", served.monitor)])

    registry = CollectorRegistry()
    registry.register(Collector())
    text = generate_latest(registry).decode()
    assert 'edgesmith_drift_alarm{feature="surprise",model="news",version="1"} 1.0' in text
    assert 'edgesmith_drift_windows_total{model="news",version="1"} 1.0' in text


def test_what_waits_holds_one_row_and_not_its_batch(classifier: tuple[Engine, Task], reference: Reference) -> None:
    monitor = DriftMonitor(reference, classifier[1], clock_ns=lambda: 1)
    given: dict[str, Any] = {"input_ids": np.ones((64, 128), np.int64)}
    outputs: dict[str, Any] = {"logits": np.ones((64, 3), np.float32), "other": np.array(3.0), "pooled": np.ones(3)}
    image: dict[str, Any] = {"pixels": np.zeros((1, 1 << 22), np.float32)}
    for number, arrays in enumerate((given, image)):
        job = Job(arrays, lambda job: None, len(next(iter(arrays.values()))), 0, outputs=outputs)
        job.finished_ns = 1 + number * 10**9
        monitor.observe(job)
    held = [array for seen, _ in monitor._seen for arrays in seen for array in arrays.values()]  # type: ignore[union-attr]
    assert all(array.base is None for array in held)
    assert sum(array.nbytes for array in held) == 128 * 8 + 3 * 4
    monitor.work()
    assert (monitor.num_rows, monitor.num_unread) == (1, 1)


def test_closing_does_not_wait_for_what_the_thread_is_at(classifier: tuple[Engine, Task], reference: Reference) -> None:
    is_at_work, may_end = threading.Event(), threading.Event()

    def tokenize(text: str) -> list[int]:
        is_at_work.set()
        assert may_end.wait(20)
        return [1, 2, 3]

    monitor = DriftMonitor(reference, tokenize=tokenize)
    monitor.start()
    monitor.observe(GenerationJob("a", 1, lambda chunk: None, lambda job: None, 0, finished_ns=time.monotonic_ns()))
    assert is_at_work.wait(20)
    monitor.close()  # would never come back if it waited: the thread is let go afterwards
    assert monitor.num_rows == 0
    may_end.set()
    monitor.close(timeout_s=20)
    assert monitor.num_rows == 1
