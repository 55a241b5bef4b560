from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.gates.judge import Outcome, Verdict, check_gates, judge
from bench.language.answers import Answer, Answers
from bench.language.evaluation import LanguageEvaluation
from bench.language.metrics import METRICS, bleu_statistics, chrf_statistics, exact_match, rouge
from bench.scenarios.generation import Generation
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import Gates
from tests.bench import evidence_built as built


def language(
    num_windows: int = 20, *, ratio: float = 1.02, kld: float = 0.05, flips: float = 0.1, spread: float = 0.1
) -> LanguageEvaluation:
    """Predictions whose figures are near these."""
    rng = np.random.default_rng(0)
    shape = (num_windows, 255)
    moods = np.exp(spread * rng.normal(size=(num_windows, 1)))
    before = rng.exponential(3.0, shape).astype(np.float32)
    moved = before + math.log(ratio) * moods + 0.02 * rng.normal(size=shape)
    return LanguageEvaluation(
        engine="llama.cpp b1 (CPU)",
        artifact_digest="sha256:int8",
        windows_digest="sha256:windows",
        window_length=512,
        bos=None,
        num_vocabulary=49152,
        num_excluded=0,
        nll=np.maximum(moved, 0).astype(np.float32),
        reference_nll=before,
        kld=(kld * moods * rng.exponential(1.0, shape)).astype(np.float32),
        same_top=rng.random(shape) >= flips * moods,
        reference_engine="torch 2 (CPU, fp32)",
        reference_artifact="sha256:fp32",
        reference_digest="sha256:reference",
    )


def judged(gates: Mapping[str, Any], **parts: object) -> list[Verdict]:
    return judge(Gates.model_validate(gates), built.evidence(**parts))


@pytest.mark.parametrize(
    ("gates", "limits"),
    [
        ({"perplexity": {"max_ratio": None}}, (1.03, 1.01)),
        ({"perplexity": {"max": None}}, (60.0, 5.0)),
        ({"divergence": {"max_mean_kld": None}}, (0.06, 0.04)),
        ({"flips": {"max_rate": None}}, (0.14, 0.07)),
    ],
)
def test_each_gate_has_three_outcomes(gates: dict[str, dict[str, None]], limits: tuple[float, float]) -> None:
    measured = language()

    def at(limit: float) -> Verdict:
        filled = {name: dict.fromkeys(one, limit) for name, one in gates.items()}
        [verdict] = judged(filled, language=measured)
        return verdict

    passed, failed = at(limits[0]), at(limits[1])
    estimate = passed.estimate
    assert estimate is not None
    open_ = at(estimate * 1.0001)
    assert [one.verdict for one in (passed, failed, open_)] == [Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE]
    assert passed.bound is not None
    assert failed.bound is not None
    assert failed.bound < estimate < passed.bound
    assert (passed.num_samples, passed.samples) == (20, "windows")
    assert open_.num_needed is not None
    assert open_.num_needed > 20
    assert "5,100 tokens in 20 windows of 512" in passed.reason
    for one in (passed, failed, open_):
        assert json.loads(json.dumps(one.to_json()))["gate"] == next(iter(gates))
        assert one.figure(one.estimate)
        assert one.limit


def test_few_windows_settle_nothing_and_say_how_many_would() -> None:
    gates = {
        "perplexity": {"max_ratio": 9.0, "max": 900.0},
        "divergence": {"max_mean_kld": 5.0},
        "flips": {"max_rate": 0.9},
    }
    verdicts = judged(gates, language=language(7))
    assert [one.verdict for one in verdicts] == [Outcome.INCONCLUSIVE] * 4
    assert {one.num_needed for one in verdicts} == {8}
    assert {one.gate for one in verdicts} == {"flips", "divergence", "perplexity.max_ratio", "perplexity.max"}
    assert all(one.bound is None and "7 windows of text are too few" in one.reason for one in verdicts)


def test_a_tiny_limit_is_shown_with_all_its_digits() -> None:
    [verdict] = judged({"divergence": {"max_mean_kld": 2e-5}}, language=language(kld=4e-6))
    assert verdict.verdict is Outcome.PASS
    assert verdict.limit == "≤ 0.00002 nats"
    assert verdict.figure(verdict.estimate) == "0.0000039 nats"
    assert "within the limit of 0.00002 nats" in verdict.reason
    assert "e-0" not in verdict.reason


