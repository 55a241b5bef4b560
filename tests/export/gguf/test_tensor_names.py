"""The names that lead from a checkpoint's parameters to the tensors of its GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.gguf.tensor_names import tensor_names
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_file import read_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_every_name_is_a_tensor_of_the_file(tied: bool, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig", tie_word_embeddings=tied)
    names = tensor_names(checkpoint)
    assert set(names.values()) == set(read_gguf(to_gguf(checkpoint, tmp_path / "model.gguf").path).tensors)
    assert names["model.layers.2.mlp.down_proj.weight"] == "blk.2.ffn_down.weight"
    assert names["lm_head.weight"] == ("token_embd.weight" if tied else "output.weight")
