from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compress.merge import AdapterSpec, merge_adapter
from compress.quiet import quiet_libraries
from edgesmith.errors import (
    ArtifactError,
    CheckpointError,
    EdgesmithError,
    MergeError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from export.gguf.adapter_check import check_adapter
from export.gguf.adapter_file import to_gguf_adapter
from export.gguf.to_gguf import to_gguf
from export.reference_generation import TorchGenerationEngine
from serve.runtime import EngineOptions
from serve.runtime.gguf_engine import LlamaEngine
from tests.export.gguf.conftest import TEXTS

LLAMA = {"tie_word_embeddings": False}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Checkpoint = Callable[..., Path]


def save_adapter(base: Path, folder: Path, *, seed: int = 0, size: float = 0.4, **settings: Any) -> Path:
    """A LoRA adapter of random matrices, as PEFT writes it."""
    torch.manual_seed(seed)
    with quiet_libraries():
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
        wrapped = peft.get_peft_model(model, config)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) * size / parameter.shape[-1] ** 0.5
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(base: Path, out: Path, *adapters: tuple[Path, float]) -> Path:
    merge_adapter(base, [AdapterSpec(path=path, weight=weight) for path, weight in adapters], out)
    return out


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all": ("LlamaConfig", LLAMA, {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"]}),
    "embeddings": ("LlamaConfig", LLAMA, {"target_modules": ["embed_tokens", "v_proj"]}),
    "rslora and patterns": (
        "LlamaConfig",
        LLAMA,
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
            "alpha_pattern": {"o_proj": 3},
        },
    ),
    "qwen2": ("Qwen2Config", {"head_dim": None}, {"target_modules": ATTENTION}),
    "fused": ("Phi3Config", {"head_dim": None}, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "transposed": (
        "GPT2Config",
        {"head_dim": None, "num_key_value_heads": None, "intermediate_size": None},
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "heads in turn": ("GPTNeoXConfig", {"head_dim": None}, {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_base_and_adapter_are_the_merged_model(name: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    config, settings, adapter_settings = CASES[name]
    base = tiny_checkpoint(config, **settings)
    adapter = save_adapter(base, tmp_path / "adapter", **adapter_settings)
    file = to_gguf(base, tmp_path / "base.gguf", dtype="f32").path
    done = to_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")
    parity = check_adapter(
        file,
        [(done.path, 1.0)],
        base=base,
        merged=merged(base, tmp_path / "merged", (adapter, 1.0)),
        texts=TEXTS[:1],
    )
    assert parity.mean_kld < 1e-6 < parity.mean_kld_without
    assert (done.num_rescaled > 0) == (name == "rslora and patterns")
    again = to_gguf_adapter(adapter, base, tmp_path / "again.gguf")
    assert again.path.read_bytes() == done.path.read_bytes()


@pytest.fixture
def pair(tiny_checkpoint: Checkpoint, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, its file, and a folder of an adapter."""
    base = tiny_checkpoint("LlamaConfig", **LLAMA)
    file = to_gguf(base, tmp_path / "base.gguf", dtype="f32").path
    return base, file, save_adapter(base, tmp_path / "adapter", target_modules=ATTENTION)


def test_several_adapters_on_one_base_are_scaled_while_it_runs(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, file, first = pair
    second = save_adapter(base, tmp_path / "second", seed=1, target_modules=["up_proj"], r=2)
    paths = [
        to_gguf_adapter(first, base, tmp_path / "1.gguf").path,
        to_gguf_adapter(second, base, tmp_path / "2.gguf", dtype="f16").path,
    ]
    engine = LlamaEngine(file, EngineOptions(adapters=((paths[0], 1.0), (paths[1], 1.0))))
    tokens = engine.tokenize(TEXTS[0])
    for scales in ((0.7, 1.3), (1.0, 0.0), (0.0, 0.0)):
        engine.scale_adapters(scales)
        used = [(path, scale) for path, scale in zip((first, second), scales, strict=True) if scale]
        folder = merged(base, tmp_path / f"merged {scales}", *used) if used else base
        reference = TorchGenerationEngine(folder)
        assert np.abs(engine.logits(tokens) - reference.logits(tokens)).max() < 0.02
        found = "".join(chunk.text for chunk in engine.generate(TEXTS[1], max_tokens=16))
        expected = "".join(chunk.text for chunk in reference.generate(TEXTS[1], max_tokens=16))
        assert found.rstrip("\ufffd") == expected.rstrip("\ufffd") != ""  # half a character at the end
    assert engine.adapters == ((paths[0], 0.0), (paths[1], 0.0))
    for scales_ in ((1.0,), (float("nan"), 1.0)):
        with pytest.raises(UsageError):
            engine.scale_adapters(scales_)


def test_an_adapter_beside_a_narrower_base_is_as_near_as_the_base_itself(
    pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, adapter = pair
    file = to_gguf(base, tmp_path / "narrow.gguf", dtype="bf16").path
    done = to_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")
    folder = merged(base, tmp_path / "merged", (adapter, 1.0))
    parity = check_adapter(file, [(done.path, 1.0)], base=base, merged=folder, texts=TEXTS)
    assert 0 < parity.mean_kld <= parity.max_mean_kld < parity.mean_kld_without
    with pytest.raises(VerificationError, match="differs from the merged model"):
        check_adapter(file, [(done.path, -1.0)], base=base, merged=folder, texts=TEXTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_what_the_runtime_cannot_add_is_to_be_merged(
    tiny_checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    base = tiny_checkpoint("LlamaConfig", **LLAMA)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["v_proj"], **settings)
    with pytest.raises(UnsupportedError, match=message) as caught:
        to_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")
    assert "Merge the adapter" in caught.value.mend
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize(("target", "message"), [("lm_head", "the head, which is tied"), ("embed_tokens", "tied")])
def test_tied_ends_cannot_be_changed_beside_the_base(
    tiny_checkpoint: Checkpoint, tmp_path: Path, target: str, message: str
) -> None:
    base = tiny_checkpoint("LlamaConfig", tie_word_embeddings=True)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=[target])
    with pytest.raises(UnsupportedError, match=message):
        to_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")


def _config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def _wider(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "q_proj.lora_B" in name]:
        tensors[name] = torch.ones(80, 4)


def _elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("layers.0.", "layers.7.")] = tensors.pop(name)


def _half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_A" in name)]


def _zero(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name] = torch.zeros_like(tensors[name])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda adapter: _config(adapter, r=3), CheckpointError, "has rank 4, .* says 3"),
        (lambda adapter: _config(adapter, lora_alpha="8"), CheckpointError, "lora_alpha"),
        (lambda adapter: _config(adapter, peft_type="IA3"), UnsupportedError, "kind IA3"),
        (lambda adapter: _weights(adapter, _wider), MergeError, r"shape \[80, 64\], .* the base \[64, 64\]"),
        (lambda adapter: _weights(adapter, _elsewhere), MergeError, "does not have as a weight"),
        (lambda adapter: _weights(adapter, _half), CheckpointError, "only its matrix"),
        (lambda adapter: _weights(adapter, _zero), CheckpointError, "changes nothing"),
    ],
)
def test_an_adapter_of_another_base_or_a_damaged_one_is_refused(
    pair: tuple[Path, Path, Path],
    tmp_path: Path,
    change: Callable[[Path], None],
    kind: type[EdgesmithError],
    message: str,
) -> None:
    base, _, adapter = pair
    change(adapter)
    with pytest.raises(kind, match=message):
        to_gguf_adapter(adapter, base, tmp_path / "adapter.gguf")


def _file(path: Path, **changes: Any) -> Path:
    """A GGUF adapter file with one thing wrong."""
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_type(changes.get("type", "adapter"))
    writer.add_string("adapter.type", changes.get("kind", "lora"))
    if changes.get("double"):
        writer.add_float64("adapter.lora.alpha", 8.0)
    else:
        writer.add_float32("adapter.lora.alpha", changes.get("alpha", 8.0))
    if changes.get("phrase"):
        writer.add_array("adapter.alora.invocation_tokens", [1, 2])
    for name, shape in changes.get("tensors", {"blk.0.attn_q.weight": ((4, 64), (64, 4))}).items():
        for side, one in zip(("lora_a", "lora_b"), shape, strict=False):
            writer.add_tensor(f"{name}.{side}", np.ones(one, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "model"}, "no LoRA adapter"),
        ({"kind": "vector"}, "no LoRA adapter"),
        ({"architecture": "qwen2"}, "is for a model of kind 'qwen2'"),
        ({"double": True}, "a type of its own"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"phrase": True}, "starts at a phrase"),
        ({"tensors": {}}, "holds no tensors"),
        ({"tensors": {"blk.9.attn_q.weight": ((4, 64), (64, 4))}}, "does not have"),
        ({"tensors": {"blk.0.attn_q.weight": ((4, 64), (80, 4))}}, r"\[64, 4\] and \[4, 80\]"),
        ({"tensors": {"blk.0.attn_q.weight": ((5, 64), (64, 4))}}, r"\[64, 5\] and \[4, 64\]"),
        ({"tensors": {"token_embd.weight": ((1000, 5), (64, 4))}}, r"\[5, 1000\] and \[4, 64\]"),
        ({"tensors": {"blk.0.attn_q.weight": ((4, 64),)}}, "only lora_a"),
        ({"tensors": {"blk.0.attn_q.weight": ((2, 4, 64), (64, 4))}}, "must be a matrix"),
        ({"tensors": {"blk.0.attn_q.bias": ((4, 64), (64, 4))}}, "would ignore or refuse"),
    ],
)
def test_a_file_on_which_the_library_dies_is_refused_before(
    pair: tuple[Path, Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = _file(tmp_path / "adapter.gguf", **changes)
    with pytest.raises((ArtifactError, UnsupportedError), match=message):
        LlamaEngine(pair[1], EngineOptions(adapters=((path, 1.0),)))


def test_a_truncated_adapter_file_is_refused(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path = _file(tmp_path / "adapter.gguf")
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ArtifactError, match="truncated"):
        LlamaEngine(pair[1], EngineOptions(adapters=((path, 1.0),)))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    with pytest.raises(ArtifactError, match="claims"):
        LlamaEngine(pair[1], EngineOptions(adapters=((path, 1.0),)))