def test_evidence_that_is_missing_or_of_another_is_refused() -> None:
    with pytest.raises(UsageError, match="the perplexity gate needs the artifact's predictions on a text"):
        judged({"perplexity": {"max": 9.0}})
    alone = replace(language(), reference_nll=None, kld=None, same_top=None)
    assert judged({"perplexity": {"max": 900.0}}, language=alone)[0].verdict is Outcome.PASS
    for gates in (
        {"perplexity": {"max_ratio": 2.0}},
        {"divergence": {"max_mean_kld": 1.0}},
        {"flips": {"max_rate": 0.5}},
    ):
        with pytest.raises(UsageError, match="held against a reference"):
            judged(gates, language=alone)
    with pytest.raises(ArtifactError, match="the measurement on text is of sha256:other"):
        judged({"perplexity": {"max": 9.0}}, language=replace(language(), artifact_digest="sha256:other"))
    broken = language()
    broken.nll[2, 3] = np.nan
    with pytest.raises(ArtifactError, match="nll of window 3 is not finite"):
        judged({"perplexity": {"max": 9.0}}, language=broken)


REFERENCED = ({"perplexity": {"max_ratio": 2.0}}, {"divergence": {"max_mean_kld": 1.0}}, {"flips": {"max_rate": 0.5}})


@pytest.mark.parametrize("gates", REFERENCED)
def test_predictions_held_against_anything_but_the_baseline_are_refused(gates: Mapping[str, Any]) -> None:
    of_itself = replace(language(), reference_artifact="sha256:int8")
    for named in ({}, {"baseline": None}):
        with pytest.raises(ArtifactError, match="held against the artifact itself"):
            judged(gates, language=of_itself, **named)
        with pytest.raises(ArtifactError, match="does not say which artifact its reference is"):
            judged(gates, language=replace(language(), reference_artifact=None), **named)
    with pytest.raises(ArtifactError, match="held against sha256:other…, but the baseline is sha256:fp32…"):
        judged(gates, language=replace(language(), reference_artifact="sha256:other"))
    [verdict] = judged(gates, language=language(), baseline=None)
    assert verdict.verdict is Outcome.PASS
    assert "against torch 2 (CPU, fp32) of sha256:fp32" in verdict.reason
    assert judged({"perplexity": {"max": 900.0}}, language=of_itself)[0].verdict is Outcome.PASS


def worse(than: LanguageEvaluation, ratio: float) -> LanguageEvaluation:
    noise = 0.02 * np.random.default_rng(5).normal(size=than.nll.shape)
    return replace(than, nll=(than.nll + math.log(ratio) + noise - noise.mean()).astype(np.float32))


def test_the_perplexity_is_judged_against_an_earlier_releases_on_the_same_tokens() -> None:
    before = replace(language(), artifact_digest="sha256:before", reference_artifact="sha256:checkpoint")
    gates = {"regression": {"max_perplexity_ratio": 1.01}}

    def at(ratio: float) -> Verdict:
        ours = replace(worse(before, ratio), artifact_digest="sha256:int8")
        return judged(gates, language=ours, baseline_language=before, baseline=built.subject("before"))[0]

    outcomes = [at(ratio).verdict for ratio in (1.0, 1.01, 1.02)]
    assert outcomes == [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
    assert at(1.02).gate == "regression.max_perplexity_ratio"
    assert at(1.02).estimate == pytest.approx(1.02, rel=1e-3)
    assert "× that of the baseline" in at(1.0).reason


def test_without_an_earlier_release_the_perplexity_is_judged_against_the_baseline() -> None:
    gates = {"regression": {"max_perplexity_ratio": 1.03}}
    assert judged(gates, language=language(ratio=1.02))[0].verdict is Outcome.PASS
    assert judged(gates, language=language(ratio=1.04))[0].verdict is Outcome.FAIL
    with pytest.raises(ArtifactError, match="but the baseline is"):
        judged(gates, language=language(), baseline=built.subject("before"))


def test_perplexities_of_different_tokens_are_not_compared() -> None:
    gates, before = {"regression": {"max_perplexity_ratio": 9.0}}, replace(language(), artifact_digest="sha256:fp32")
    for other in (replace(before, windows_digest="sha256:others"), replace(before, nll=before.nll[:-1])):
        with pytest.raises(UsageError, match="the perplexities cannot be compared"):
            judged(gates, language=language(), baseline_language=other)
    with pytest.raises(UsageError, match="needs the artifact's predictions on a text"):
        judged(gates, baseline_language=before)
    with pytest.raises(ArtifactError, match="the baseline's measurement on text is of sha256:int8"):
        judged(gates, language=language(), baseline_language=language())
    alone = replace(language(), reference_nll=None, kld=None, same_top=None)
    with pytest.raises(UsageError, match="needs predictions of the earlier release"):
        judged(gates, language=alone)


def test_no_flip_in_few_windows_shows_little_and_says_how_many_would() -> None:
    gates = {"flips": {"max_rate": 0.0005}}

    def unchanged(num_windows: int) -> Verdict:
        one = language(num_windows)
        return judged(gates, language=replace(one, same_top=np.ones_like(one.nll, dtype=bool)))[0]

    few = unchanged(20)
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed is not None
    assert few.bound is not None
    assert few.num_needed == math.ceil(20 * few.bound / 0.0005)
    assert f"about {few.num_needed} windows of text would settle it" in few.reason
    assert unchanged(2 * few.num_needed).verdict is Outcome.PASS


def test_the_gate_and_the_report_bound_flips_alike() -> None:
    one = language(flips=0.05)
    [verdict] = judged({"flips": {"max_rate": 0.5, "confidence": 0.975}}, language=one)
    assert verdict.bound == pytest.approx(1 - (one.same_top_rate().lower or 0))


def answers(texts: list[str], of: str = "int8") -> Answers:
    pytest.importorskip("sacrebleu")
    return Answers(
        engine="llama.cpp",
        artifact_digest=f"sha256:{of}",
        data_digest="sha256:prompts",
        max_tokens=8,
        answers=tuple(
            Answer(
                prompt="q",
                references=("the white whale",),
                text=text,
                num_tokens=3,
                finish_reason="stop",
                line=line,
                scores={
                    "exact_match": exact_match(text, ["the white whale"]),
                    "exact_match_strict": exact_match(text, ["the white whale"], strict=True),
                    **rouge(text, ["the white whale"]),
                },
                statistics={
                    "bleu": bleu_statistics(text, ["the white whale"]),
                    "chrf": chrf_statistics(text, ["the white whale"]),
                },
            )
            for line, text in enumerate(texts, start=1)
        ),
        seconds=1.0,
    )


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "chrf"])
def test_answers_are_judged_by_the_accuracy_gate(metric: str) -> None:
    good = ["the white whale", "the white whales", "a whale"] * 100
    bad = ["the white whale", "no", "a ship"] * 100
    ours, theirs = answers(bad), answers(good, "fp32")
    gates = {"accuracy": {"metric": metric, "max_drop": 0.1}}
    assert judged(gates, answers=theirs_as_ours(theirs), baseline_answers=theirs)[0].verdict is Outcome.PASS
    expected = Outcome.PASS if metric == "exact_match" else Outcome.FAIL
    assert judged(gates, answers=ours, baseline_answers=theirs)[0].verdict is expected
    least = {"accuracy": {"metric": metric, "min": 0.9}}
    assert judged(least, answers=ours)[0].verdict is Outcome.FAIL
    with pytest.raises(UsageError, match="needs an evaluation of the baseline"):
        judged(gates, answers=ours)


