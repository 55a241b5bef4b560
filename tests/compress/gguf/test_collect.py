"""Importance matrices from torch and from llama.cpp: equal to each other, and to what they should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from compress.gguf import ggml_tensor
from compress.gguf.collect_runtime import collect_imatrix_runtime
from compress.gguf.collect_torch import collect_imatrix_torch
from compress.gguf.ggml_tensor import view_tensor
from compress.gguf.imatrix import Imatrix
from edgesmith.errors import UnsupportedError, UsageError
from export.gguf.tensor_names import tensor_names
from export.gguf.to_gguf import to_gguf
from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

WINDOWS = [np.random.default_rng(seed).integers(3, 300, size).tolist() for seed, size in ((0, 64), (1, 64), (2, 40))]


def make_checkpoint(folder: Path, config_class: str, **settings: object) -> Path:
    folder.mkdir()
    merged = {key: value for key, value in (TINY | settings).items() if value is not None}
    save_model(folder, getattr(transformers, config_class)(**merged))
    save_tokenizer(folder)
    return folder


def largest_difference(one: Imatrix, other: Imatrix) -> float:
    """Of any column, as a share of it."""
    assert one.entries.keys() == other.entries.keys()
    pairs = [(one.entries[name], other.entries[name]) for name in one.entries]
    assert all((first.counts == second.counts).all() for first, second in pairs)
    return max(float((abs(first.sums - second.sums) / first.sums).max()) for first, second in pairs)


@pytest.mark.parametrize(
    ("config_class", "settings", "num_entries"),
    [
        ("LlamaConfig", {"tie_word_embeddings": True}, 22),  # rows of q and k change places; a tied head
        ("LlamaConfig", {"tie_word_embeddings": False}, 22),
        ("Phi3Config", {}, 13),  # q, k and v are one matrix, gate and up another
        ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}, 13),  # transposed
        ("GPTNeoXConfig", {}, 13),  # heads are sorted anew
    ],
)
def test_torch_and_runtime_agree(
    config_class: str, settings: dict[str, object], num_entries: int, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", config_class, **settings)
    model = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32").path
    from_torch = collect_imatrix_torch(checkpoint, tensor_names(checkpoint), WINDOWS, dataset="numbers")
    from_runtime = collect_imatrix_runtime(model, WINDOWS, dataset="numbers")
    assert len(from_torch.entries) == num_entries
    assert largest_difference(from_torch, from_runtime) < 5e-3
    assert (from_torch.num_tokens, from_torch.num_windows, from_torch.window_length) == (168, 3, 64)
    assert from_torch.datasets == from_runtime.datasets == ("numbers",)
    head = "output.weight" if settings.get("tie_word_embeddings") is False else "token_embd.weight"
    if config_class == "LlamaConfig":
        assert (head, 64) in {(name, one.sums.shape[1]) for name, one in from_torch.entries.items()}


def test_sums_are_those_of_the_states_that_a_layer_reads(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "LlamaConfig", tie_word_embeddings=True)
    found = collect_imatrix_torch(checkpoint, tensor_names(checkpoint), WINDOWS)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = np.zeros(64)
    with torch.inference_mode():
        for window in WINDOWS:
            states = model(input_ids=torch.tensor([window]), output_hidden_states=True).hidden_states[1][0]
            normed = model.model.layers[1].input_layernorm(states).double().numpy()
            expected += (normed**2).sum(0)
    np.testing.assert_allclose(found.entries["blk.1.attn_k.weight"].sums[0], expected, rtol=1e-5)


def test_experts_are_counted_one_by_one(make_model: Callable[..., Path]) -> None:
    windows = [[index % 300 for index in window] for window in WINDOWS]
    found = collect_imatrix_runtime(make_model(width=64, inner=96, num_experts=4), windows)
    router, up = (found.entries[f"blk.1.{kind}.weight"] for kind in ("ffn_gate_inp", "ffn_up_exps"))
    assert up.sums.shape == (4, 64)
    assert found.entries["blk.1.ffn_down_exps.weight"].sums.shape == (4, 96)
    # Each token goes to two experts, which read what the router reads.
    assert up.counts.sum() == 2 * router.counts.sum() == 2 * 168
    assert len(set(up.counts)) > 1
    np.testing.assert_allclose(up.sums.sum(0), 2 * router.sums[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "no text"),
        ([[1, 2], []], "window 1 is empty"),
        ([[1] * 600], "600 tokens, the model reads at most 512"),
        ([[5, 1000]], "tokens from 5 to 1000, the model has 1,000"),
        ([[-1, 3]], "tokens from -1"),
    ],
)
def test_text_that_the_model_cannot_read_is_refused(
    windows: Sequence[Sequence[int]], message: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "LlamaConfig")
    model = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32").path
    with pytest.raises(UsageError, match=message):
        collect_imatrix_torch(checkpoint, tensor_names(checkpoint), windows)
    with pytest.raises(UsageError, match=message):
        collect_imatrix_runtime(model, windows)


def test_names_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "LlamaConfig")
    with pytest.raises(UsageError, match="none of the 1 names is a linear layer"):
        collect_imatrix_torch(checkpoint, {"encoder.weight": "enc.weight"}, WINDOWS)


def test_inputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "LlamaConfig")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    model.save_pretrained(checkpoint)
    with pytest.raises(UsageError, match=r"inputs of blk\.1\.attn_q\.weight are not finite"):
        collect_imatrix_torch(checkpoint, tensor_names(checkpoint), WINDOWS)


def test_another_layout_of_tensors_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    class Moved(ctypes.Structure):
        _fields_ = (*ggml_tensor._Tensor._fields_[:4], ("new", ctypes.c_int64), *ggml_tensor._Tensor._fields_[4:-1],
                    ("name", ctypes.c_char * 48))  # fmt: skip

    monkeypatch.setattr(ggml_tensor, "_Tensor", Moved)
    ggml_tensor._proven_library.cache_clear()
    with pytest.raises(UnsupportedError, match=r"lays its tensors out in another way.*operands"):
        view_tensor(0)
    monkeypatch.undo()
    ggml_tensor._proven_library.cache_clear()
    ggml_tensor._proven_library()
