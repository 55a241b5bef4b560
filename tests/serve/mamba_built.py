"""A small seeded model with a recurrent state, written as GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["write_mamba"]

WIDTH, INNER, STATE, CONV, RANK, LAYERS, LENGTH = 32, 64, 8, 4, 4, 2, 256


def write_mamba(path: Path, words: int = 64) -> Path:
    """Mamba of two layers, whose vocabulary is bytes and words of two letters."""
    import gguf

    random = np.random.default_rng(5)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(97 + index % 26) + chr(97 + index // 26) for index in range(words)]
    types = [2, 3, 3, *([6] * 256), *([1] * (words + 1))]

    def draw(*shape: int, scale: float = 0.3) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", draw(len(tokens), WIDTH, scale=1.0))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        writer.add_tensor(name + "attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(name + "ssm_in.weight", draw(2 * INNER, WIDTH))
        writer.add_tensor(name + "ssm_conv1d.weight", draw(INNER, CONV))
        writer.add_tensor(name + "ssm_conv1d.bias", draw(INNER))
        writer.add_tensor(name + "ssm_x.weight", draw(RANK + 2 * STATE, INNER))
        writer.add_tensor(name + "ssm_dt.weight", draw(INNER, RANK))
        writer.add_tensor(name + "ssm_dt.bias", draw(INNER))
        writer.add_tensor(name + "ssm_a", -np.exp(draw(INNER, STATE)))
        writer.add_tensor(name + "ssm_d", draw(INNER))
        writer.add_tensor(name + "ssm_out.weight", draw(WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
