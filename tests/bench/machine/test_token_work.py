from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.machine.token_work import TokenWork, count_token_work
from edgesmith.artifact import Artifact, open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UnsupportedError
from serve.runtime.gguf_file import read_gguf
from tests.bench.gguf_built import build_gguf

LAYERS, WIDTH, INNER, VOCABULARY, KEY_VALUES = 3, 64, 128, 1000, 2 * 16
MATRICES = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KEY_VALUES + 3 * WIDTH * INNER)
VECTOR_BYTES = 4 * WIDTH * (2 * LAYERS + 1)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_token_reads_every_weight_but_the_rows_of_other_tokens(tmp_path: Path, is_tied: bool) -> None:
    artifact = build_gguf(tmp_path, tie_word_embeddings=is_tied)
    work = count_token_work(artifact)
    table = 2 * WIDTH * VOCABULARY
    looked_up = 0 if is_tied else 2 * WIDTH
    assert work.weight_bytes == 2 * MATRICES + VECTOR_BYTES + table + looked_up
    tensors = read_gguf(artifact.path).tensors.values()
    assert work.weight_bytes == sum(one.size_bytes for one in tensors) - (0 if is_tied else table) + looked_up
    assert (work.fp32_macs, work.int8_macs, work.head_macs) == (MATRICES, 0, WIDTH * VOCABULARY)
    assert work.kv_bytes == 2 * LAYERS * 2 * KEY_VALUES
    assert work.attention_macs == LAYERS * 4 * 2 * 16
    assert work.kv_window is None
    assert not work.is_head_quantized


@pytest.mark.parametrize(
    ("config_class", "settings", "key_values"),
    [
        ("GPT2Config", {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 256, "n_inner": 128}, 2 * 64),
        ("Phi3Config", {}, 2 * 32),  # queries, keys and values in one matrix
        ("Qwen2Config", {}, 2 * 32),
    ],
)
def test_keys_and_values_are_found_however_they_are_stored(
    tmp_path: Path, config_class: str, settings: dict[str, Any], key_values: int
) -> None:
    work = count_token_work(build_gguf(tmp_path, config_class, **settings))
    assert work.kv_bytes == 2 * LAYERS * key_values


def test_a_token_reads_the_experts_that_it_uses(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_expert_count(4)
    writer.add_expert_used_count(1)
    shapes = {"token_embd": (10, 32), "output": (10, 32), "blk.0.attn_k": (32, 32), "blk.0.attn_v": (16, 32)}
    for name, shape in (shapes | {"blk.0.ffn_up_exps": (4, 8, 32)}).items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    work = count_token_work(open_artifact(tmp_path / "model.gguf"))
    assert work.weight_bytes == 4 * (32 + 10 * 32 + 48 * 32 + 8 * 32)
    assert (work.fp32_macs, work.head_macs, work.kv_bytes) == (48 * 32 + 8 * 32, 320, 2 * 48)


WORK = TokenWork(
    weight_bytes=1000, kv_bytes=10, kv_window=None, fp32_macs=100, int8_macs=0, head_macs=7, is_head_quantized=False,
    attention_macs=3,
)  # fmt: skip


def test_bytes_grow_with_the_tokens_before_until_the_window_is_full() -> None:
    assert [WORK.bytes_at(position) for position in (0, 5, 50)] == [1000, 1050, 1500]
    assert [replace(WORK, kv_window=8).bytes_at(position) for position in (5, 8, 50)] == [1050, 1080, 1080]


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_a_prompt_multiplies_each_token_with_those_before_it_and_itself(window: int | None) -> None:
    work = replace(WORK, kv_window=window)
    pairs = sum(min(place, window or place) for place in range(1, 11))
    assert work.prompt_macs(10) == (10 * 100 + 3 * pairs + 7, 0)
    assert replace(work, is_head_quantized=True).prompt_macs(10) == (10 * 100 + 3 * pairs, 7)


def test_work_reads_back_and_damage_is_refused() -> None:
    assert TokenWork.from_json(json.loads(json.dumps(WORK.to_json()))) == WORK
    for broken in ({"weight_bytes": 0}, {"kv_bytes": -1}, {"kv_bytes": "x"}, {"other": 1}, {"kv_window": -3}):
        with pytest.raises((TypeError, ValueError)):
            TokenWork.from_json(WORK.to_json() | broken)


def _genai(folder: Path, *, is_tied: bool) -> Artifact:
    """A table of 100 × 32, one packed matrix of 32 × 64, an output layer of 32 × 100; all of 4 bits but the angles."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def packed(name: str, rows: int) -> list[onnx.TensorProto]:
        codes = rng.integers(0, 255, (rows, 1, 16)).astype(np.uint8)
        return [
            numpy_helper.from_array(codes, name),
            numpy_helper.from_array(np.ones((rows, 1), np.float32), f"{name}_s"),
        ]

    table = "head" if is_tied else "table"
    tensors = [*packed("matrix", 64), *packed("head", 100), *([] if is_tied else packed("table", 100))]
    tensors += [
        numpy_helper.from_array(np.ones((500, 8), np.float32), "cos_cache"),
        numpy_helper.from_array(np.array([100, 16]), "shape"),
    ]
    settings = {"bits": 4, "block_size": 32, "domain": "com.microsoft"}
    nodes = [
        helper.make_node("Reshape", [table, "shape"], ["rows"]),
        helper.make_node("GatherBlockQuantized", ["rows", "input_ids", f"{table}_s"], ["x"], **settings),
        helper.make_node("MatMulNBits", ["x", "matrix", "matrix_s"], ["y"], K=32, N=64, **settings),
        helper.make_node("GroupQueryAttention", ["y", "past.0.key", "cos_cache"], ["z"], domain="com.microsoft"),
        helper.make_node("MatMulNBits", ["z", "head", "head_s"], ["logits"], K=32, N=100, **settings),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("past.0.key", TensorProto.FLOAT16, [1, 2, "past", 8]),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 100])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", inputs, [logits], tensors), opset_imports=opsets),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=100,
    )
    decoder = {"filename": "model.onnx", "head_size": 8, "num_hidden_layers": 1, "num_key_value_heads": 2}
    config = {"model": {"decoder": decoder | {"num_attention_heads": 4}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return write_artifact(folder, kind="genai", step="test")


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_exported_graph_reads_rows_of_its_tables_and_all_else_whole(tmp_path: Path, is_tied: bool) -> None:
    work = count_token_work(_genai(tmp_path / "a", is_tied=is_tied))
    rows = 8 * 4 + (0 if is_tied else 16 + 4)
    assert work.weight_bytes == (64 + 100) * (16 + 4) + rows + 16  # and the shape
    assert (work.fp32_macs, work.int8_macs, work.head_macs) == (0, 32 * 64, 32 * 100)
    assert work.is_head_quantized
    assert work.kv_bytes == 2 * 1 * 2 * 8 * 2  # keys and values, layers, heads, values, bytes of a float16
    assert work.attention_macs == 2 * 4 * 8


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model": {"decoder": {}}}', '{"model": {"decoder": {"head_size": "x"}}}']
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    artifact = _genai(tmp_path / "a", is_tied=True)
    (artifact.path / "genai_config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"genai_config\.json: does not describe a decoder"):
        count_token_work(artifact)


def test_other_kinds_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    for kind, error in (("onnx", UnsupportedError), ("gguf", ArtifactError)):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"x")
        with pytest.raises(error, match="gguf"):
            count_token_work(write_artifact(folder, kind=kind, step="test"))  # type: ignore[arg-type]
