"""Small models of real architectures with seeded weights, and adapters on them that change something."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray

from compress.skeleton import quiet_transformers

VOCAB = 96


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        yield


def bert_config(**changes: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.BertConfig(**sizes, intermediate_size=64, max_position_embeddings=64, **changes)


def llama_config(**changes: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, **changes,
    )  # fmt: skip


def save_model(
    folder: Path, model_class: str, config: Any, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """Save a model with seeded weights, all of them away from their initial zeros and ones."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, model_class)._from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.to(dtype).save_pretrained(str(folder), **options)
    return folder


def save_adapter(
    folder: Path,
    base: Path,
    model_class: str,
    config: Any,
    *,
    seed: int = 11,
    prepare: Callable[[Any], None] | None = None,
    load: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Put an adapter on a base, move all that it trains at random, and save it as PEFT does."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        loader = getattr(transformers, model_class)
        model = loader.from_pretrained(str(base), dtype=torch.float32, **(load or {}))
        if prepare is not None:
            prepare(model)
        tuned = peft.get_peft_model(model, config)
        for parameter in tuned.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(str(folder), **options)
    return folder


def token_ids(*, num_rows: int = 4, length: int = 12, vocab: int = VOCAB) -> dict[str, NDArray[np.int64]]:
    """A batch whose last row is padded."""
    ids = np.random.default_rng(3).integers(3, vocab, size=(num_rows, length))
    mask = np.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any) -> torch.Tensor:
    batch = {name: torch.from_numpy(array) for name, array in token_ids().items()}
    with torch.inference_mode(), quiet():
        result: torch.Tensor = model.eval()(**batch)[0]
    return result


def load(folder: Path, model_class: str, **options: Any) -> Any:
    with quiet():
        return getattr(transformers, model_class).from_pretrained(str(folder), dtype=torch.float32, **options)


def load_unmerged(base: Path, adapter: Path, model_class: str, **options: Any) -> Any:
    model = load(base, model_class, **options)
    with quiet():
        return peft.PeftModel.from_pretrained(model, str(adapter))