def theirs_as_ours(theirs: Answers) -> Answers:
    return replace(theirs, artifact_digest="sha256:int8")


def generation(
    num_requests: int = 40, *, token_ms: float = 20.0, first_ms: float = 100.0, **parts: object
) -> Generation:
    """Answers of ten tokens, whose times are a little apart."""
    rng = np.random.default_rng(0)
    steps = np.full((num_requests, 10), token_ms)
    steps[:, 0] = first_ms
    at_ms = np.cumsum(steps * np.exp(0.02 * rng.normal(size=steps.shape)), axis=1)
    whole = Generation(
        engine="llama.cpp",
        artifact_digest="sha256:int8",
        inputs="prompts of 64 tokens",
        max_tokens=10,
        prompt_tokens=np.full(num_requests, 64),
        cpu_ns=np.full(num_requests, 10**8),
        request=np.repeat(np.arange(num_requests), 10),
        at_ns=np.round(at_ms * 1e6).astype(np.int64).reshape(-1),
        tokens=np.ones(num_requests * 10, dtype=np.int64),
        has_text=np.ones(num_requests * 10, dtype=np.int64),
        is_settled=True,
        threads=1,
        machine=built.MACHINE,
        conditions=built.conditions(),
    )
    return replace(whole, **parts)  # type: ignore[arg-type]


def test_the_speed_of_writing_has_three_outcomes() -> None:
    def at(limit: float, one: Generation) -> Verdict:
        return judged({"generation": {"min_tokens_per_second": limit}}, generations=(one,))[0]

    measured = generation()
    assert at(40, measured).verdict is Outcome.PASS
    assert at(60, measured).verdict is Outcome.FAIL
    estimate = at(40, measured).estimate
    assert estimate is not None
    assert estimate == pytest.approx(50, rel=0.02)
    assert at(estimate, measured).verdict is Outcome.INCONCLUSIVE
    few = at(1, generation(3))
    assert few.verdict is Outcome.INCONCLUSIVE
    assert few.num_needed == 5
    assert at(1, generation(is_settled=False)).verdict is Outcome.INCONCLUSIVE
    busy = generation(conditions=built.conditions(steal_share=0.5))
    assert at(60, busy).verdict is Outcome.INCONCLUSIVE
    assert at(40, busy).verdict is Outcome.PASS


