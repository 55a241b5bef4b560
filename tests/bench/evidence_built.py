"""Evidence with chosen figures, for gates: what would take long to measure on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.duet.duet import Duet
from bench.gates.judge import Evidence, Subject
from bench.histogram import Histogram
from bench.load.result import Failure, LoadResult
from bench.load.schedule import constant
from bench.machine.conditions import Conditions
from bench.machine.machine import Machine, describe_machine
from bench.scenarios.latency import Latency
from bench.scenarios.start import Process, Start
from bench.scenarios.throughput import Throughput
from bench.sizes.footprint import Footprint
from edgesmith.tasks import Example, get_task

MACHINE = replace(describe_machine(), load_1min=0.1, cpu_pressure_10s=0.0)


def subject(name: str, model_bytes: int = 23_000_000) -> Subject:
    return Subject(name=name, digest=f"sha256:{name}", model_bytes=model_bytes, total_bytes=model_bytes + 700_000)


def evaluation(right: list[bool], *, of: str = "int8", data: str = "sha256:data") -> Evaluation:
    """Two classes; every example is of class 0."""
    predicted = [0 if is_right else 1 for is_right in right]
    labels = ("no", "yes")
    return Evaluation(
        task="text-classification",
        engine="onnxruntime",
        artifact_digest=f"sha256:{of}",
        data_digest=data,
        batch_size=1,
        metrics={"accuracy": float(np.mean(right)), "mcc": 0.0},
        default_metric="accuracy",
        higher_is_better={"accuracy": True, "mcc": True},
        labels=labels,
        lines=tuple(range(1, len(right) + 1)),
        targets=(0,) * len(right),
        predictions=tuple({"label": labels[index], "index": index, "score": 0.9} for index in predicted),
        scores={"accuracy": np.array(right, dtype=np.float64)},
        seconds=1.0,
    )


def pair(num_examples: int, num_lost: int, num_gained: int, num_wrong: int = 0) -> tuple[Evaluation, Evaluation]:
    """Evaluations of artifact and baseline that disagree so often, with `num_wrong` examples both get wrong."""
    num_rest = num_examples - num_lost - num_gained - num_wrong
    ours = [False] * num_lost + [True] * num_gained + [False] * num_wrong + [True] * num_rest
    theirs = [True] * num_lost + [False] * num_gained + [False] * num_wrong + [True] * num_rest
    return evaluation(ours), evaluation(theirs, of="fp32")


def rare_pair(targets: list[int], lost: list[bool]) -> tuple[Evaluation, Evaluation]:
    """Evaluations of four classes without scores an example: the baseline is right, the artifact but for `lost`."""
    compute = get_task("text-classification").metrics
    names = ("f1_macro", "precision_macro", "recall_macro", "mcc")
    examples = [Example("x", None, target) for target in targets]

    def of(artifact: str, answers: list[int]) -> Evaluation:
        predictions = tuple({"label": "abcd"[index], "index": index, "score": 0.9} for index in answers)
        return replace(
            evaluation([True] * len(targets), of=artifact),
            metrics={name: compute[name].compute(predictions, examples) for name in names},
            default_metric="f1_macro",
            higher_is_better=dict.fromkeys(names, True),
            labels=tuple("abcd"),
            targets=tuple(targets),
            predictions=predictions,
            scores={},
        )

    answers = [(target + 1) % 4 if is_lost else target for target, is_lost in zip(targets, lost, strict=True)]
    return of("int8", answers), of("fp32", targets)


def probabilities(rows: list[list[float]], *, of: str = "int8") -> Evaluation:
    """Two classes with these probabilities; every example is of class 0."""
    whole = evaluation([row[0] >= row[1] for row in rows], of=of)
    predictions = tuple(
        {"label": "no" if row[0] >= row[1] else "yes", "index": int(row[0] < row[1]), "score": max(row)}
        | {"scores": {"no": row[0], "yes": row[1]}}
        for row in rows
    )
    return replace(whole, predictions=predictions)


def named(cpu: str) -> Machine:
    """A machine of that processor."""
    return replace(MACHINE, cpu=cpu)


def conditions(**parts: object) -> Conditions:
    """A quiet machine, but for the parts given."""
    quiet = Conditions(
        seconds=20.0,
        cpu_pressure_share=0.0,
        steal_share=0.0,
        others_share=0.0,
        governor="performance",
        load_before=0.1,
        load_after=0.2,
        num_throttled=0,
    )
    return replace(quiet, **parts)  # type: ignore[arg-type]


def latency(
    wall_ms: list[float],
    *,
    cpu_share: float = 1.0,
    is_settled: bool = True,
    rate: float | None = None,
    machine: Machine = MACHINE,
    is_busy: bool = False,
) -> Latency:
    """Closed loop, or open loop at a rate without any queue."""
    wall_ns = np.round(np.array(wall_ms, dtype=np.float64) * 1e6).astype(np.int64)
    is_open = rate is not None
    return Latency(
        scenario="server" if is_open else "single",
        engine="onnxruntime",
        artifact_digest="sha256:int8",
        inputs="1×128 tokens of real text",
        wall_ns=wall_ns,
        cpu_ns=np.round(wall_ns * cpu_share).astype(np.int64),
        start_ns=np.arange(len(wall_ns), dtype=np.int64) * 20_000_000,
        service_ns=wall_ns if is_open else None,
        num_warm_up=48,
        is_settled=is_settled,
        machine=machine,
        load_after=0.2,
        rate=rate,
        rate_source="asked for" if is_open else None,
        capacity=100.0 if is_open else None,
        conditions=conditions(cpu_pressure_share=0.5) if is_busy else conditions(),
    )


def throughput(
    seconds: list[float], *, machine: Machine = MACHINE, is_settled: bool = True, is_busy: bool = False
) -> Throughput:
    """Rounds of 100 examples."""
    return Throughput(
        engine="onnxruntime",
        artifact_digest="sha256:int8",
        inputs="100 real texts",
        batch_size=32,
        num_examples=100,
        round_seconds=tuple(seconds),
        round_cpu_seconds=tuple(seconds),
        is_settled=is_settled,
        threads=1,
        machine=machine,
        conditions=conditions(steal_share=0.5) if is_busy else conditions(),
    )


def start(
    cold_ms: float = 300.0,
    peak_mb: float = 120.0,
    *,
    machine: Machine = MACHINE,
    num_starts: int = 7,
    spread_ms: float = 0.0,
    spread_mb: float = 0.0,
) -> Start:
    """Fresh processes whose times are evenly spread around `cold_ms`; the one that takes most memory `peak_mb`."""
    shares = np.linspace(-0.5, 0.5, num_starts) if num_starts > 1 else np.zeros(1)
    return Start(
        engine="onnxruntime",
        artifact_digest="sha256:int8",
        threads=1,
        processes=tuple(
            Process(
                first_answer_ms=cold_ms + float(share) * spread_ms,
                startup_ms=100.0,
                verify_ms=20.0,
                load_ms=cold_ms - 130.0,
                first_run_ms=10.0,
                startup_cpu_ms=90.0,
                peak_rss_bytes=round((peak_mb - (0.5 - float(share)) * spread_mb) * 1e6),
            )
            for share in shares
        ),
        is_cache_cold=True,
        machine=machine,
        conditions=conditions(),
    )


def footprint(download_bytes: int = 15_000_000) -> Footprint:
    return Footprint(
        artifact_digest="sha256:int8",
        model_bytes=23_000_000,
        total_bytes=23_700_000,
        download_bytes=download_bytes,
        compression="zstd -9",
    )


def load(
    wall_ms: list[float],
    *,
    num_failed: int = 0,
    rate: float = 50.0,
    lag_ms: float = 0.1,
    machine: Machine = MACHINE,
    is_complete: bool = True,
) -> LoadResult:
    """A load test whose first `num_failed` requests timed out."""
    wall_ns = np.round(np.array(wall_ms, dtype=np.float64) * 1e6).astype(np.int64)
    n = len(wall_ns)
    outcome = np.array([1] * num_failed + [0] * (n - num_failed), dtype=np.int64)
    lag_ns = np.full(n, round(lag_ms * 1e6), dtype=np.int64)
    histogram, lags = Histogram(), Histogram()
    histogram.record_many(wall_ns[outcome == 0])
    lags.record_many(lag_ns)
    return LoadResult(
        url="http://127.0.0.1:8000/v2/models/news",
        protocol="oip",
        payload="100 real texts",
        server={},
        shape=constant(rate, max(n, 1) / rate),
        seed=0,
        num_workers=1,
        timeout_s=30.0,
        limit_ms=None,
        limit_percentile=99.0,
        start_ns=np.arange(n, dtype=np.int64) * round(1e9 / rate),
        wall_ns=wall_ns,
        lag_ns=lag_ns,
        outcome=outcome,
        ttft_ns=None,
        num_tokens=None,
        itl_ns=None,
        failures=(Failure(name="time-out", count=num_failed, sample="30 s"),) if num_failed else (),
        histogram=histogram,
        lag_histogram=lags,
        num_requests=n,
        num_not_sent=0,
        client_cpu_us=200.0,
        max_in_flight=3,
        num_connections=4,
        is_complete=is_complete,
        stopped_because="" if is_complete else "a worker was lost",
        notes=(),
        machine=machine,
        conditions=conditions(),
    )


def duet(
    ratio: float,
    *,
    noise: float = 0.01,
    num_sessions: int = 12,
    session_pairs: int = 5,
    is_settled: bool = True,
    machine: Machine = MACHINE,
    bias: float = 0.0,
) -> Duet:
    """Turns of a baseline that takes `ratio` times as long, and of its twin that takes 1 + `bias` times as long."""
    rng = np.random.default_rng(0)
    n = num_sessions * session_pairs

    def turns(factor: float) -> NDArray[np.int64]:
        return np.round(8e7 * factor * np.exp(rng.normal(0, noise, n))).astype(np.int64)

    artifact, baseline, twin = turns(1.0), turns(ratio), turns(ratio * (1 + bias))
    return Duet(
        baseline_digest="sha256:fp32",
        artifact_digest="sha256:int8",
        inputs="1×128 tokens of real text",
        turn_requests=8,
        baseline_cpu_ns=baseline,
        twin_cpu_ns=twin,
        artifact_cpu_ns=artifact,
        baseline_wall_ns=baseline,
        twin_wall_ns=twin,
        artifact_wall_ns=artifact,
        session=np.repeat(np.arange(num_sessions, dtype=np.int64), session_pairs),
        overhead_cpu_ns=2000,
        overhead_wall_ns=2000,
        is_settled=is_settled,
        machine=machine,
        conditions=conditions(),
    )


def evidence(**parts: object) -> Evidence:
    """Evidence of `int8` against `fp32`, with the parts given."""
    whole = Evidence(artifact=subject("int8"), baseline=subject("fp32", 90_900_000))
    return replace(whole, **parts)  # type: ignore[arg-type]
