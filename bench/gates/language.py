"""Judge a language model's predictions of a text: perplexity, divergence from its reference, changed tokens.

Windows of the text are what is counted as independent, not tokens: a window's tokens share its subject and its words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.verdict import Outcome, Rounding, Verdict, places_of, samples_to_settle, show, show_count
from bench.language.intervals import MIN_BOUNDED, Estimate
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import DivergenceGate, FlipsGate, PerplexityGate, RegressionGate

if TYPE_CHECKING:
    from bench.language.evaluation import LanguageEvaluation

__all__ = ["judge_next_token_divergence", "judge_next_token_flips", "judge_perplexity", "judge_perplexity_growth"]


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """One upper limit on a figure of a text."""

    gate: str
    """Its place under `gates:`."""
    figure: str
    """What it is, as a sentence begins with it."""
    unit: str
    symbol: str
    """The unit as it follows a figure in a sentence."""
    limit: float
    confidence: float
    detail: str
    digits: int = 4
    scale: float = 1.0

    def shown(self, value: float, rounding: Rounding = "near") -> str:
        """The figure with its unit, never rounded onto or across the limit; tiny ones with all their zeros."""
        digits = places_of(self.scale * self.limit, self.digits) if self.digits > 2 else self.digits
        return f"{show(self.scale * value, self.scale * self.limit, digits=digits, rounding=rounding)}{self.symbol}"


def judge_perplexity(gate: PerplexityGate, language: LanguageEvaluation) -> list[Verdict]:
    """Judge the perplexity of a text, its ratio to the reference's on the same tokens, or both.

    Args:
        gate: Limits and confidence.
        language: What was measured, with a reference for `max_ratio`.

    Returns:
        One verdict a limit.

    Raises:
        UsageError: There is no reference.
        ArtifactError: A loss is not finite.
    """
    _refuse_broken(language)
    are_both = gate.max_ratio is not None and gate.max is not None
    verdicts = []
    if gate.max_ratio is not None:
        _refuse_without_reference(language, "perplexity", "max_ratio")
        before, after = language.reference_perplexity().value, language.perplexity().value
        limit = _Limit(
            gate="perplexity.max_ratio" if are_both else "perplexity",
            figure="the perplexity",
            unit="ratio",
            symbol="× the reference's",
            limit=gate.max_ratio,
            confidence=gate.confidence,
            detail=f"{show(before)} before, {show(after)} after",
        )
        verdicts.append(_judge(limit, language.perplexity_ratio(gate.confidence), language))
    if gate.max is not None:
        limit = _Limit(
            gate="perplexity.max" if are_both else "perplexity",
            figure="the perplexity",
            unit="perplexity",
            symbol="",
            limit=gate.max,
            confidence=gate.confidence,
            detail="exp of the mean loss",
            digits=2,
        )
        verdicts.append(_judge(limit, language.perplexity(gate.confidence), language))
    return verdicts


def judge_next_token_divergence(gate: DivergenceGate, language: LanguageEvaluation) -> Verdict:
    """Judge the mean divergence of the next token's probabilities from the reference's.

    Args:
        gate: Largest mean in nats a token, and confidence.
        language: Measured with a reference.

    Raises:
        UsageError: There is no reference.
        ArtifactError: A divergence is not finite.

    Source: Kullback & Leibler, "On information and sufficiency", Ann. Math. Stat. 22 (1951).
    """
    _refuse_broken(language)
    _refuse_without_reference(language, "divergence", "max_mean_kld")
    limit = _Limit(
        gate="divergence",
        figure="the mean divergence",
        unit="nats",
        symbol=" nats",
        limit=gate.max_mean_kld,
        confidence=gate.confidence,
        detail=f"99 % of the tokens below {_nats(language.kld_percentile(99).value)}",
    )
    return _judge(limit, language.mean_kld(gate.confidence), language)


def judge_next_token_flips(gate: FlipsGate, language: LanguageEvaluation) -> Verdict:
    """Judge the share of the tokens after which the artifact holds another one for the likeliest.

    Args:
        gate: Largest share, and confidence.
        language: Measured with a reference.

    Raises:
        UsageError: There is no reference.
    """
    _refuse_broken(language)
    _refuse_without_reference(language, "flips", "max_rate")
    assert language.same_top is not None
    num_changed, num_tokens = int((~language.same_top).sum()), language.num_tokens
    limit = _Limit(
        gate="flips",
        figure="the share of tokens with another likeliest successor",
        unit="share",
        symbol=" %",
        limit=gate.max_rate,
        confidence=gate.confidence,
        detail=f"{num_changed:,} of {num_tokens:,} changed",
        digits=2,
        scale=100.0,
    )
    rate = language.flip_rate(gate.confidence)
    settled = None
    if not num_changed and rate.upper is not None:  # a bound without a flip falls as windows grow in number
        settled = math.ceil(language.num_windows * rate.upper / gate.max_rate)
    return _judge(limit, rate, language, settled=settled)


def judge_perplexity_growth(
    gate: RegressionGate, artifact: LanguageEvaluation, before: LanguageEvaluation | None
) -> Verdict:
    """Judge how many times the perplexity of an earlier release, or of the baseline, it is on the same tokens.

    Args:
        gate: `max_perplexity_ratio`, and confidence.
        artifact: What was measured.
        before: The same of the earlier release; None for the reference that `artifact` was held against.

    Raises:
        UsageError: They were measured on different tokens, or there is no reference.
        ArtifactError: A loss is not finite.
    """
    assert gate.max_perplexity_ratio is not None
    _refuse_broken(artifact)
    if before is not None:
        _refuse_broken(before)
        _refuse_other_tokens(artifact, before)
        artifact = replace(artifact, reference_nll=before.nll, reference_engine=before.engine)
    elif not artifact.has_reference:
        raise UsageError(
            "the regression gate's max_perplexity_ratio needs predictions of the earlier release on the same text",
            mend="Make them with `edgesmith eval`.",
        )
    limit = _Limit(
        gate="regression.max_perplexity_ratio",
        figure="the perplexity",
        unit="ratio",
        symbol="× that of the baseline",
        limit=gate.max_perplexity_ratio,
        confidence=gate.confidence,
        detail=f"{show(artifact.reference_perplexity().value)} before, {show(artifact.perplexity().value)} after",
    )
    return _judge(limit, artifact.perplexity_ratio(gate.confidence), artifact)


def _refuse_other_tokens(artifact: LanguageEvaluation, before: LanguageEvaluation) -> None:
    if artifact.windows_digest != before.windows_digest or artifact.nll.shape != before.nll.shape:
        raise UsageError(
            f"the perplexities cannot be compared: the artifact was measured on {artifact.num_tokens:,} tokens of "
            f"{artifact.windows_digest[:19]}…, the baseline on {before.num_tokens:,} of {before.windows_digest[:19]}…",
            mend="Measure both on the same text, cut with the same tokenizer, or leave max_perplexity_ratio out.",
        )


def _judge(limit: _Limit, estimate: Estimate, language: LanguageEvaluation, *, settled: int | None = None) -> Verdict:
    """Hold a figure with its bounds against an upper limit.

    Args:
        limit: The limit.
        estimate: The figure.
        language: What it is of.
        settled: Windows that would settle it; by default found from the width of the bounds.
    """
    n, needed = language.num_windows, None
    lower, upper = estimate.lower, estimate.upper
    asked = f"the limit of {_plain(limit)}{limit.symbol}"
    if lower is None or upper is None:
        outcome, needed = Outcome.INCONCLUSIVE, MIN_BOUNDED
        said = f"{n} windows of text are too few to bound {limit.figure}, needs ≥ {MIN_BOUNDED}"
    elif upper <= limit.limit:
        outcome = Outcome.PASS
        said = f"{limit.figure} is at most {limit.shown(upper, 'up')}, within {asked}"
    elif lower > limit.limit:
        outcome = Outcome.FAIL
        said = f"{limit.figure} is at least {limit.shown(lower, 'down')}, beyond {asked}"
    else:
        outcome = Outcome.INCONCLUSIVE
        width = upper - estimate.value if estimate.value <= limit.limit else estimate.value - lower
        needed = settled or samples_to_settle(n, width, abs(estimate.value - limit.limit))
        hint = f"; about {show_count(needed)} windows of text would settle it" if needed else ""
        said = (
            f"{limit.figure} may be {limit.shown(lower, 'down')} to {limit.shown(upper, 'up')}, on either side of "
            f"{asked}{hint}"
        )
    evidence = (
        f"measured {limit.shown(estimate.value)}, {limit.detail}; {language.num_tokens:,} tokens in {n:,} windows of "
        f"{language.window_length:,}{_against(language)}; {100 * limit.confidence:g} % confidence"
    )
    return Verdict(
        gate=limit.gate,
        verdict=outcome,
        reason=f"{said} ({evidence}).",
        unit=limit.unit,
        threshold=limit.limit,
        estimate=estimate.value,
        bound=lower if outcome is Outcome.FAIL else upper,
        confidence=limit.confidence,
        num_samples=n,
        samples="windows",
        detectable=None if upper is None else upper - estimate.value,
        num_needed=needed,
    )


def _plain(limit: _Limit) -> str:
    """The limit as the recipe says it, never as 2e-05."""
    return show(limit.scale * limit.limit, digits=places_of(limit.scale * limit.limit, 15)).rstrip("0").rstrip(".")


def _nats(value: float) -> str:
    return f"{show(value, digits=places_of(value, 4))} nats"


def _against(language: LanguageEvaluation) -> str:
    if not language.has_reference:
        return ""
    of = f" of {language.reference_artifact[:19]}…" if language.reference_artifact else ""
    return f" against {language.reference_engine}{of}"


def _refuse_without_reference(language: LanguageEvaluation, gate: str, limit: str) -> None:
    if not language.has_reference:
        raise UsageError(
            f"the {gate} gate's {limit} needs predictions that were held against a reference",
            mend="Measure again with one: `edgesmith eval ARTIFACT --against CHECKPOINT`.",
        )


def _refuse_broken(language: LanguageEvaluation) -> None:
    for name in ("nll", "reference_nll", "kld"):
        values = getattr(language, name)
        if values is not None and not np.isfinite(values).all():
            window = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise ArtifactError(
                f"{name} of window {window + 1} is not finite: there is nothing to judge",
                mend="Verify the artifact, then measure it again: `edgesmith verify`, `edgesmith eval`.",
            )
