"""Write small models as GGUF files without torch; measure what a quantization did to a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from compress.gguf.imatrix import Imatrix, ImatrixEntry
from serve.runtime.gguf_file import read_gguf

LAYER = {
    "attn_q": ("width", "width"), "attn_k": ("kv", "width"), "attn_v": ("kv", "width"),
    "attn_output": ("width", "width"), "ffn_gate": ("inner", "width"), "ffn_up": ("inner", "width"),
    "ffn_down": ("width", "inner"),
}  # fmt: skip


def write_llama(
    path: Path,
    *,
    width: int = 256,
    inner: int = 512,
    num_layers: int = 2,
    num_experts: int = 0,
    dtype: type[np.floating[Any]] = np.float32,
    same_layers: bool = False,
    seed: int = 0,
) -> Path:
    """A Llama (a Mixtral, with experts) of seeded weights and 300 tokens, its head tied to the embeddings."""
    writer = gguf.GGUFWriter(path, "llama")
    random = np.random.default_rng(seed)
    sizes = {"width": width, "kv": width // 2, "inner": inner}
    writer.add_block_count(num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("no_vocab")
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(2)

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape) / np.sqrt(shape[-1])
        writer.add_tensor(name, values.astype(dtype if len(shape) > 1 else np.float32))

    add("token_embd.weight", 300, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for index in range(num_layers):
        random = np.random.default_rng(seed + 1) if same_layers else random
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{index}.{norm}.weight", np.ones(width, np.float32))
        for kind, (rows, columns) in LAYER.items():
            if num_experts and kind.startswith("ffn"):
                add(f"blk.{index}.{kind}_exps.weight", num_experts, sizes[rows], sizes[columns])
            else:
                add(f"blk.{index}.{kind}.weight", sizes[rows], sizes[columns])
        if num_experts:
            add(f"blk.{index}.ffn_gate_inp.weight", num_experts, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def seeded_imatrix(model: Path, *, seed: int = 0, without: tuple[str, ...] = ()) -> Imatrix:
    """Uneven weights for every matrix of a model."""
    random = np.random.default_rng(seed)
    entries = {
        name: ImatrixEntry(random.random((1, tensor.shape[0])) ** 6 + 1e-4, np.ones(1))
        for name, tensor in read_gguf(model).tensors.items()
        if len(tensor.shape) == 2 and name not in without
    }
    return Imatrix(entries=entries, datasets=("seeded",), num_windows=3, window_length=8)


def stored_bytes(model: Path) -> dict[str, bytes]:
    """What lies in each tensor."""
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(model).tensors}


def values_of(model: Path, name: str) -> NDArray[np.float32]:
    """A tensor's values, dequantized by the gguf package."""
    tensor = next(tensor for tensor in gguf.GGUFReader(model).tensors if tensor.name == name)
    values: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values