def test_the_wait_for_the_first_text_is_a_percentile() -> None:
    def at(limit: float, one: Generation, percentile: float = 50) -> Verdict:
        gates = {"generation": {"max_ttft_ms": limit, "percentile": percentile, "min_tokens_per_second": 1}}
        return judged(gates, generations=(one,))[1]

    assert at(120, generation()).gate == "generation.max_ttft_ms"
    assert at(120, generation()).verdict is Outcome.PASS
    assert at(80, generation()).verdict is Outcome.FAIL
    assert at(120, generation(), percentile=99).verdict is Outcome.INCONCLUSIVE
    silent = generation(has_text=np.zeros(400, dtype=np.int64))
    assert at(120, silent).verdict is Outcome.FAIL
    assert at(120, silent).bound is None


def test_a_missing_generation_is_named_and_a_device_leaves_it_open() -> None:
    with pytest.raises(UsageError, match=r"the generation gate needs times of written answers"):
        judged({"generation": {"min_tokens_per_second": 5}})
    gates = {"devices": {"*A76*": {"generation": {"min_tokens_per_second": 5}}}}
    [verdict] = judged(gates, generations=(generation(),))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    with pytest.raises(ArtifactError, match="the generation is of"):
        judged({"generation": {"min_tokens_per_second": 5}}, generations=(generation(artifact_digest="sha256:x"),))


@pytest.mark.parametrize(
    ("gates", "task", "message"),
    [
        ({"perplexity": {"max": 9}}, "text-classification", "perplexity gate limits how well a text is predicted"),
        ({"generation": {"max_ttft_ms": 9}}, "feature-extraction", "generation gate limits how fast a text is written"),
        ({"speed": {"min_speedup": 2}}, "text-generation", r"speed gate .*\n.*Set a generation gate"),
        ({"cpu": {"max_ms": 2}}, "text-generation", r"cpu gate .*\n.*Set a generation gate"),
        ({"throughput": {"min_per_second": 2}}, "text-generation", r"throughput gate .*\n.*min_tokens_per_second"),
        ({"latency": {"max_ms": 2}}, "text-generation", r"latency gate .*\n.*scenario load"),
        ({"regression": {"max_slowdown": 0.1}}, "text-generation", r"regression gate .*\n.*Leave max_slowdown out"),
        (
            {"regression": {"max_perplexity_ratio": 1.1}},
            "text-classification",
            "max_perplexity_ratio limits how well a text is predicted",
        ),
        ({"accuracy": {"metric": "f1", "min": 0.5}}, "text-generation", "text-generation has no metric 'f1'"),
        ({"devices": {"*": {"cpu": {"max_ms": 2}}}}, "text-generation", r"the devices\.\*\.cpu gate"),
    ],
)
def test_gates_that_a_task_cannot_have_are_refused(gates: Mapping[str, Any], task: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_gates(Gates.model_validate(gates), task)


def test_a_language_model_can_have_all_gates_that_fit_it() -> None:
    gates = {
        "accuracy": [{"metric": name, "min": 0.1} for name in METRICS],
        "perplexity": {"max_ratio": 1.03},
        "divergence": {"max_mean_kld": 0.05},
        "flips": {"max_rate": 0.1},
        "generation": {"min_tokens_per_second": 5},
        "size": {"max_mb": 100},
        "download": {"max_mb": 100},
        "memory": {"max_mb": 900},
        "start": {"max_ms": 1000},
        "latency": {"scenario": "load", "max_ms": 900},
        "regression": {"max_growth": 0.1, "max_drop": 0.1, "max_perplexity_ratio": 1.01},
    }
    check_gates(Gates.model_validate(gates), "text-generation")


def test_what_a_language_model_needs_follows_from_its_gates() -> None:
    ratio, alone = (
        Gates.model_validate({"perplexity": {"max_ratio": 1.1}}),
        Gates.model_validate({"perplexity": {"max": 9}}),
    )
    assert ratio.needs_language_reference
    assert ratio.needs_baseline
    assert not ratio.absolute.are_set
    assert not alone.needs_language_reference
    assert not alone.needs_baseline
    assert Gates.model_validate({"flips": {"max_rate": 0.1}}).needs_language_reference
    assert Gates.model_validate({"accuracy": {"min": 0.1}}).needs_answers
    assert Gates.model_validate({"regression": {"max_drop": 0.1}}).needs_answers
    assert not ratio.needs_answers
    faulty: tuple[Mapping[str, Any], ...] = (
        {"perplexity": {}},
        {"generation": {}},
        {"perplexity": {"max_ratio": 0.1}},
        {"divergence": {"max_mean_kl": 1}},
    )
    for empty in faulty:
        with pytest.raises(ValidationError):
            Gates.model_validate(empty)
