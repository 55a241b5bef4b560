"""A language model's answers to prompts: metrics with their intervals, and two of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.language.answers import Answer, Answers

__all__ = ["show_answers"]

_NAMES = {
    "exact_match": "exact match",
    "exact_match_strict": "exact match, to the character",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
}
_NUM_SHOWN = 2
_MAX_CHARS = 120


def show_answers(folder: Path) -> None:
    """Show what `eval` measured on prompts."""
    from bench.language.answers import Answers
    from edgesmith import console

    answers = Answers.load(folder)
    console.say(f"{len(answers.answers):,} prompts answered greedily, {answers.engine}")
    rows = [
        (_NAMES.get(name, name), f"{value:.1%}", _interval(name, answers)) for name, value in answers.metrics.items()
    ]
    console.print_table(("metric", "value", "95 % interval"), rows)
    console.print_facts(
        {
            "cut": f"{answers.share_cut:.0%} of the answers, at {answers.max_tokens:,} tokens",
            "length": f"{answers.length_ratio:.2f}× the references' characters",
        }
    )
    for one in answers.answers[:_NUM_SHOWN]:
        console.print_facts(_example(one))


def _interval(name: str, answers: Answers) -> str:
    """Of a metric that is right or wrong for each prompt; the others are compared in pairs by a gate."""
    import numpy as np

    from bench.stats.binomial import clopper_pearson

    scores = answers.evaluation.scores.get(name)
    if scores is None or not np.isin(scores, (0, 1)).all() or "match" not in name:
        return ""
    low, high = clopper_pearson(int(scores.sum()), len(scores), 0.95)
    return f"{low:.1%} to {high:.1%}"


def _example(one: Answer) -> dict[str, str]:
    place = f"line {one.line}" if one.line is not None else "prompt"
    return {place: _short(one.prompt), "  answered": _short(one.text), "  expected": _short(one.references[0])}


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _MAX_CHARS else f"{shown[:_MAX_CHARS]} …"
