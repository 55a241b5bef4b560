"""Compare what onnxruntime-genai computes with torch, through the engine that will serve the folder.

With floats, staying within `TOLERANCES` proves the folder. With whole numbers, `TRIPWIRES` only tell a rounded model
from a broken graph: a folder within them may still be a poor model. How good it is, gates on real text must say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesmith.artifact import MANIFEST, Artifact, FileEntry, Manifest, read_artifact
from edgesmith.errors import UsageError
from edgesmith.files import sha256_file
from export.genai.quant_config import Precision
from export.logit_parity import LogitParity, LogitTolerance, compare_logits
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions
from serve.runtime.genai_engine import GenaiEngine, open_engine

__all__ = ["TOLERANCES", "TRIPWIRES", "check_logits", "open_genai"]

TOLERANCES: Mapping[Precision, LogitTolerance] = {
    "fp32": LogitTolerance(mean_kld=1e-6, same_top=0.998),
    "fp16": LogitTolerance(mean_kld=3e-5, same_top=0.99),
}
"""Of floats: what rounding explains."""
TRIPWIRES: Mapping[Precision, LogitTolerance] = {
    "int8": LogitTolerance(mean_kld=0.1, same_top=0.8),
    "int4": LogitTolerance(mean_kld=1.5, same_top=0.2),
}
"""Of whole numbers: a broken graph is off by more. They verify no quality."""


def check_logits(
    checkpoint: Path,
    folder: Path,
    *,
    texts: Sequence[str],
    precision: Precision,
    max_tokens: int = 512,
    tolerance: LogitTolerance | None = None,
    threads: int = 1,
) -> LogitParity:
    """Read texts with both, compare the logits after every token.

    For the precisions of `TRIPWIRES` this finds broken graphs only, and is no verification of the model.

    Args:
        checkpoint: Hugging Face folder.
        folder: What was made from it.
        texts: Real texts, as the model meets them; each is cut to `max_tokens`.
        precision: Of the folder; decides the tolerance or tripwire.
        max_tokens: Longest text.
        tolerance: Instead of the precision's own.
        threads: Of both.

    Returns:
        The figures.

    Raises:
        VerificationError: They are further apart than the precision explains, or than its tripwire.
        UsageError: The texts have fewer than two tokens.
        ArtifactError: The folder is refused.
    """
    reference, engine = TorchGenerationEngine(checkpoint, threads=threads), open_genai(folder, threads=threads)
    try:
        longest = min(max_tokens, engine.context_length)
        ids = [one for text in texts if (one := reference.tokenize(text)[:longest])]
        if sum(map(len, ids)) < 2:
            raise UsageError("the texts have fewer than two tokens", mend="Give real text.")
        return compare_logits(
            ((reference.logits(one), engine.logits(one)) for one in ids),
            tolerance or {**TOLERANCES, **TRIPWIRES}[precision],
            path=folder,
            engine="onnxruntime-genai",
            mend="Do not ship this folder. Use GGUF for this model, and report its config.json.",
        )
    finally:
        reference.close()
        engine.close()


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
