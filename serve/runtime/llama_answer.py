"""One answer of a llama.cpp model as it grows: from logits to the next token and its text."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from serve.runtime.generation import LikelyToken, Sampling, TextChunk, TokenLogprob
from serve.runtime.llama_library import LlamaModel
from serve.runtime.llama_sampling import TokenChooser
from serve.runtime.stop_strings import StopFilter

__all__ = ["LlamaAnswer", "token_logprob"]


class LlamaAnswer:
    """Chooses tokens until the answer ends.

    Args:
        model: It must stay open.
        prompt: Tokens, for the penalties.
        max_tokens: After so many it ends.
        sampling: The settings.
        stop: Strings that end it.
        grammar: Checked before; None for none.
        extra_ends: Tokens that end it, besides those that the model's file names.
        num_logprobs: How many likely tokens are named beside each that is chosen; None for no log-probabilities.

    Attributes:
        token: The one that was chosen last, which the model must read next; None before the first.

    Raises:
        UnsupportedError: llama.cpp refuses the grammar.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        extra_ends: Collection[int] = frozenset(),
        num_logprobs: int | None = None,
    ) -> None:
        self.token: int | None = None
        self._model = model
        self._left = max_tokens
        self._extra_ends = extra_ends
        self._num_logprobs = num_logprobs
        self._held = StopFilter(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._chooser = TokenChooser(model, sampling, grammar, prompt)

    def write(self, logits: NDArray[np.float32]) -> TextChunk:
        """Choose the next token.

        Args:
            logits: Of shape [vocabulary]. Not modified.

        Returns:
            What can be shown now; with a `finish_reason` it is the last.

        Raises:
            ArtifactError: The logits are no numbers.
            UnsupportedError: No token of the vocabulary follows the grammar.
        """
        token = self.token = self._chooser.choose(logits)
        self._left -= 1
        if token is None or token in self._extra_ends or self._model.is_end(token):
            return TextChunk(text=self._held.flush(), finish_reason="stop")
        logprobs = (
            () if self._num_logprobs is None else (token_logprob(self._model, logits, token, self._num_logprobs),)
        )
        text = self._held.push(self._decoder.decode(self._model.piece(token)))
        if self._held.found is not None:
            return TextChunk(text=text, finish_reason="stop", logprobs=logprobs)
        if not self._left:
            return TextChunk(text=text + self._held.flush(), finish_reason="length", logprobs=logprobs)
        return TextChunk(text=text, logprobs=logprobs)

    def close(self) -> None:
        """Free the samplers. Closing twice is harmless."""
        self._chooser.close()

    def __enter__(self) -> LlamaAnswer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def token_logprob(model: LlamaModel, logits: NDArray[np.float32], token: int, num_likely: int) -> TokenLogprob:
    """How likely a token is under the model, and which ones are likeliest.

    Args:
        model: Whose vocabulary it is.
        logits: Of shape [vocabulary].
        token: The one that was chosen.
        num_likely: Of the likeliest, 0 for none.
    """
    # The log of the sum of exponentials in double precision; the largest logit is taken out, so nothing overflows.
    highest = float(logits.max())
    norm = highest + float(np.log(np.exp(logits - np.float32(highest)).sum(dtype=np.float64)))
    likely: tuple[LikelyToken, ...] = ()
    if num_likely:
        count = min(num_likely, len(logits))
        found = np.argpartition(logits, len(logits) - count)[-count:]
        order = found[np.lexsort((found, -logits[found]))]  # of equal ones, the lower number first
        likely = tuple(LikelyToken(int(one), _bytes(model, int(one)), float(logits[one]) - norm) for one in order)
    return TokenLogprob(token, _bytes(model, token), float(logits[token]) - norm, likely)


def _bytes(model: LlamaModel, token: int) -> bytes:
    """What a token stands for; of special ones, as the vocabulary spells them."""
    return model.piece(token) or model.text_of(token).encode()
