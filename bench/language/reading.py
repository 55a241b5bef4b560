"""One window after the other through an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.language.scores import Block, blocks_of
from bench.language.windows import Windows
from edgesmith.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["check_width", "read_window"]


def check_width(engine: GenerationEngine, windows: Windows, width: int) -> None:
    """Look whether an engine can read windows and gives as many logits as are wanted.

    Raises:
        UsageError: It cannot.
    """
    if not 1 <= width <= engine.num_vocabulary:
        raise UsageError(
            f"{engine.name} gives {engine.num_vocabulary:,} logits, fewer than the {width:,} that are compared",
            mend=f"Record the reference of {engine.num_vocabulary:,} tokens, if the rest is padding.",
        )
    if windows.length > engine.context_length:
        raise UsageError(
            f"a window of {windows.length:,} tokens does not fit into the {engine.context_length:,} of {engine.name}",
            mend="Take shorter windows, or open the model with a larger context.",
        )
    largest = max(int(windows.tokens.max()), windows.bos or 0)
    if largest >= width:
        raise UsageError(
            f"the text has token {largest:,}, but {engine.name} knows {width:,}",
            mend="Split the text with the tokenizer of this model.",
        )


def read_window(engine: GenerationEngine, windows: Windows, window: int, width: int) -> Iterator[Block]:
    """Give the distributions of a window's scored tokens, a few at a time.

    Args:
        engine: Reads the whole window in one pass.
        windows: Of the text.
        window: Which one.
        width: Logits beyond it are left out.

    Raises:
        VerificationError: A logit is not finite, or there are not as many as the engine says.
    """
    logits = engine.logits(windows.input_of(window), first=windows.first)
    expected = (windows.length - windows.first, engine.num_vocabulary)
    if logits.shape != expected:
        raise VerificationError(f"{engine.name} gave logits of shape {logits.shape} for {expected}")
    try:
        yield from blocks_of(logits[: windows.num_scored, :width])
    except ValueError as error:
        raise VerificationError(
            f"{engine.name}: {error} in window {window + 1} of {windows.num_windows}",
            mend="The artifact is broken: verify it, and quantize to a larger type.",
        ) from error
