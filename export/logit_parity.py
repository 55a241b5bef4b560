"""How near an exported language model's logits are to torch's, and how near they have to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import VerificationError
from export.divergence import kl_divergence, same_top_label

__all__ = ["LogitParity", "LogitTolerance", "compare_logits"]


@dataclass(frozen=True, kw_only=True)
class LogitTolerance:
    """How far a sound export may be from its checkpoint."""

    mean_kld: float
    """In nats a token."""
    same_top: float
    """Share of tokens whose likeliest successor is the same."""


@dataclass(frozen=True, kw_only=True)
class LogitParity:
    """How near the two sets of logits are, over all tokens."""

    num_tokens: int
    mean_kld: float
    """Kullback–Leibler divergence of the export from torch, in nats a token."""
    max_kld: float
    same_top: float
    """Share of tokens whose likeliest successor is the same."""


def compare_logits(
    pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]],
    tolerance: LogitTolerance,
    *,
    path: Path,
    engine: str,
    mend: str,
) -> LogitParity:
    """Compare logits text by text.

    Args:
        pairs: Torch's and the export's logits of a text, each of shape [tokens, vocabulary]; taken one by one.
        tolerance: What they have to keep.
        path: The export, for the message.
        engine: That ran it, for the message.
        mend: What to do where they do not.

    Returns:
        The figures.

    Raises:
        VerificationError: they are further apart than that, or no numbers.
    """
    klds: list[NDArray[np.float64]] = []
    tops: list[NDArray[np.bool_]] = []
    for expected, found in pairs:
        klds.append(kl_divergence(expected, found))
        tops.append(same_top_label(expected, found))
    kld, top = np.concatenate(klds), np.concatenate(tops)
    result = LogitParity(
        num_tokens=len(kld), mean_kld=float(kld.mean()), max_kld=float(kld.max()), same_top=float(top.mean())
    )
    # Written so that NaN fails.
    if not (result.mean_kld <= tolerance.mean_kld and result.same_top >= tolerance.same_top):
        raise VerificationError(
            f"{path}: the logits of {engine} differ from torch's: mean KLD {result.mean_kld:.3g} (at most "
            f"{tolerance.mean_kld:g}), same top token {result.same_top:.2%} (at least {tolerance.same_top:.2%}), "
            f"{result.num_tokens} tokens",
            mend=mend,
        )
    return result
