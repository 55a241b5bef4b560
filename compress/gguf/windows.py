"""Windows of tokens, checked before a model reads them."""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.errors import UsageError

__all__ = ["check_windows"]


def check_windows(windows: Sequence[Sequence[int]], *, num_vocabulary: int, context_length: int | None) -> None:
    """Refuse what a model cannot read.

    Args:
        windows: Numbers of tokens.
        num_vocabulary: Tokens that the model has.
        context_length: The most tokens of one window; None for no limit.

    Raises:
        UsageError: there is no window, one is empty or too long, or a token is not in the vocabulary.
    """
    if not windows:
        raise UsageError("there is no text to collect an importance matrix on", mend="Give some thousand words.")
    for index, window in enumerate(windows):
        if not window:
            raise UsageError(f"window {index} is empty")
        if context_length is not None and len(window) > context_length:
            raise UsageError(
                f"window {index} has {len(window):,} tokens, the model reads at most {context_length:,}",
                mend="Cut the text into shorter windows.",
            )
        if not 0 <= min(window) <= max(window) < num_vocabulary:
            raise UsageError(
                f"window {index} has tokens from {min(window)} to {max(window)}, the model has {num_vocabulary:,}",
                mend="Use the model's own tokenizer.",
            )
