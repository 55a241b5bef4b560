"""Measure how well an engine predicts a text, and how far it is from a reference, in one pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.language.evaluation import LanguageEvaluation
from bench.language.reading import check_width, read_window
from bench.language.reference import Reference
from bench.language.tail import mend_leaks
from bench.language.windows import Windows
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["measure_language"]

_TAIL = ("kld", "lack", "rest")


def measure_language(
    engine: GenerationEngine,
    windows: Windows | Reference,
    *,
    reference: Reference | None = None,
    num_vocabulary: int | None = None,
    artifact_digest: str | None = None,
    text: str = "",
    progress: Progress = SILENT,
) -> LanguageEvaluation:
    """Score every window: losses, and with a reference the divergence from it.

    Args:
        engine: Reads each window in one pass.
        windows: Of the text, or a reference that was recorded on them.
        reference: What the predictions are held against; its windows must be `windows`.
        num_vocabulary: Tokens that the tokenizer has; logits beyond are padding and left out. With a reference, that
            of the reference; else all by default.
        artifact_digest: Of what the engine runs.
        text: What the text is called.
        progress: Shows the windows done.

    Raises:
        UsageError: The reference is of other windows or of more tokens than the engine knows, or a window does not
            fit into its context.
        VerificationError: A logit is not finite.

    Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity` and `kl_divergence`.
    """
    if isinstance(windows, Reference):
        reference, windows = reference or windows, windows.windows
    width = _width_of(engine, windows, reference, num_vocabulary)
    check_width(engine, windows, width)
    start = time.perf_counter()
    rows = [
        _score(engine, windows, window, width, reference)
        for window in progress.track(range(windows.num_windows), "perplexity")
    ]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return LanguageEvaluation(
        engine=engine.name,
        artifact_digest=artifact_digest,
        windows_digest=windows.digest,
        window_length=windows.length,
        bos=windows.bos,
        num_vocabulary=width,
        num_excluded=engine.num_vocabulary - width,
        nll=columns["nll"],
        reference_nll=None if reference is None else -reference.target_logs,
        kld=None if reference is None else mend_leaks(**{name: columns[name] for name in _TAIL}).astype(np.float32),
        same_top=columns.get("same_top"),
        reference_engine=reference.engine if reference else None,
        reference_artifact=reference.artifact_digest if reference else None,
        reference_digest=reference.digest if reference else None,
        text=text,
        seconds=time.perf_counter() - start,
    )


def _width_of(engine: GenerationEngine, windows: Windows, reference: Reference | None, asked: int | None) -> int:
    if reference is None:
        return engine.num_vocabulary if asked is None else asked
    if reference.windows.digest != windows.digest:
        raise UsageError(
            f"the reference was recorded on other windows ({reference.windows.digest[:19]}… of "
            f"{reference.windows.num_windows}, not {windows.digest[:19]}… of {windows.num_windows})",
            mend="Record it again on this text, cut in the same way.",
        )
    if asked is not None and asked != reference.width:
        raise UsageError(
            f"num_vocabulary is {asked:,}, but the reference was recorded of {reference.width:,} tokens",
            mend="Record it again with the same number.",
        )
    return reference.width


def _score(
    engine: GenerationEngine, windows: Windows, window: int, width: int, reference: Reference | None
) -> dict[str, NDArray[Any]]:
    """Figures of one window's tokens, each of shape [num_scored]; its logits are gone afterwards."""
    found: dict[str, list[NDArray[Any]]] = {"nll": []}
    if reference is not None:
        found |= {"same_top": [], **{name: [] for name in _TAIL}}
    targets = windows.targets[window]
    for block in read_window(engine, windows, window, width):
        here = targets[block.start : block.start + len(block.totals), None]
        found["nll"].append(-block.logs_of(here)[:, 0].astype(np.float32))
        if reference is not None:
            stored = reference.rows(window, block)
            divergence = block.divergence_from(stored)
            for name in _TAIL:
                found[name].append(getattr(divergence, name))
            found["same_top"].append(block.likeliest == stored.top_ids[:, 0])
    return {name: np.concatenate(parts) for name, parts in found.items()}
