"""Evidence with chosen figures, for gates: what would take long to measure on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bench.accuracy import Evaluation
from bench.duet import Duet
from bench.gate import Evidence, Subject
from bench.latency import Latency
from bench.machine import describe_machine
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


def latency(wall_ms: list[float], *, cpu_share: float = 1.0, is_settled: bool = True) -> Latency:
    wall_ns = np.round(np.array(wall_ms) * 1e6).astype(np.int64)
    return Latency(
        scenario="single",
        engine="onnxruntime",
        artifact_digest="sha256:int8",
        inputs="1×128 tokens of real text",
        wall_ns=wall_ns,
        cpu_ns=np.round(wall_ns * cpu_share).astype(np.int64),
        num_warm_up=48,
        is_settled=is_settled,
        machine=MACHINE,
        load_after=0.2,
    )


def duet(ratio: float, *, noise: float = 0.01, num_pairs: int = 60, is_settled: bool = True) -> Duet:
    rng = np.random.default_rng(0)
    artifact = np.round(8e7 * np.exp(rng.normal(0, noise, num_pairs))).astype(np.int64)
    baseline = np.round(8e7 * ratio * np.exp(rng.normal(0, noise, num_pairs))).astype(np.int64)
    return Duet(
        baseline_digest="sha256:fp32",
        artifact_digest="sha256:int8",
        inputs="1×128 tokens of real text",
        turn_requests=8,
        baseline_cpu_ns=baseline,
        artifact_cpu_ns=artifact,
        baseline_wall_ns=baseline,
        artifact_wall_ns=artifact,
        is_settled=is_settled,
        machine=MACHINE,
    )


def evidence(**parts: object) -> Evidence:
    """Evidence of `int8` against `fp32`, with the parts given."""
    whole = Evidence(artifact=subject("int8"), baseline=subject("fp32", 90_900_000))
    return replace(whole, **parts)  # type: ignore[arg-type]
