from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.language.answers import Answers, Prompt, has_prompts, measure_answers, read_prompts
from bench.language.metrics import (
    METRICS,
    bleu_statistics,
    chrf_statistics,
    corpus_metric,
    exact_match,
    normalize_answer,
    rouge,
)
from edgesmith.errors import ArtifactError, DataError
from tests.bench.language.engines import KnownEngine

# Of rouge-score 0.1.2, RougeScorer(["rouge1", "rouge2", "rougeL"]).score_multi, fmeasure.
ROUGE = [
    (
        "The quick brown fox jumps over the lazy dog.",
        ["A quick brown fox jumped over the lazy dogs!"],
        (2 / 3, 0.5, 2 / 3),
    ),
    (
        "the cat the cat sat on the mat",
        ["the cat sat on the mat", "on the mat the cat sat, the cat sat"],
        (0.9411764705882353, 0.8333333333333333, 0.8571428571428571),
    ),
    (
        "Costs rose by 3.5% in 2024 -- naïve café",
        ["In 2024, costs rose 3.5 %; a naive cafe"],
        (0.631578947368421, 0.35294117647058826, 0.4210526315789474),
    ),
    ("", ["something"], (0.0, 0.0, 0.0)),
    ("one", ["two"], (0.0, 0.0, 0.0)),
    ("a b c d e f g", ["g f e d c b a"], (1.0, 0.0, 0.14285714285714285)),
    (
        "It's the whale's white_head, 42 times.",
        ["its the whales white head 42 times", "IT S THE WHALE S WHITE HEAD"],
        (0.8750000000000001, 0.8571428571428571, 0.8750000000000001),
    ),
    ("鯨 whale", ["whale 鯨 鯨"], (1.0, 0.0, 1.0)),
]
TEXTS = [
    ("The cat sat on the mat.", ["The cat is sitting on the mat.", "A cat sat on the mat."]),
    ("It was the best of times, it was", ["It was the best of times, it was the worst of times", "Best of times"]),
    ("", ["nothing at all", "no"]),
    ("鯨は大きい", ["鯨は大きいです", "大きい鯨"]),
    ("42", ["42", "forty-two"]),
]


@pytest.mark.parametrize(("answer", "references", "expected"), ROUGE)
def test_rouge_is_that_of_rouge_score(answer: str, references: list[str], expected: tuple[float, ...]) -> None:
    assert tuple(rouge(answer, references).values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("picked", [range(5), [0], [0, 1], [2], [2, 3], [0, 0, 3]])
def test_corpus_metrics_are_those_of_sacrebleu(picked: range | list[int]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    answers, references = [TEXTS[index][0] for index in picked], [TEXTS[index][1] for index in picked]
    streams = [list(one) for one in zip(*references, strict=True)]
    for name, count, score in (
        ("bleu", bleu_statistics, sacrebleu.BLEU().corpus_score),
        ("chrf", chrf_statistics, sacrebleu.CHRF().corpus_score),
    ):
        compute = corpus_metric(name, [count(*one) for one in TEXTS])
        assert 100 * compute(np.array(picked)) == pytest.approx(score(answers, streams).score, abs=1e-9)


def test_normalized_answers_ignore_case_punctuation_and_articles() -> None:
    assert normalize_answer("  An apple,\n a  DAY! ") == "apple day"
    assert exact_match("The answer: Paris.", ["answer paris"]) == 1
    assert exact_match("The answer: Paris.", ["answer paris"], strict=True) == 0
    assert exact_match(" Paris\n", ["London", "Paris"], strict=True) == 1
    assert exact_match("Pari", ["Paris"]) == 0


def measured(prompts: list[Prompt] | None = None, max_tokens: int = 64) -> Answers:
    pytest.importorskip("sacrebleu")
    asked = prompts or [
        Prompt(prompt="olleh", references=("hello",), line=2),
        Prompt(prompt="on", references=("yes", "No!"), line=3),
        Prompt(prompt="gnol a", references=("something else",), line=4),
    ]
    return measure_answers(KnownEngine(), asked, max_tokens=max_tokens, artifact_digest="sha256:it")


def test_every_answer_is_kept_with_its_scores(tmp_path: Path) -> None:
    answers = measured()
    assert [one.text for one in answers.answers] == ["hello", "no", "a long"]
    assert answers.metrics["exact_match"] == pytest.approx(2 / 3)
    assert answers.metrics["exact_match_strict"] == pytest.approx(1 / 3)
    assert set(answers.metrics) == set(METRICS)
    assert answers.length_ratio == pytest.approx((5 + 2 + 6) / (5 + 3 + 14))
    assert answers.share_cut == 0
    assert measured(max_tokens=2).share_cut == pytest.approx(2 / 3)
    answers.save(tmp_path)
    assert replace(Answers.load(tmp_path), seconds=answers.seconds) == answers
    assert answers.evaluation.metrics == answers.metrics


def test_prompts_decide_which_answers_can_be_paired() -> None:
    one = measured([Prompt(prompt="a", references=("b",), line=1)])
    assert measured([Prompt(prompt="a", references=("b",), line=9)]).data_digest == one.data_digest
    assert measured([Prompt(prompt="a", references=("c",), line=1)]).data_digest != one.data_digest


def test_damaged_answers_are_refused(tmp_path: Path) -> None:
    measured().save(tmp_path)
    path = tmp_path / "answers.json"
    value = json.loads(path.read_text())
    first = value["answers"][0]
    broken = [
        {"answers": value["answers"][:2]},
        {"metrics": value["metrics"] | {"bleu": 0.9}},
        {"answers": [first | {"scores": {"exact_match": 2}}]},
        {"answers": [first | {"statistics": {"bleu": [1], "chrf": [2]}}] * 3},
        {"answers": [first | {"references": []}] * 3},
        {"answers": "none"},
    ]
    for change in broken:
        path.write_text(json.dumps(value | change))
        with pytest.raises(ArtifactError, match="is damaged"):
            Answers.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        Answers.load(tmp_path)


def test_prompts_are_read_with_one_reference_or_several(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"q": "1+1=", "a": ["2", "two"]}\n\n{"q": "x", "a": "y"}\n')
    found = read_prompts(path, columns={"prompt": "q", "reference": "a"})
    assert found == [
        Prompt(prompt="1+1=", references=("2", "two"), line=1),
        Prompt(prompt="x", references=("y",), line=3),
    ]
    assert has_prompts(path, {"prompt": "q"})
    assert not has_prompts(path, {})
    assert not has_prompts(tmp_path / "book.txt", {})
    with pytest.raises(DataError, match=r"p\.jsonl:1: has no column 'prompt'"):
        read_prompts(path)
    for bad in (
        '{"prompt": "", "reference": "y"}',
        '{"prompt": "x", "reference": []}',
        '{"prompt": 3, "reference": "y"}',
    ):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"p\.jsonl:1: .* is no text"):
            read_prompts(path)
    with pytest.raises(DataError, match="no prompts"):
        measure_answers(KnownEngine(), [])
