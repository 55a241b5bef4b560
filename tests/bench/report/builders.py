"""A whole release with chosen figures: every kind of evidence that a report can show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import Evaluation
from bench.duet.duet import Duet
from bench.gates.judge import Evidence, Subject, judge
from bench.gates.verdict import Outcome, Verdict
from bench.histogram import Histogram
from bench.load.result import Failure, LoadResult
from bench.load.schedule import Segment, Shape
from bench.machine.conditions import Conditions
from bench.machine.limits import Limits
from bench.machine.machine import Machine
from bench.machine.operations import Operations, OperatorTime
from bench.machine.peaks import MachinePeaks
from bench.report import Ancestor, LearningCurve, ModelStep, ReleaseReport, TargetReport
from bench.scenarios.generation import Generation
from bench.scenarios.latency import Latency
from bench.scenarios.start import Process, Start
from bench.scenarios.sweep import Sweep, SweepRow
from bench.scenarios.throughput import Throughput
from bench.sizes.footprint import Footprint
from bench.sizes.tensors import LargeTensor, TensorSizes
from edgesmith.gates import Gates

LABELS = ("business", "science", "sports", "world")
MACHINE = Machine(
    cpu="Example CPU @ 2.60GHz",
    architecture="x86_64",
    num_cpus=2,
    flags=("avx2", "fma", "avx512f", "avx512_vnni"),
    memory_mb=8192,
    governor="performance",
    load_1min=0.12,
    cpu_pressure_10s=0.4,
    system="Linux 6.1.0",
)
CONDITIONS = Conditions(
    seconds=15.2,
    cpu_pressure_share=0.018,
    steal_share=0.002,
    others_share=0.03,
    governor="performance",
    load_before=0.1,
    load_after=0.9,
    num_throttled=0,
)


def digest(name: str) -> str:
    return f"sha256:{name.encode().hex():0<64}"[:71]


def subject(name: str, model_mb: float) -> Subject:
    size = round(model_mb * 1e6)
    return Subject(name=name, digest=digest(name), model_bytes=size, total_bytes=size + 712_000)


def evaluation(of: str, num_examples: int = 1200, share_right: float = 0.94, seed: int = 0) -> Evaluation:
    """Four classes; models with different seeds err on mostly the same examples."""
    rng = np.random.default_rng(7)
    targets = rng.integers(0, len(LABELS), num_examples)
    hardness = rng.random(num_examples)
    jitter = np.random.default_rng(seed).normal(0, 0.004, num_examples)
    is_right = hardness + jitter < share_right
    answers = np.where(is_right, targets, (targets + 1 + (hardness * 1000).astype(int) % 3) % len(LABELS))
    accuracy = float((answers == targets).mean())
    return Evaluation(
        task="text-classification",
        engine="onnxruntime",
        artifact_digest=digest(of),
        data_digest="sha256:data",
        batch_size=8,
        metrics={"accuracy": accuracy, "mcc": 1 - 4 / 3 * (1 - accuracy)},
        default_metric="accuracy",
        higher_is_better={"accuracy": True, "mcc": True},
        labels=LABELS,
        lines=tuple(range(1, num_examples + 1)),
        targets=tuple(targets.tolist()),
        predictions=tuple({"label": LABELS[index], "index": index, "score": 0.9} for index in answers.tolist()),
        scores={"accuracy": (answers == targets).astype(np.float64)},
        seconds=3.0,
    )


def times_ms(middle: float, n: int, *, seed: int = 0, tail: float = 0.02) -> NDArray[np.float64]:
    """Times as an engine gives them: a narrow body and a few stalls."""
    rng = np.random.default_rng(seed)
    body = middle * np.exp(rng.normal(0, 0.05, n))
    return np.where(rng.random(n) < tail, body * (1 + rng.exponential(0.9, n)), body)


def latency(of: str, middle: float, *, n: int = 3000, seed: int = 0, rate: float | None = None) -> Latency:
    wall = np.round(times_ms(middle, n, seed=seed) * 1e6).astype(np.int64)
    queued = wall if rate is None else wall + np.round(times_ms(0.4, n, seed=seed + 9, tail=0.2) * 1e6).astype(np.int64)
    return Latency(
        scenario="single" if rate is None else "server",
        engine="onnxruntime",
        artifact_digest=digest(of),
        inputs="64 real texts of 11 to 97 tokens, median 53",
        wall_ns=queued,
        cpu_ns=np.round(wall * 0.985).astype(np.int64),
        start_ns=np.arange(n, dtype=np.int64) * 20_000_000,
        num_warm_up=48,
        is_settled=True,
        machine=MACHINE,
        load_after=0.9,
        service_ns=None if rate is None else wall,
        threads=1,
        overhead_ns=4100,
        rate=rate,
        rate_source=None if rate is None else "the gate",
        capacity=None if rate is None else 1000 / middle,
        conditions=CONDITIONS,
    )


def duet(of: str, ratio: float, *, num_sessions: int = 8, turns: int = 12, noise: float = 0.012) -> Duet:
    rng = np.random.default_rng(3)
    n = num_sessions * turns
    session = np.repeat(np.arange(num_sessions), turns)
    level = np.repeat(np.exp(rng.normal(0, 0.003, num_sessions)), turns)

    def turn(mean_ns: float) -> NDArray[np.int64]:
        return np.round(mean_ns * level * np.exp(rng.normal(0, noise, n))).astype(np.int64)

    artifact, baseline, twin = turn(3.52e7 / ratio), turn(3.52e7), turn(3.52e7)
    return Duet(
        baseline_digest=digest("fp32"),
        artifact_digest=digest(of),
        inputs="64 real texts of 11 to 97 tokens, median 53",
        turn_requests=8,
        baseline_cpu_ns=baseline,
        twin_cpu_ns=twin,
        artifact_cpu_ns=artifact,
        baseline_wall_ns=baseline + 90_000,
        twin_wall_ns=twin + 90_000,
        artifact_wall_ns=artifact + 90_000,
        session=session,
        overhead_cpu_ns=3100,
        overhead_wall_ns=3900,
        is_settled=True,
        machine=MACHINE,
        conditions=CONDITIONS,
    )


def start(of: str, load_ms: float, memory_mb: float) -> Start:
    return Start(
        engine="onnxruntime",
        artifact_digest=digest(of),
        threads=1,
        processes=tuple(
            Process(
                first_answer_ms=184.0 + load_ms * 7 / 6 + index,
                startup_ms=171.0 + index,
                verify_ms=load_ms / 6,
                load_ms=load_ms,
                first_run_ms=9.0,
                startup_cpu_ms=160.0,
                peak_rss_bytes=round(memory_mb * 1e6),
            )
            for index in range(7)
        ),
        is_cache_cold=True,
        machine=MACHINE,
        conditions=CONDITIONS,
    )


def throughput(of: str, rate: float) -> Throughput:
    rounds = tuple((512 / rate * np.exp(np.random.default_rng(1).normal(0, 0.01, 12))).tolist())
    return Throughput(
        engine="onnxruntime",
        artifact_digest=digest(of),
        inputs="512 real texts of 11 to 97 tokens in batches of 32, sorted by length",
        batch_size=32,
        num_examples=512,
        round_seconds=rounds,
        round_cpu_seconds=tuple(one * 0.99 for one in rounds),
        is_settled=True,
        threads=1,
        machine=MACHINE,
        conditions=CONDITIONS,
    )


def sweep(of: str) -> Sweep:
    rows = tuple(
        SweepRow(
            batch_size=batch,
            length=length,
            median_tokens=length or 53,
            cpu_ms=(length or 53) * 0.036 * (1 + 0.5 / batch),
            wall_p50_ms=batch * (length or 53) * 0.036 * (1 + 0.5 / batch),
            examples_per_second=1000 / ((length or 53) * 0.036 * (1 + 0.5 / batch)),
            num_requests=200,
            share=0.30 + 0.02 * np.log2(batch) + (length or 53) / 2000,
            bound_by="int8 arithmetic",
        )
        for batch in (1, 4, 16)
        for length in (None, 32, 128, 256)
        if (batch, length) != (16, 256)
    )
    left = ("16 × 256 tokens: the texts have too few tokens",)
    return Sweep(engine="onnxruntime", artifact_digest=digest(of), rows=rows, left_out=left, threads=1, machine=MACHINE)


def limits(of: str, measured_ms: float, *, is_int8: bool = True) -> Limits:
    macs = 564_000_000
    names = ("MatMulInteger", "Attention", "LayerNormalization", "Gelu", "DynamicQuantizeLinear", "Gather")
    shares = (0.61, 0.17, 0.09, 0.07, 0.05, 0.01)
    return Limits(
        artifact_digest=digest(of),
        inputs="64 real texts of 11 to 97 tokens, median 53",
        operations=Operations(
            fp32_macs=20_000_000 if is_int8 else macs,
            int8_macs=macs - 20_000_000 if is_int8 else 0,
            weight_bytes=10_800_000 if is_int8 else 43_000_000,
            io_bytes=1300,
        ),
        peaks=MachinePeaks(
            machine=MACHINE.name,
            threads=1,
            clock="CPU time",
            copy_gb_s=11.2,
            read_gb_s=13.9,
            reads=((1 << 20, 92.0), (1 << 25, 14.0)),
            fp32_gflop_s=98.0,
            int8_gop_s=410.0,
            library="onnxruntime 1.31.1",
        ),
        ideal_ms=0.38 * measured_ms,
        measured_ms=measured_ms,
        bound_by="int8 arithmetic" if is_int8 else "fp32 arithmetic",
        operators=tuple(
            OperatorTime(operator=name, share=share, ms=share * measured_ms, num_nodes=6 + index)
            for index, (name, share) in enumerate(zip(names, shares, strict=True))
        ),
    )


def load(of: str, middle: float, *, seconds: int = 30, rate: float = 60, stall_s: float = 2.0) -> LoadResult:
    """A server that stands still in the middle of the run: who comes then waits, and a few give up."""
    n = round(seconds * rate)
    rng = np.random.default_rng(11)
    start_ns = np.sort(rng.integers(0, seconds * 1_000_000_000, n))
    wall = times_ms(middle, n, seed=5) * 1e6
    stall_start, stall_end = 14e9, (14 + stall_s) * 1e9
    is_stalled = (start_ns > stall_start) & (start_ns < stall_end)
    wall = np.where(is_stalled, stall_end - start_ns + wall, wall)
    outcome = np.where(is_stalled & (np.arange(n) % 12 == 0), 1, 0)
    histogram, lag = Histogram(), Histogram()
    wall_ns = np.round(wall).astype(np.int64)
    histogram.record_many(wall_ns[outcome == 0])
    lag_ns = np.abs(rng.normal(60_000, 25_000, n)).astype(np.int64)
    lag.record_many(lag_ns)
    num_failed = int(outcome.sum())
    return LoadResult(
        url="http://127.0.0.1:8000/v2/models/news",
        protocol="oip",
        payload="1,000 real texts, one a request, as JSON",
        server={"name": "edgesmith"},
        shape=Shape(name="constant", segments=(Segment(seconds=seconds, start_rate=rate, end_rate=rate),)),
        seed=0,
        num_workers=1,
        timeout_s=30.0,
        limit_ms=30.0,
        limit_percentile=99.0,
        start_ns=start_ns,
        wall_ns=wall_ns,
        lag_ns=lag_ns,
        outcome=outcome,
        ttft_ns=None,
        num_tokens=None,
        itl_ns=None,
        failures=(Failure(name="http 503", count=num_failed, sample="503 Service Unavailable"),) if num_failed else (),
        histogram=histogram,
        lag_histogram=lag,
        num_requests=n,
        num_not_sent=0,
        client_cpu_us=310.0,
        max_in_flight=118,
        num_connections=120,
        is_complete=True,
        stopped_because="",
        notes=(),
        machine=MACHINE,
        conditions=CONDITIONS,
    )


def generation(of: str, per_token_ms: float) -> Generation:
    rng = np.random.default_rng(2)
    num_requests, num_tokens = 60, 24
    steps = rng.gamma(20, per_token_ms / 20, (num_requests, num_tokens))
    steps[:, 0] += 40
    return Generation(
        engine="llama.cpp",
        artifact_digest=digest(of),
        inputs="60 prompts of 12 to 80 tokens",
        max_tokens=num_tokens,
        prompt_tokens=rng.integers(12, 80, num_requests),
        cpu_ns=(steps.sum(axis=1) * 1e6).astype(np.int64),
        request=np.repeat(np.arange(num_requests), num_tokens),
        at_ns=(np.cumsum(steps, axis=1).ravel() * 1e6).astype(np.int64),
        tokens=np.ones(num_requests * num_tokens, dtype=np.int64),
        has_text=np.ones(num_requests * num_tokens, dtype=np.int64),
        is_settled=True,
        threads=1,
        machine=MACHINE,
    )


def tensors(of: str, *, is_int8: bool) -> TensorSizes:
    kinds = {"tokenizer": 712_000, "golden vectors": 9_900, "other files": 14_000}
    if is_int8:
        kinds = {
            "embeddings, int8": 11_917_056,
            "fp32 weights": 256_532,
            "int8 weights": 10_764_288,
            "scales and zero points": 210_649,
            "graph": 94_000,
        } | kinds
    else:
        kinds = {"embeddings, fp32": 47_668_224, "fp32 weights": 43_190_804, "graph": 47_488} | kinds
    kind = "embeddings, int8" if is_int8 else "embeddings, fp32"
    words = LargeTensor(
        name="bert.embeddings.word_embeddings.weight", kind=kind, shape=(30522, 384), num_bytes=11_720_448
    )
    return TensorSizes(artifact_digest=digest(of), kinds=kinds, largest=(words,))


def footprint(of: str, model_mb: float) -> Footprint:
    size = round(model_mb * 1e6)
    return Footprint(
        artifact_digest=digest(of),
        model_bytes=size,
        total_bytes=size + 712_000,
        download_bytes=round(size * 0.88),
        compression="zstd -9",
    )


def verdict(gate: str, outcome: Outcome = Outcome.PASS, **parts: object) -> Verdict:
    whole = Verdict(
        gate=gate,
        verdict=outcome,
        reason="p99 is at most 18.31 ms, within the limit of 30 ms (3,000 requests; 99 % confidence).",
        unit="ms",
        threshold=30.0,
        estimate=16.9,
        bound=18.304,
        confidence=0.99,
    )
    return replace(whole, **parts)  # type: ignore[arg-type]


GATES = {
    "accuracy": {"max_drop": 0.02},
    "flips": {"max_rate": 0.05},
    "size": {"max_mb": 24, "min_reduction": 3.5},
    "download": {"max_mb": 25},
    "memory": {"max_mb": 128},
    "start": {"max_ms": 400},
    "latency": [
        {"percentile": 99, "max_ms": 5},
        {"scenario": "server", "rate": 50, "percentile": 99, "max_ms": 6},
    ],
    "throughput": {"min_per_second": 500},
    "speed": {"min_speedup": 2},
}


def judged(target: TargetReport) -> TargetReport:
    """Judge a target by its own evidence."""
    evidence = Evidence(
        artifact=target.artifact,
        baseline=target.baseline,
        evaluation=target.evaluation,
        baseline_evaluation=target.baseline_evaluation,
        latencies=target.latencies,
        throughputs=target.throughputs,
        loads=target.loads,
        starts=target.starts,
        footprint=target.footprint,
        baseline_footprint=target.baseline_footprint,
        duets=target.duets,
    )
    return replace(target, verdicts=tuple(judge(Gates.model_validate(GATES), evidence)))


def lineage(name: str) -> tuple[Ancestor, ...]:
    return (
        Ancestor(
            role=name,
            digest=digest(name),
            step="quantize",
            detail="static-int8, 128 rows",
            parents=(digest("fp32"), digest("calibration")),
        ),
        Ancestor(role="fp32", digest=digest("fp32"), step="export", parents=(digest("merged"),)),
        Ancestor(role="calibration", digest=digest("calibration")),
        Ancestor(role="merged", digest=digest("merged"), step="merge", parents=(digest("base"), digest("adapter"))),
        Ancestor(role="base", digest=digest("base")),
        Ancestor(role="adapter", digest=digest("adapter")),
    )


def target(name: str, *, size_mb: float, middle: float, drop: float, seed: int) -> TargetReport:
    """A target with everything but generation."""
    whole = TargetReport(
        name=name,
        artifact=subject(name, size_mb),
        baseline=subject("fp32", 90.9),
        lineage=lineage(name),
        verification={"max_abs_difference": 0.01234, "cosine_min": 0.9991, "rows": 64, "same_top": True},
        evaluation=evaluation(name, share_right=0.9415 - drop, seed=seed),
        baseline_evaluation=evaluation("fp32", share_right=0.9415),
        latencies=(latency(name, middle, seed=seed), latency(name, middle, seed=seed, rate=50)),
        baseline_latencies=(latency("fp32", 4.4, seed=99), latency("fp32", 4.4, seed=99, rate=50)),
        throughputs=(throughput(name, 1000 / middle * 1.4),),
        baseline_throughputs=(throughput("fp32", 320),),
        loads=(load(name, middle + 1.5),),
        sweep=sweep(name),
        limits=limits(name, middle),
        baseline_limits=limits("fp32", 4.4, is_int8=False),
        duets=(duet(name, 4.4 / middle),),
        starts=(start(name, 61, 96),),
        baseline_starts=(start("fp32", 190, 231),),
        footprint=footprint(name, size_mb),
        baseline_footprint=footprint("fp32", 90.9),
        tensors=tensors(name, is_int8=True),
        baseline_tensors=tensors("fp32", is_int8=False),
        notes=("39 layers are int8", "2 layer(s) left in float: the classifier head"),
    )
    return judged(whole)


def curve(
    metric: str = "accuracy",
    *,
    first: float = 0.81,
    last: float = 0.953,
    teacher: float | None = 0.957,
    num_updates: int = 450,
    parts: tuple[str, ...] = ("soft", "hard"),
) -> LearningCurve:
    """A training that nears its end quickly, then wanders; the fifth evaluation of six is kept."""
    rng = np.random.default_rng(13)
    evaluated = np.linspace(0, num_updates, 7).astype(int)
    updates = np.union1d(np.linspace(1, num_updates, min(190, num_updates)).astype(int), evaluated[1:])
    values = last + (first - last) * np.exp(-5 * evaluated / num_updates)
    values[5] = last
    falling = 0.05 + 0.6 * np.exp(-6 * updates / num_updates)
    losses = {
        name: falling * 4.0**-number * np.exp(rng.normal(0, 0.25, len(updates))) for number, name in enumerate(parts)
    }
    total = {"loss": np.sum(list(losses.values()), axis=0)} if losses else {}
    return LearningCurve(
        metric=metric,
        higher_is_better=last > first,
        best_update=int(evaluated[5]),
        teacher_metric=teacher,
        updates=tuple(updates.tolist()),
        losses={name: tuple(one.tolist()) for name, one in (total | losses).items()},
        metric_updates=tuple(evaluated.tolist()),
        metric_values=tuple(values.tolist()),
    )


def steps() -> tuple[ModelStep, ...]:
    """Every step that a checkpoint can go through; trained twice, the second time a language model's figures."""
    sizes = {"merge": 22_715_141, "trim-vocabulary": 14_066_693, "prune": 5_787_653, "distill": 5_787_653}
    macs = {"trim-vocabulary": 1_434_601_344, "prune": 327_305_088, "distill": 327_305_088}
    said = {
        "merge": "the adapter folded into the base",
        "trim-vocabulary": "30,522 → 8,000 tokens, 90.9 MB → 56.3 MB",
        "prune": "layers 6 → 2, ffn 1,536 → 768 (by hessian): 14.1 M → 5.8 M parameters, MACs 22.8 %; outputs changed "
        "by 36.8 % before any training",
        "distill": "accuracy on 60 held-out rows 0.81 → 0.953 (teacher 0.957), kept the weights after update 375",
    }
    made = [
        ModelStep(
            name=name,
            digest=digest(name),
            summary=said[name],
            num_parameters=num,
            weights_bytes=4 * num,
            macs=macs.get(name),
            macs_of="128 tokens" if name in macs else "",
            notes=("2 heads of layer 3 stay: without them it would have none",) if name == "prune" else (),
            curve=curve() if name == "distill" else None,
        )
        for name, num in sizes.items()
    ]
    parts = ("soft", "hard", "hidden", "relation")
    again = curve("perplexity", first=1834.2, last=21.37, teacher=19.02, num_updates=12_000, parts=parts)
    return (*made, replace(made[-1], digest=digest("again"), curve=again))


def release() -> ReleaseReport:
    """Three targets of one baseline."""
    return ReleaseReport(
        title="news",
        targets=(
            target("server", size_mb=23.10, middle=1.87, drop=0.0033, seed=1),
            target("edge", size_mb=23.24, middle=1.98, drop=0.0008, seed=2),
            target("phone", size_mb=24.91, middle=2.66, drop=0.0092, seed=3),
        ),
        machine=MACHINE,
        versions={"edgesmith": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.6", "transformers": "5.23.0"},
        command="edgesmith run recipe.yaml --set targets.server.quantize.method=static-int8",
        notes=("baseline: the fp32 export",),
        steps=steps(),
    )
