"""llama.cpp's own samplers: a chain for the draw, and a grammar that forbids tokens."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UnsupportedError
from serve.runtime.generation import PENALTY_WINDOW, Sampling
from serve.runtime.llama_library import LlamaModel, load_library

__all__ = ["TokenChooser"]

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class TokenChooser:
    """Chooses the next token of one answer.

    Args:
        model: Whose vocabulary it chooses from.
        sampling: The settings.
        grammar: Checked by `serve.runtime.grammar` before; None for none.
        seen: Tokens of the prompt, for the penalties.

    Raises:
        UnsupportedError: llama.cpp refuses the grammar all the same.
    """

    def __init__(self, model: LlamaModel, sampling: Sampling, grammar: str | None, seen: Sequence[int]) -> None:
        self._library = load_library()
        self._model = model
        self._ids = np.arange(model.num_tokens, dtype=np.int32)
        self._chain = _make_chain(self._library, model, sampling)
        self._grammar = None
        if grammar is not None:
            self._grammar = self._library.llama_sampler_init_grammar(model.vocabulary, grammar.encode(), b"root")
            if not self._grammar:
                self.close()
                raise UnsupportedError("llama.cpp refuses the grammar", mend="Try a simpler one.")
        if sampling.repeat_penalty != 1:
            for token in seen[-PENALTY_WINDOW:]:
                self._library.llama_sampler_accept(self._chain, token)

    def choose(self, logits: NDArray[np.float32]) -> int | None:
        """Choose, and take note of the choice.

        Args:
            logits: Of shape [vocabulary]. Not modified.

        Returns:
            The token; None where the grammar is complete and the model has no token that ends an answer.

        Raises:
            ArtifactError: The logits are no numbers.
            UnsupportedError: No token of the vocabulary follows the grammar.
        """
        likeliest = int(logits.argmax())  # a NaN counts as the largest
        if not math.isfinite(float(logits[likeliest])):
            raise ArtifactError(
                f"{self._model.path}: the model computes {logits[likeliest]} instead of a logit",
                mend="The file is damaged, or its quantization is too coarse: convert the model again.",
            )
        if self._chain is None:
            token: int | None = likeliest
        else:
            token = self._draw(self._candidates(logits))
        if self._grammar is not None and token is not None and not self._follows(token):
            token = self._choose_by_grammar(logits)
        if token is not None:
            self._accept(token)
        return token

    def _choose_by_grammar(self, logits: NDArray[np.float32]) -> int | None:
        candidates = self._candidates(logits)
        self._apply(self._grammar, candidates)
        allowed = candidates[np.isfinite(candidates["logit"])]
        if len(allowed):
            return self._draw(allowed) if self._chain is not None else int(allowed["id"][allowed["logit"].argmax()])
        vocabulary = self._model.vocabulary
        if any(self._library.llama_vocab_is_eog(vocabulary, int(token)) for token in self._ids):
            raise UnsupportedError(
                "no token of the model's vocabulary follows the grammar",
                mend="Allow other characters there, such as those of the language that the model was trained on.",
            )
        return None

    def _follows(self, token: int) -> bool:
        """Whether the grammar takes the token: cheaper than asking about all of them."""
        one = np.array([(token, 0.0, 0.0)], dtype=_CANDIDATE)
        self._apply(self._grammar, one)
        return bool(np.isfinite(one["logit"][0]))

    def _candidates(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        candidates = np.empty(len(logits), dtype=_CANDIDATE)
        candidates["id"], candidates["logit"], candidates["p"] = self._ids, logits, 0.0
        return candidates

    def _apply(self, sampler: Any, candidates: NDArray[Any]) -> Any:
        """Let a sampler change candidates in place; returns the library's view of them."""
        data = candidates.ctypes.data_as(ctypes.POINTER(self._library.llama_token_data))
        view = self._library.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)
        self._library.llama_sampler_apply(sampler, ctypes.byref(view))
        return view

    def _draw(self, candidates: NDArray[Any]) -> int:
        view = self._apply(self._chain, candidates)
        return int(view.data[view.selected].id) if 0 <= view.selected < view.size else int(view.data[0].id)

    def _accept(self, token: int) -> None:
        if self._chain is not None:
            self._library.llama_sampler_accept(self._chain, token)
        if self._grammar is not None:
            self._library.llama_sampler_accept(self._grammar, token)

    def close(self) -> None:
        """Free the samplers. Closing twice is harmless."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                self._library.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def __enter__(self) -> TokenChooser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_chain(library: Any, model: LlamaModel, sampling: Sampling) -> Any:
    """The samplers in llama.cpp's order; None where the likeliest token is taken as it is."""
    if sampling.is_greedy and sampling.repeat_penalty == 1:
        return None
    chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    samplers = []
    if sampling.repeat_penalty != 1:
        penalties = _penalties(library, model, sampling.repeat_penalty)
        samplers.append(penalties)
    if sampling.is_greedy:
        samplers.append(library.llama_sampler_init_greedy())
    else:
        if sampling.top_k:
            samplers.append(library.llama_sampler_init_top_k(sampling.top_k))
        samplers += [
            library.llama_sampler_init_top_p(sampling.top_p, 1),
            library.llama_sampler_init_min_p(sampling.min_p, 1),
            library.llama_sampler_init_temp(sampling.temperature),
            library.llama_sampler_init_dist(sampling.seed),
        ]
    for sampler in samplers:
        library.llama_sampler_chain_add(chain, sampler)
    return chain


def _penalties(library: Any, model: LlamaModel, repeat: float) -> Any:
    """The first argument, the vocabulary's size, came with a later version of the library."""
    arguments = (PENALTY_WINDOW, repeat, 0.0, 0.0)
    takes_size = len(library.llama_sampler_init_penalties.argtypes) == len(arguments) + 1
    return library.llama_sampler_init_penalties(*((model.num_tokens,) if takes_size else ()), *arguments)
