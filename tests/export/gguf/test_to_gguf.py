"""The file itself: complete, reproducible, streamed, or refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgesmith.errors import CheckpointError, UnsupportedError, UsageError, VerificationError
from export.gguf.encode import encode_values
from export.gguf.logit_parity import check_logits
from export.gguf.to_gguf import to_gguf
from export.gguf.tokenizer_parity import check_tokenizer
from serve.runtime.gguf_file import GgufArray, read_gguf

from .conftest import TEXTS

Maker = Callable[..., Path]


def edit_config(folder: Path, name: str = "config.json", **settings: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_smollm2_is_the_model_that_torch_has(smollm2_folder: Path, tmp_path: Path) -> None:
    done = to_gguf(smollm2_folder, tmp_path / "model.gguf", dtype="f32")
    assert (done.num_tensors, done.num_parameters, done.left_out) == (272, 134_515_008, ())
    assert done.peak_added_bytes <= 1.5 * done.largest_tensor_bytes + 300e6
    result = check_logits(smollm2_folder, done.path, texts=TEXTS, dtype="f32")
    assert result.mean_kld < 1e-9
    assert result.same_top == 1.0


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_memory_does_not_grow_with_the_model(dtype: Any, smollm2_folder: Path, tmp_path: Path) -> None:
    done = to_gguf(smollm2_folder, tmp_path / "model.gguf", dtype=dtype)
    assert done.largest_tensor_bytes == 49152 * 576 * 2
    assert done.peak_added_bytes <= 1.5 * done.largest_tensor_bytes + 300e6
    assert done.size_bytes > 2 * done.num_parameters


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_values_are_those_that_gguf_rounds_to(dtype: Any, tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("Qwen2Config", head_dim=None)
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype=dtype)
    weights = load_file(checkpoint / "model.safetensors")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(done.path).tensors}
    expected = weights["model.layers.1.mlp.down_proj.weight"].numpy()
    kind = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}.get(
        dtype, gguf.GGMLQuantizationType.BF16
    )
    found = stored["blk.1.ffn_down.weight"]
    assert found.tensor_type == kind
    assert found.data.tobytes() == gguf.quantize(expected, kind).tobytes()
    assert stored["blk.0.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    assert len(stored) == done.num_tensors


def test_rounding_is_to_nearest_and_even() -> None:
    values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(encode_values(values, "bf16"), expected)


def test_the_same_checkpoint_gives_the_same_bytes(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    first = to_gguf(checkpoint, tmp_path / "first.gguf", dtype="f16").path
    code = "import sys; from pathlib import Path; from export.gguf.to_gguf import to_gguf; "
    code += "to_gguf(Path(sys.argv[1]), Path(sys.argv[2]), dtype='f16')"
    second = tmp_path / "elsewhere" / "second.gguf"
    subprocess.run([sys.executable, "-c", code, str(checkpoint), str(second)], check=True, capture_output=True)
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_left_of_a_file_that_failed(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    (tmp_path / "model.gguf").write_text("the one before")
    edit_weights(checkpoint, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' holds NaN"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")
    assert (tmp_path / "model.gguf").read_text() == "the one before"
    assert not list(tmp_path.glob(".*"))


def test_a_value_too_large_for_half_precision_is_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_weights(checkpoint, lambda weights: weights["lm_head.weight"][0].fill_(7e4))
    with pytest.raises(CheckpointError, match="holds 70000, float16 ends at 65504"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")
    assert to_gguf(checkpoint, tmp_path / "model.gguf", dtype="bf16").size_bytes > 0


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_precision_are_kept_exactly(
    stored: torch.dtype, tiny_checkpoint: Maker, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: value.to(stored) for name, value in weights.items()}, checkpoint / "model.safetensors")
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    assert check_logits(checkpoint, done.path, texts=TEXTS, dtype="f32").mean_kld < 1e-6


def test_a_missing_tensor_is_named(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_weights(checkpoint, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of the model: blk\.1\.ffn_up\.weight"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_an_untied_head_must_be_there(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_weights(checkpoint, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"output\.weight"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_a_trained_head_is_not_dropped_for_a_tied_one(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_config(checkpoint, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embeddings"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_a_tensor_without_a_place_is_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_weights(checkpoint, lambda weights: weights.update({"model.layers.0.mlp.extra.weight": torch.ones(4)}))
    with pytest.raises(UnsupportedError, match=r"extra\.weight' has no place"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_a_quantized_checkpoint_is_refused_before_anything_else(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_config(checkpoint, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UnsupportedError, match=r"quantized \(bitsandbytes 4-bit\)"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_embeddings_of_another_size_are_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_config(checkpoint, vocab_size=1024)
    with pytest.raises(CheckpointError, match=r"\[1000, 64\], config\.json asks for \[1024, 64\]"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16")


def test_other_types_are_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'q4_0' cannot be written"):
        to_gguf(tiny_checkpoint("LlamaConfig"), tmp_path / "model.gguf", dtype="q4_0")  # type: ignore[arg-type]


def test_templates_end_tokens_and_sampling_are_carried(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    edit_config(checkpoint, "generation_config.json", eos_token_id=[2, 0], do_sample=True, temperature=0.6, top_k=20)
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32", name="Small")
    metadata = read_gguf(done.path).metadata
    expected = {
        "general.name": "Small",
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "tokenizer.chat_templates": GgufArray(8, 1),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "general.sampling.top_k": 20,
        "general.sampling.temp": float(np.float32(0.6)),
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert check_tokenizer(checkpoint, done.path, num_generated=10).num_lines == 19


def test_an_end_token_that_would_not_stop_is_found(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    edit_config(checkpoint, "generation_config.json", eos_token_id=[2, 50])
    with pytest.raises(VerificationError, match=r"generation would not stop at .* \(50\)"):
        check_tokenizer(checkpoint, done.path, num_generated=10)


@pytest.mark.parametrize("stated", ["x", [2, "</s>"], 2.0])
def test_an_end_token_that_is_no_number_is_refused(stated: Any, tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_config(checkpoint, "generation_config.json", eos_token_id=stated)
    with pytest.raises(CheckpointError, match="expected a number or a list of numbers"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")


def test_a_number_outside_the_vocabulary_is_refused(tiny_checkpoint: Maker, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    edit_config(checkpoint, "generation_config.json", eos_token_id=5000)
    with pytest.raises(CheckpointError, match="eos token has the number 5000, the vocabulary 1000"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
