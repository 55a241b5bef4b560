"""The torch model of a text-generating checkpoint as an engine: what every exported one is compared with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compress.load import load_model
from edgesmith.errors import CheckpointError, UnsupportedError, UsageError
from export.reference import torch_threads
from serve.runtime.generation import GREEDY, Sampling, TextChunk, check_request, check_tokens
from serve.runtime.sampling import choose_token
from serve.runtime.stop_strings import StopFilter
from serve.runtime.text_stream import load_tokenizer, stream_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TorchGenerationEngine", "load_language_model"]


@dataclass(frozen=True)
class _TextGeneration:
    """What `load_model` asks about a task."""

    name: str = "text-generation"
    model_class: str = "AutoModelForCausalLM"
    output_names: tuple[str, ...] = ("logits",)


def load_language_model(checkpoint: Path) -> PreTrainedModel:
    """Load a text-generating checkpoint in fp32.

    Raises:
        CheckpointError: The checkpoint is damaged, unsafe, or lacks weights.
        UnsupportedError: The architecture generates no text.
    """
    return load_model(checkpoint, _TextGeneration())


class TorchGenerationEngine:
    """A checkpoint in fp32 on the CPU, decoding with a cache of keys and values.

    Args:
        checkpoint: Hugging Face folder with safetensors weights and `tokenizer.json`.
        threads: Threads for one step. More than one is slower where other work keeps the machine busy: torch's
            threads wait for each other by spinning.

    Raises:
        CheckpointError: The checkpoint is damaged, unsafe, lacks weights, or has no `tokenizer.json`.
        UnsupportedError: The architecture generates no text.
    """

    def __init__(self, checkpoint: Path, *, threads: int = 1) -> None:
        self._threads = threads
        self._tokenizer = _load_tokenizer(checkpoint)
        self._model: PreTrainedModel | None = load_language_model(checkpoint)
        self._ends = _end_tokens(self._model)
        self._context: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self.name = f"torch {torch.__version__} (CPU, fp32)"
        self.num_vocabulary = _num_logits(self._model)

    @property
    def context_length(self) -> int:
        """The most tokens that one text can have; where the model has no limit, more than memory has room for."""
        return self._context if self._context is not None else sys.maxsize

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Split a text as the model reads it."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        return len(self.tokenize(prompt))

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one pass; see `serve.runtime.generation.GenerationEngine`."""
        model = self._opened()
        check_tokens(tokens, first=first, num_vocabulary=self.num_vocabulary, context_length=self._context)
        with torch.inference_mode(), torch_threads(self._threads):
            ids = torch.tensor([list(tokens)])
            outputs = model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens) - first, return_dict=True)
            return np.asarray(outputs.logits[0].float().numpy())

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Iterator[TextChunk]:
        """Continue a prompt; see `serve.runtime.generation.GenerationEngine`.

        Raises:
            UnsupportedError: A grammar or a schema is given.
        """
        model = self._opened()
        if grammar is not None or json_schema is not None:
            raise UnsupportedError(
                "the torch engine knows no grammars", mend="Export the checkpoint to GGUF and generate with that."
            )
        ids = self.tokenize(prompt)
        check_request(num_prompt=len(ids), max_tokens=max_tokens, context_length=self._context, stop=stop)
        tokens = self._choose(model, ids, sampling)
        return stream_text(self._tokenizer, tokens, max_tokens=max_tokens, held=StopFilter(stop))

    def _opened(self) -> PreTrainedModel:
        if self._model is None:
            raise UsageError("the engine is closed", mend="Open the checkpoint again.")
        return self._model

    def _choose(self, model: PreTrainedModel, ids: list[int], sampling: Sampling) -> Iterator[tuple[int, bool]]:
        """One token after the other, with whether it is the last."""
        random = np.random.default_rng(sampling.seed)
        step, cache, seen = torch.tensor([ids]), None, list(ids)
        while True:
            logits, cache = self._step(model, step, cache)
            token = choose_token(logits, sampling, seen, random)
            seen.append(token)
            yield token, token in self._ends
            step = torch.tensor([[token]])

    def _step(self, model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> tuple[NDArray[np.float32], Any]:
        """Read tokens of shape [1, length]; the last one's logits, and the cache grown by them."""
        with torch.inference_mode(), torch_threads(self._threads):
            outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True)
            return outputs.logits[0, -1].float().numpy(), outputs.past_key_values

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _num_logits(model: PreTrainedModel) -> int:
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)


def _load_tokenizer(checkpoint: Path) -> Tokenizer:
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: has no tokenizer.json",
            mend="Save it with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`.",
        )
    return load_tokenizer(path, failure=CheckpointError)


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Tokens after which the model has nothing more to say."""
    settings = getattr(model, "generation_config", None)
    stated = getattr(settings, "eos_token_id", None)
    if stated is None:
        stated = getattr(model.config, "eos_token_id", None)
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else [int(token) for token in stated])
