"""How near an answer is to what was expected: exact match, ROUGE, BLEU and chrF."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import MissingExtraError

__all__ = [
    "CORPUS_METRICS",
    "METRICS",
    "bleu_statistics",
    "chrf_statistics",
    "corpus_metric",
    "exact_match",
    "normalize_answer",
    "rouge",
]

Floats = NDArray[np.float64]

METRICS: Mapping[str, str] = {
    "exact_match": "share of answers equal to a reference but for case, punctuation, articles and white space",
    "exact_match_strict": "share of answers equal to a reference but for white space around them",
    "rouge_1": "words shared with the reference, F1, mean over answers",
    "rouge_2": "pairs of words shared with the reference, F1, mean over answers",
    "rouge_l": "longest common subsequence of words, F1, mean over answers",
    "bleu": "precision of 1 to 4 words over all answers, with a brevity penalty",
    "chrf": "1 to 6 characters shared with the reference over all answers, F2",
}
"""Name → what it is. Each is in [0, 1], and higher is better."""
CORPUS_METRICS = frozenset({"bleu", "chrf"})
"""Those that are no mean over answers."""

_WORD = re.compile(r"[a-z0-9]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLEU_ORDER, _CHRF_ORDER, _BETA = 4, 6, 2.0


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous white space.

    Source: Rajpurkar et al., SQuAD's official evaluation script.

    >>> normalize_answer(" The  cat, sat. ")
    'cat sat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str], *, strict: bool = False) -> float:
    """1 if an answer equals a reference, else 0; normalized unless `strict`."""
    change: Callable[[str], str] = str.strip if strict else normalize_answer
    return float(change(answer) in {change(one) for one in references})


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of an answer, each F1 and that of the best reference.

    Words are runs of Latin letters and digits in lower case, without stemming: the same as Google's `rouge-score`.
    Texts of other scripts have none, for them there is chrF.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries", ACL workshop 2004.

    >>> rouge("the cat sat", ["the cat lay"])["rouge_2"]
    0.5
    """
    words = _words(answer)
    found = [(words, _words(one)) for one in references]
    return {
        "rouge_1": max(_shared(_ngrams(a, 1), _ngrams(b, 1)) for a, b in found),
        "rouge_2": max(_shared(_ngrams(a, 2), _ngrams(b, 2)) for a, b in found),
        "rouge_l": max(_f1(_longest_common(a, b), len(a), len(b)) for a, b in found),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _shared(answer: Counter[tuple[str, ...]], reference: Counter[tuple[str, ...]]) -> float:
    return _f1((answer & reference).total(), answer.total(), reference.total())


def _f1(shared: int, num_answer: int, num_reference: int) -> float:
    return 2 * shared / (num_answer + num_reference) if shared else 0.0


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            kept = row[index]
            row[index] = diagonal + 1 if one == other else max(kept, row[index - 1])
            diagonal = kept
    return row[-1]


def bleu_statistics(answer: str, references: Sequence[str]) -> list[int]:
    """What BLEU sums over answers: lengths of answer and reference, 1- to 4-grams that match, and all of them.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    score = _sacrebleu().BLEU(effective_order=True).sentence_score(answer, list(references))
    return [int(score.sys_len), int(score.ref_len), *map(int, score.counts), *map(int, score.totals)]


def chrf_statistics(answer: str, references: Sequence[str]) -> list[int]:
    """What chrF sums over answers: of 1 to 6 characters how many the answer has, the reference, and both.

    Of several references the nearest counts.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    _sacrebleu()
    ours = extract_all_char_ngrams(answer, _CHRF_ORDER, include_whitespace=False)
    best: list[int] = []
    for reference in references:
        theirs = extract_all_char_ngrams(reference, _CHRF_ORDER, include_whitespace=False)
        counts = [
            count
            for a, b in zip(ours, theirs, strict=True)
            for count in (a.total() if b else 0, b.total(), (a & b).total())
        ]
        if not best or _chrf(np.array(counts)) > _chrf(np.array(best)):
            best = counts
    return best


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtraError(
            "sacrebleu is not installed", mend="Install it with `pip install 'edgesmith[bench]'`."
        ) from error
    return sacrebleu


def corpus_metric(name: str, statistics: Sequence[Sequence[int]]) -> Callable[[NDArray[np.int64]], float]:
    """BLEU or chrF as a function of which answers are drawn.

    Args:
        name: One of `CORPUS_METRICS`.
        statistics: Of each answer, from `bleu_statistics` or `chrf_statistics`.

    Returns:
        Indices of answers → the metric over them, in [0, 1].
    """
    table = np.array(statistics, dtype=np.int64)
    compute = _bleu if name == "bleu" else _chrf
    return lambda indices: compute(table[indices].sum(axis=0))


def _bleu(sums: NDArray[np.int64]) -> float:
    """Source: Papineni et al., ACL 2002; smoothing of empty orders: Chen & Cherry 2014, exponential, as sacrebleu."""
    answer_length, reference_length = int(sums[0]), int(sums[1])
    matches, totals = sums[2 : 2 + _BLEU_ORDER], sums[2 + _BLEU_ORDER :]
    if not matches.any() or not totals.all():
        return 0.0
    smooth, logs = 1.0, 0.0
    for match, total in zip(matches.tolist(), totals.tolist(), strict=True):
        if not match:
            smooth *= 2
        logs += float(np.log(match / total if match else 1 / (smooth * total)))
    penalty = min(0.0, 1 - reference_length / answer_length)
    return float(np.exp(penalty + logs / _BLEU_ORDER))


def _chrf(sums: NDArray[np.int64]) -> float:
    """Source: Popović, "chrF: character n-gram F-score", WMT 2015; orders that a text is too short for are left out."""
    answer, reference, both = sums.reshape(-1, 3).T.astype(np.float64)
    counted = (answer > 0) & (reference > 0)
    if not counted.any():
        return 0.0
    precision = float((both[counted] / answer[counted]).mean())
    recall = float((both[counted] / reference[counted]).mean())
    below = _BETA**2 * precision + recall
    return (1 + _BETA**2) * precision * recall / below if below else 0.0
