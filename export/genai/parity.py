"""Prove that onnxruntime-genai computes what torch computes, through the engine that will serve the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesmith.artifact import MANIFEST, Artifact, FileEntry, Manifest, read_artifact
from edgesmith.errors import UsageError, VerificationError
from edgesmith.files import sha256_file
from export.divergence import kl_divergence, same_top_label
from export.genai.quant_config import Precision
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions
from serve.runtime.genai_engine import GenaiEngine, open_engine

__all__ = ["TOLERANCES", "LogitParity", "Tolerance", "check_logits", "open_genai"]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a sound folder may be from its checkpoint."""

    mean_kld: float
    """In nats a token."""
    same_top: float
    """Share of tokens whose likeliest successor is the same."""


# Whole numbers are judged by gates on real text; here they are told from a broken graph, which is off by nats.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(mean_kld=1e-6, same_top=0.998),
    "fp16": Tolerance(mean_kld=3e-5, same_top=0.99),
    "int8": Tolerance(mean_kld=0.1, same_top=0.8),
    "int4": Tolerance(mean_kld=1.5, same_top=0.2),
}


@dataclass(frozen=True, kw_only=True)
class LogitParity:
    """How near the two sets of logits are, over all tokens."""

    num_tokens: int
    mean_kld: float
    """Kullback–Leibler divergence of the folder from torch, in nats a token."""
    max_kld: float
    same_top: float
    """Share of tokens whose likeliest successor is the same."""


def check_logits(
    checkpoint: Path,
    folder: Path,
    *,
    texts: Sequence[str],
    precision: Precision,
    max_tokens: int = 512,
    tolerance: Tolerance | None = None,
    threads: int = 1,
) -> LogitParity:
    """Read texts with both, compare the logits after every token.

    Args:
        checkpoint: Hugging Face folder.
        folder: What was made from it.
        texts: Real texts, as the model meets them; each is cut to `max_tokens`.
        precision: Of the folder; decides the tolerance.
        max_tokens: Longest text.
        tolerance: Instead of the precision's own.
        threads: Of both.

    Returns:
        The figures.

    Raises:
        VerificationError: They are further apart than the precision explains.
        UsageError: The texts have fewer than two tokens.
        ArtifactError: The folder is refused.
    """
    bound = TOLERANCES[precision] if tolerance is None else tolerance
    reference, engine = TorchGenerationEngine(checkpoint, threads=threads), open_genai(folder, threads=threads)
    klds, tops = [], []
    try:
        longest = min(max_tokens, engine.context_length)
        ids = [one for text in texts if (one := reference.tokenize(text)[:longest])]
        if sum(map(len, ids)) < 2:
            raise UsageError("the texts have fewer than two tokens", mend="Give real text.")
        for one in ids:
            expected, found = reference.logits(one), engine.logits(one)
            klds.append(kl_divergence(expected, found))
            tops.append(same_top_label(expected, found))
    finally:
        reference.close()
        engine.close()
    kld = np.concatenate(klds)
    result = LogitParity(
        num_tokens=len(kld),
        mean_kld=float(kld.mean()),
        max_kld=float(kld.max()),
        same_top=float(np.concatenate(tops).mean()),
    )
    # Written so that NaN fails.
    if not (result.mean_kld <= bound.mean_kld and result.same_top >= bound.same_top):
        raise VerificationError(
            f"{folder}: the logits of onnxruntime-genai differ from torch's: mean KLD {result.mean_kld:.3g} (at most "
            f"{bound.mean_kld:g}), same top token {result.same_top:.2%} (at least {bound.same_top:.2%}), "
            f"{result.num_tokens} tokens",
            mend="Do not ship this folder. Use GGUF for this model, and report its config.json.",
        )
    return result


def open_genai(folder: Path, *, threads: int = 1) -> GenaiEngine:
    """Open a folder with or without a manifest.

    Raises:
        ArtifactError: A file is missing or refused.
    """
    if (folder / MANIFEST).is_file():
        return open_engine(read_artifact(folder), EngineOptions(threads=threads))
    files = tuple(
        FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    )
    artifact = Artifact(path=folder, manifest=Manifest(kind="genai", step="found", files=files))
    return open_engine(artifact, EngineOptions(threads=threads))
