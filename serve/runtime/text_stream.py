"""Tokens to text for engines that split text with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgesmith.errors import ArtifactError, CheckpointError
from serve.runtime.generation import TextChunk
from serve.runtime.stop_strings import StopFilter

__all__ = ["load_tokenizer", "stream_text"]


def load_tokenizer(path: Path, *, failure: type[ArtifactError] | type[CheckpointError]) -> Tokenizer:
    """Open a `tokenizer.json`, which neither cuts texts nor fills them up.

    Args:
        path: It must exist.
        failure: What to raise when it is damaged.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise failure(f"{path}: is damaged: {reason}", mend="Get it again from where it was made.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def stream_text(
    tokenizer: Tokenizer, tokens: Iterator[tuple[int, bool]], *, max_tokens: int, held: StopFilter
) -> Iterator[TextChunk]:
    """Turn tokens into pieces of text as they come.

    Args:
        tokenizer: The model's.
        tokens: Each with whether it ends the answer; no more are asked for than are needed.
        max_tokens: After so many the answer ends.
        held: Keeps back what may become a stop string.
    """
    stream = DecodeStream(skip_special_tokens=True)
    for left, (token, is_end) in zip(range(max_tokens - 1, -1, -1), tokens, strict=False):
        text = held.push(stream.step(tokenizer, token) or "")  # None until a character is complete
        ended = is_end or held.found is not None
        if ended or not left:
            yield TextChunk(text=text + held.flush(), finish_reason="stop" if ended else "length")
            return
        yield TextChunk(text=text)
