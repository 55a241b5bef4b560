"""What one pass over a window's logits gives: losses, likeliest tokens, and the divergence from stored ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.language.tail import MAX_RATIO, Divergence

__all__ = ["Block", "StoredRows", "blocks_of", "draw_tail", "kl_terms"]

Floats = NDArray[np.float64]

_ROWS_AT_ONCE = 16
_SMALL = 0.5
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Some rows of a model's next-token distribution as a reference keeps them: the likeliest tokens and a sample.

    B rows, K likeliest tokens, M sampled ones. All logarithms are natural, of probabilities over the whole width.
    """

    top_ids: NDArray[np.integer]
    """Likeliest tokens, falling, of shape [B, K]."""
    top_logs: NDArray[np.float32]
    tail_ids: NDArray[np.integer]
    """Of the other tokens, drawn in proportion to their probability, of shape [B, M]; M is 0 where K is all."""
    tail_logs: NDArray[np.float32]
    rest_logs: NDArray[np.float32]
    """Of all tokens but the likeliest together, of shape [B]; minus infinity where there is none."""


@dataclass(frozen=True)
class Block:
    """The next-token distributions of a few rows of logits."""

    start: int
    """Row of the window's logits that is the first here."""
    exps: NDArray[np.float32]
    """exp(logit − largest logit), of shape [B, V]."""
    totals: Floats
    """Sum of `exps` of each row, of shape [B]."""
    likeliest: NDArray[np.int64]
    """Of shape [B]; of equal logits the first."""
    shifted: NDArray[np.float32]
    """logit − largest logit, of shape [B, V]."""

    def logs_of(self, ids: NDArray[np.integer]) -> Floats:
        """Logarithms of the probabilities of some tokens of each row, of shape [B, n]."""
        picked = np.take_along_axis(self.shifted, ids.astype(np.int64), axis=1).astype(np.float64)
        return np.asarray(picked - np.log(self.totals)[:, None])

    def divergence_from(self, stored: StoredRows) -> Divergence:
        """Estimate KL(stored ‖ this) of each row in nats; `mend_leaks` completes it over all rows of a text.

        The likeliest tokens are summed, and so is the rest as one token: that alone is never too large. What it lacks
        is rest · KL(within the rest), estimated from the sampled tokens as the mean of w − 1 − ln w over draws from
        the stored rest, with w the ratio of the two distributions within it. Its terms are never negative and of
        second order, so that it is as exact for a nearly equal model as for a bad one. It is unbiased over all draws
        only: what this model gives to a token that is too rare to be drawn is missed, and counted by `mend_leaks`.

        Source: Cover & Thomas, Elements of Information Theory, theorem 2.7.1 (log sum inequality) for the bucket;
        the estimator: Schulman, "Approximating KL divergence" (2020), k3.
        """
        ids = stored.top_ids.astype(np.int64)
        stored_top, found_top = stored.top_logs.astype(np.float64), self.logs_of(ids)
        summed: Floats = kl_terms(stored_top, found_top).sum(axis=1)
        if not stored.tail_ids.shape[1]:
            return Divergence(kld=summed, lack=np.zeros_like(summed), rest=np.zeros_like(summed))
        of_top = np.take_along_axis(self.exps, ids, axis=1).sum(axis=1, dtype=np.float64)
        rest = np.maximum(self.totals - of_top, _TINY) / self.totals
        stored_rest = np.maximum(stored.rest_logs.astype(np.float64), np.log(_TINY))
        found_rest = np.log(rest)
        summed += kl_terms(stored_rest, found_rest)
        logs = self.logs_of(stored.tail_ids) - stored.tail_logs.astype(np.float64)
        logs += (stored_rest - found_rest)[:, None]
        gained = np.expm1(np.minimum(logs, np.log(MAX_RATIO)))  # min(w, c) − 1
        mass = np.exp(stored_rest)
        return Divergence(kld=summed + mass * (gained - logs).mean(axis=1), lack=-mass * gained.mean(axis=1), rest=mass)


def kl_terms(stored: Floats, found: Floats) -> Floats:
    """Terms p ln(p / q) − p + q, never negative, whose sum is the divergence where both sum to one.

    They are of second order in ln(p / q), so the rounding of a stored logarithm does not add up to a divergence.

    Args:
        stored: ln p.
        found: ln q, of the same shape.
    """
    ratio = stored - found
    p = np.exp(stored)
    near = p * (np.expm1(-np.clip(ratio, -_SMALL, _SMALL)) + np.clip(ratio, -_SMALL, _SMALL))
    return np.where(np.abs(ratio) < _SMALL, near, p * ratio - p + np.exp(found))


def blocks_of(logits: NDArray[np.float32]) -> Iterator[Block]:
    """Turn a window's logits into distributions, a few rows at a time; sums are taken in float64.

    Args:
        logits: Finite, float32 of shape [rows, V]. Not modified.

    Raises:
        ValueError: A logit is not finite.
    """
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE]
        likeliest = rows.argmax(axis=1)
        shifted = rows - np.take_along_axis(rows, likeliest[:, None], axis=1)
        if not (np.isfinite(shifted.min()) and np.isfinite(shifted.max())):
            raise ValueError("a logit is not finite")
        exps = np.exp(shifted)
        yield Block(start, exps, exps.sum(axis=1, dtype=np.float64), likeliest, shifted)


def draw_tail(block: Block, top_ids: NDArray[np.integer], num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw tokens other than the likeliest, each in proportion to its probability: one in each of `num` equal shares.

    Args:
        block: The distributions.
        top_ids: Tokens that are not drawn, of shape [B, K].
        num: Draws a row.
        rng: One number a row is taken from it.

    Returns:
        Tokens in rising order, of shape [B, num].

    Source: systematic sampling, Madow, Ann. Math. Stat. 20 (1949): each draw is unbiased, and the draws are spread.
    """
    masses = block.exps.copy()
    np.put_along_axis(masses, top_ids.astype(np.int64), 0.0, axis=1)
    drawn = np.empty((len(masses), num), dtype=np.int64)
    places = (np.arange(num)[None, :] + rng.random((len(masses), 1))) / num
    for row, share in enumerate(places):
        sums = np.cumsum(masses[row], dtype=np.float64)
        found = np.searchsorted(sums, share * sums[-1], side="right")
        drawn[row] = np.minimum(found, np.searchsorted(sums, sums[-1]))  # never a token without mass at the end
    return drawn
