"""Prove that a base and adapters beside it compute in llama.cpp what the merged model computes in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UsageError, VerificationError
from export.divergence import kl_divergence, same_top_label
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions
from serve.runtime.gguf_engine import LlamaEngine

__all__ = ["AdapterParity", "check_adapter"]

FLOAT_KLD = 3e-5
"""Mean divergence, in nats a token, that the runtime's own half-precision tables explain."""
_SLACK = 1.5


@dataclass(frozen=True, kw_only=True)
class AdapterParity:
    """How near base and adapters in llama.cpp are to the merged model in torch, over all tokens.

    All divergences are Kullback-Leibler's, of llama.cpp from torch, in nats a token.
    """

    num_tokens: int
    mean_kld: float
    """Of base and adapters from the merged model."""
    mean_kld_of_base: float
    """Of the base from its own checkpoint: what conversion and quantization cost without adapters."""
    mean_kld_without: float
    """Of the base without adapters from the merged model: what the adapters are there to bring."""
    same_top: float
    """Share of tokens whose likeliest successor is the same, with adapters."""
    max_mean_kld: float
    """The bound that was applied."""


def check_adapter(
    gguf_file: Path,
    adapters: Sequence[tuple[Path, float]],
    *,
    base: Path,
    merged: Path,
    texts: Sequence[str],
    max_tokens: int = 256,
    max_mean_kld: float | None = None,
    threads: int = 1,
) -> AdapterParity:
    """Read texts with the adapters in llama.cpp and with the merged checkpoint in torch, and compare.

    Args:
        gguf_file: The base, in any type.
        adapters: GGUF adapter files and their scales.
        base: The checkpoint that `gguf_file` was made from.
        merged: `base` with the same adapters merged, with the scales as weights.
        texts: Real texts; each is cut to `max_tokens`.
        max_tokens: Longest text.
        max_mean_kld: Bound, in nats a token; by default half as much again as the base alone is off, and at least
            what the runtime's arithmetic explains.
        threads: Of both.

    Raises:
        VerificationError: The two are further apart than that, or no nearer than without adapters.
        UsageError: The texts have fewer than two tokens, or there are no adapters.
        ArtifactError: llama.cpp refuses base or adapter.
    """
    if not adapters:
        raise UsageError("there are no adapters to check")
    engine = LlamaEngine(gguf_file, EngineOptions(threads=threads, adapters=tuple(adapters)))
    try:
        expected = _torch_logits(merged, texts, max_tokens, threads)
        plain = _torch_logits(base, texts, max_tokens, threads)
        found = [engine.logits(tokens) for tokens, _ in expected]
        engine.scale_adapters([0.0] * len(adapters))
        without = [engine.logits(tokens) for tokens, _ in expected]
    finally:
        engine.close()
    kld = _mean_kld([row for _, row in expected], found)
    of_base = _mean_kld([row for _, row in plain], without)
    bound = max(FLOAT_KLD, _SLACK * of_base) if max_mean_kld is None else max_mean_kld
    tops = [same_top_label(row, other) for (_, row), other in zip(expected, found, strict=True)]
    result = AdapterParity(
        num_tokens=sum(map(len, found)),
        mean_kld=kld,
        mean_kld_of_base=of_base,
        mean_kld_without=_mean_kld([row for _, row in expected], without),
        same_top=float(np.concatenate(tops).mean()),
        max_mean_kld=bound,
    )
    _judge(gguf_file, result)
    return result


def _judge(gguf_file: Path, result: AdapterParity) -> None:
    figures = (
        f"mean KLD {result.mean_kld:.3g} with the adapters, {result.mean_kld_without:.3g} without, "
        f"{result.mean_kld_of_base:.3g} of the base alone, {result.num_tokens} tokens"
    )
    # Not "more than": a NaN must fail.
    if not result.mean_kld <= result.max_mean_kld:
        raise VerificationError(
            f"{gguf_file}: with its adapters it differs from the merged model by more than {result.max_mean_kld:.3g}: "
            f"{figures}",
            mend="Do not ship it beside this base: merge the adapter, and convert the result.",
        )
    if result.mean_kld >= result.mean_kld_without:
        raise VerificationError(
            f"{gguf_file}: the adapters bring it no nearer to the merged model: {figures}",
            mend="Their effect is smaller than the error of the base's type: choose a wider type for the base, or "
            "check that adapters and merged model belong together.",
        )


def _torch_logits(
    checkpoint: Path, texts: Sequence[str], max_tokens: int, threads: int
) -> list[tuple[list[int], NDArray[np.float32]]]:
    engine = TorchGenerationEngine(checkpoint, threads=threads)
    try:
        tokens = [engine.tokenize(text)[:max_tokens] for text in texts]
        tokens = [one for one in tokens if one]
        if sum(map(len, tokens)) < 2:
            raise UsageError("the texts have fewer than two tokens", mend="Give real text.")
        return [(one, engine.logits(one)) for one in tokens]
    finally:
        engine.close()


def _mean_kld(expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]) -> float:
    rows = [kl_divergence(one, other) for one, other in zip(expected, found, strict=True)]
    return float(np.concatenate(rows).mean())
