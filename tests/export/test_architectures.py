"""Encoders of other families: exported right, or refused in words. Tiny seeded models of the real classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.artifact import open_artifact
from edgesmith.errors import UnsupportedError
from edgesmith.tasks import load_task
from export.batches import make_batches
from export.reference import TorchEngine
from export.to_onnx import export_onnx
from export.verify import verify_outputs
from serve.runtime import open_engine

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
DISENTANGLED = {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}

# Configuration → whether it takes token types, its settings, attentions fused into one node each.
FAST: dict[str, tuple[bool, dict[str, Any], int]] = {
    "AlbertConfig": (True, {**SMALL, "embedding_size": 16}, 2),
    "DistilBertConfig": (
        False,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
        2,
    ),
    "MPNetConfig": (False, SMALL, 2),
    "RobertaConfig": (False, SMALL, 2),
}
SLOW: dict[str, tuple[bool, dict[str, Any], int]] = {
    "CamembertConfig": (False, SMALL, 2),
    "ConvBertConfig": (True, {**SMALL, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}, 0),
    "DebertaConfig": (False, DISENTANGLED, 0),
    "DebertaV2Config": (False, {**DISENTANGLED, "position_buckets": 8}, 0),
    "ElectraConfig": (True, {**SMALL, "embedding_size": 16}, 2),
    "ErnieConfig": (True, SMALL, 2),
    "MobileBertConfig": (
        True,
        {**SMALL, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
        2,
    ),
    "ModernBertConfig": (False, {**SMALL, "local_attention": 8, "global_attn_every_n_layers": 2}, 0),
    "RemBertConfig": (True, {**SMALL, "input_embedding_size": 16}, 2),
    "RoFormerConfig": (True, {**SMALL, "embedding_size": 32}, 0),
    "XLMRobertaConfig": (False, SMALL, 2),
}


def check(name: str, makers: dict[str, tuple[bool, dict[str, Any], int]], make: Callable[..., Path], out: Path) -> None:
    token_types, settings, num_fused = makers[name]
    checkpoint = make(name, token_types=token_types, **settings)
    task = load_task(checkpoint, "text-classification")
    result = export_onnx(checkpoint, out, task=task)
    [fused] = [each for each in result.passes if each.name == "fuse-attention"]
    assert fused.num_changes == num_fused
    assert any("left as plain operators" in note for note in result.notes) == (num_fused == 0)
    batches = make_batches(task, task.sample_examples()[:16])
    reference, engine = TorchEngine(checkpoint, task), open_engine(open_artifact(result.path))
    verify_outputs(reference, engine, batches, task=task, precision="fp32")


@pytest.mark.parametrize("name", FAST)
def test_architecture_agrees_with_torch(name: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    check(name, FAST, tiny_checkpoint, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_rarer_architecture_agrees_with_torch(name: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    check(name, SLOW, tiny_checkpoint, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
        ("LongformerConfig", {**SMALL, "attention_window": 8}),
    ],
)
def test_what_the_library_cannot_export_is_refused(
    name: str, settings: dict[str, Any], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(name, token_types=False, **settings)
    task = load_task(checkpoint, "text-classification")
    with pytest.raises(UnsupportedError, match=r"ForSequenceClassification cannot be exported to ONNX") as caught:
        export_onnx(checkpoint, tmp_path / "out", task=task)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
