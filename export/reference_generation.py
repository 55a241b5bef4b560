"""The torch model of a text-generating checkpoint as an engine: what every exported one is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from edgesmith.errors import CheckpointError, UsageError
from export.load import load_model
from export.reference import torch_threads
from serve.runtime.generation import TextChunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TorchGenerationEngine"]


@dataclass(frozen=True)
class _TextGeneration:
    """What `load_model` asks about a task."""

    name: str = "text-generation"
    model_class: str = "AutoModelForCausalLM"
    output_names: tuple[str, ...] = ("logits",)


class TorchGenerationEngine:
    """A checkpoint in fp32 on the CPU, decoding greedily with a cache of keys and values.

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
        self._model: PreTrainedModel | None = load_model(checkpoint, _TextGeneration())
        self._ends = _end_tokens(self._model)
        self._context: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self.name = f"torch {torch.__version__} (CPU, fp32)"

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        return len(self._tokenizer.encode(prompt).ids)

    def generate(self, prompt: str, *, max_tokens: int) -> Iterator[TextChunk]:
        """Continue a prompt greedily; see `serve.runtime.generation.GenerationEngine`."""
        if self._model is None:
            raise UsageError("the engine is closed", mend="Open the checkpoint again.")
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; it must be at least 1")
        ids = self._tokenizer.encode(prompt).ids
        if not ids:
            raise UsageError("the prompt has no tokens", mend="Give a text.")
        if self._context is not None and len(ids) + max_tokens > self._context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the answer {max_tokens} at the most, more together than the "
                f"{self._context} that the model takes",
                mend="Shorten the prompt, or ask for fewer tokens.",
            )
        return self._decode(self._model, ids, max_tokens)

    def _decode(self, model: PreTrainedModel, ids: list[int], max_tokens: int) -> Iterator[TextChunk]:
        stream = DecodeStream(skip_special_tokens=True)
        step, cache = torch.tensor([ids]), None
        for _ in range(max_tokens):
            token, cache = self._step(model, step, cache)
            text = stream.step(self._tokenizer, token)  # None until a character is complete
            yield TextChunk(text=text or "")
            if token in self._ends:
                return
            step = torch.tensor([[token]])

    def _step(self, model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> tuple[int, Any]:
        """Read tokens of shape [1, length]; the likeliest next one, and the cache grown by them."""
        with torch.inference_mode(), torch_threads(self._threads):
            outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True)
            return int(outputs.logits[0, -1].argmax()), outputs.past_key_values

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _load_tokenizer(checkpoint: Path) -> Tokenizer:
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: has no tokenizer.json",
            mend="Save it with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{path}: is damaged: {error}", mend="Get the checkpoint again from its source."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Tokens after which the model has nothing more to say."""
    settings = getattr(model, "generation_config", None)
    stated = getattr(settings, "eos_token_id", None)
    if stated is None:
        stated = getattr(model.config, "eos_token_id", None)
    if stated is None:
        return frozenset()
    return frozenset([stated] if isinstance(stated, int) else [int(token) for token in stated])
