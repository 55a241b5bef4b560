"""Text-generating checkpoints made on the spot, with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
NUM_TOKENS = 257


def bytes_tokenizer() -> Tokenizer:
    """One token for each byte, in the order of their names, and one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def save_generator(folder: Path, **settings: Any) -> Path:
    """A small Llama with seeded weights."""
    torch.manual_seed(0)
    config = _config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **settings)
    return _save(transformers.LlamaForCausalLM(config), folder)


def save_chain(folder: Path, following: Mapping[int, int]) -> Path:
    """A Llama whose weights say which token follows which; any other is followed by the end."""
    size = 264
    config = _config(hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(NUM_TOKENS, size))
        model.lm_head.weight.zero_()
        for token in range(NUM_TOKENS):
            model.lm_head.weight[following.get(token, NUM_TOKENS - 1), token] = 1
    return _save(model, folder)


def _config(**settings: Any) -> transformers.LlamaConfig:
    chosen = {
        "vocab_size": NUM_TOKENS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "tie_word_embeddings": False,
        "eos_token_id": NUM_TOKENS - 1,
        "bos_token_id": None,
        **settings,
    }
    return transformers.LlamaConfig(**chosen)


def _save(model: transformers.LlamaForCausalLM, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    return folder
