"""The folder: equal to torch, reproducible, without paths, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from edgesmith.errors import CheckpointError, UnsupportedError, UsageError, VerificationError
from edgesmith.files import sha256_file
from export.genai.graph_passes import halve_weights
from export.genai.parity import TOLERANCES, TRIPWIRES, check_logits
from export.genai.quant_config import GenaiQuantConfig, Precision
from export.genai.to_genai import to_genai
from export.genai.tokenizer_parity import compare_own_tokenizer
from export.logit_parity import LogitTolerance
from tests.export.genai.built import built_llama, make_checkpoint, needs_genai, tiny_llama
from tests.export.gguf.conftest import TEXTS

pytestmark = needs_genai


def copy_checkpoint(target: Path, **settings: Any) -> Path:
    shutil.copytree(tiny_llama(), target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_logits_are_those_of_torch(precision: Precision) -> None:
    found = check_logits(tiny_llama(), built_llama(precision).folder, texts=TEXTS, precision=precision)
    assert found.num_tokens > 100
    assert found.mean_kld <= {**TOLERANCES, **TRIPWIRES}[precision].mean_kld


def test_only_floats_are_proven_here() -> None:
    """What no rounding to four bits reaches is no proof of quality: it has a name of its own."""
    assert TOLERANCES.keys() == {"fp32", "fp16"}
    assert TRIPWIRES.keys() == {"int8", "int4"}
    assert check_logits.__doc__ is not None
    assert "no verification" in check_logits.__doc__


def test_finer_weights_are_nearer_and_larger() -> None:
    order: tuple[Precision, ...] = ("int4", "int8", "fp16", "fp32")
    klds = [check_logits(tiny_llama(), built_llama(one).folder, texts=TEXTS, precision=one).mean_kld for one in order]
    assert klds == sorted(klds, reverse=True)
    sizes = [built_llama(one).files["model.onnx.data"] for one in order]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_tied_embeddings_are_stored_once(precision: Precision) -> None:
    model = ir.load(built_llama(precision).folder / "model.onnx")
    matrices = [
        value.name
        for value in model.graph.initializers.values()
        if value.const_value is not None and 1000 in value.const_value.shape and value.const_value.nbytes >= 32_000
    ]
    assert len(matrices) == 1, matrices


def test_the_same_checkpoint_gives_the_same_bytes_and_no_paths(tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(tiny_llama(), tmp_path / "elsewhere"))
    again = to_genai(elsewhere, tmp_path / "again", precision="int8")
    first = built_llama("int8")
    assert again.files == first.files
    for name in first.files:
        assert sha256_file(again.folder / name) == sha256_file(first.folder / name), name
        assert str(tmp_path).encode() not in (again.folder / name).read_bytes()
    producer = ir.load(first.folder / "model.onnx").producer_version
    import onnxruntime_genai

    # The builder stamps the commit of the Git folder that it happens to lie in.
    assert producer == f"{onnxruntime_genai.__version__}+{onnxruntime_genai.__commit__[:7]}"


def test_the_tokenizer_and_the_ends_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    first = built_llama("fp32")
    assert (first.folder / "tokenizer.json").read_bytes() == (tiny_llama() / "tokenizer.json").read_bytes()
    checkpoint = copy_checkpoint(tmp_path / "c")
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    (checkpoint / "notes.txt").write_text("mine")
    made = to_genai(checkpoint, tmp_path / "out", precision="fp32")
    assert json.loads((made.folder / "genai_config.json").read_text())["model"]["eos_token_id"] == [2, 5]
    assert made.left_out == ("notes.txt: not carried over",)
    assert made.peak_bytes > 100 << 20


def test_another_model_is_told_from_this_one(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama(), other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"] = -weights["model.layers.1.self_attn.o_proj.weight"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="mean KLD"):
        check_logits(other, built_llama("fp32").folder, texts=TEXTS, precision="fp32")
    bound = LogitTolerance(mean_kld=0.0, same_top=1.0)
    with pytest.raises(VerificationError, match="at most 0"):
        check_logits(tiny_llama(), built_llama("int4").folder, texts=TEXTS, precision="int4", tolerance=bound)


def test_the_own_tokenizer_is_compared_line_by_line() -> None:
    found = compare_own_tokenizer(built_llama("fp32").folder, texts=["Call me Ishmael."], num_generated=200)
    assert found.num_lines > 200
    assert 0 <= found.num_invalid <= found.num_different < found.num_lines
    assert bool(found.note) == bool(found.first_difference) == bool(found.num_different)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["BertModel"]}, "BertModel cannot be built"),
        ({"architectures": ["OlmoForCausalLM"]}, "OlmoForCausalLM cannot be built"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "'yarn'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ],
)
def test_what_the_builder_gets_wrong_is_refused_before(tmp_path: Path, settings: Any, message: str) -> None:
    checkpoint = copy_checkpoint(tmp_path / "c", **settings)
    with pytest.raises(UnsupportedError, match=message):
        to_genai(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [None, [], ["A", "B"], "LlamaForCausalLM", [3]])
def test_a_checkpoint_without_architecture_is_damaged(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="architectures"):
        to_genai(copy_checkpoint(tmp_path / "c", architectures=value), tmp_path / "out")


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(tmp_path / "c")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        to_genai(checkpoint, tmp_path / "out")


def test_an_odd_number_of_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="64 columns, 1 blocks of 64"):
        to_genai(tiny_llama(), Path("never"), quantize=GenaiQuantConfig(block_size=64))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "int2"},
        {"block_size": 48},
        {"block_size": True},
        {"algorithm": "hqq"},
        {"accuracy_level": 5},
        {"head": "fp16"},
        {"is_symmetric": 1},
        {"algorithm": "default"},
        {"method": "int8", "head": "int4"},
    ],
)
def test_a_setting_that_the_builder_does_not_know_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GenaiQuantConfig(**settings)


def test_precision_and_quantization_agree() -> None:
    with pytest.raises(UsageError, match="int8"):
        to_genai(tiny_llama(), Path("never"), precision="fp32", quantize=GenaiQuantConfig(method="int8"))
    with pytest.raises(UsageError, match="bf16"):
        to_genai(tiny_llama(), Path("never"), precision="bf16")  # type: ignore[arg-type]


def test_a_weight_beyond_float16_is_not_halved() -> None:
    tensor = ir.tensor(np.full((128, 128), 70_000, np.float32), name="w")
    value = ir.Value(name="w", const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((128, 128)))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21})
    with pytest.raises(ValueError, match="more than float16"):
        halve_weights(ir.Model(graph, ir_version=10))


def test_a_failing_builder_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(tmp_path / "c", hidden_size=128)
    with pytest.raises(Exception, match="onnxruntime-genai's builder") as caught:
        to_genai(checkpoint, tmp_path / "out", precision="fp32")
    assert "Traceback" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma2Config": {"sliding_window": 32, "query_pre_attn_scalar": 16},
    "Gemma3TextConfig": {"sliding_window": 32, "num_hidden_layers": 6, "query_pre_attn_scalar": 16},
    "GemmaConfig": {},
    "GraniteConfig": {},
    "MistralConfig": {"sliding_window": None},
    "Phi3Config": {"head_dim": None, "original_max_position_embeddings": 512, "sliding_window": 32},
    "Qwen2Config": {"tie_word_embeddings": True},
    "Qwen3Config": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("config_class", FAMILIES)
def test_a_family_is_equal_to_torch(tmp_path: Path, config_class: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", config_class, **FAMILIES[config_class])
    made = to_genai(checkpoint, tmp_path / "out", precision="fp32")
    assert check_logits(checkpoint, made.folder, texts=TEXTS, precision="fp32").mean_kld < 1e-9


@pytest.mark.slow
def test_texts_are_no_longer_than_a_window_of_all_layers(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "MistralConfig", sliding_window=32)
    made = to_genai(checkpoint, tmp_path / "out", precision="fp32")
    assert made.context_length == 32
    assert "32 tokens" in made.left_out[0]
    assert check_logits(checkpoint, made.folder, texts=TEXTS, precision="fp32").num_tokens == 96
