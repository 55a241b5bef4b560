"""Verification passes what is right and catches what is wrong, with numbers and the worst row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from edgesmith.artifact import open_artifact
from edgesmith.errors import CheckpointError, DataError, UsageError, VerificationError
from edgesmith.tasks import Example, Task, load_task
from export.batches import Batch, make_batches
from export.reference import TorchEngine
from export.to_onnx import ExportResult, export_onnx
from export.tolerance import TOLERANCES, Tolerance
from export.verify import Verification, compare_outputs, verify_outputs
from serve.runtime import Engine, open_engine

Weights = NDArray[np.float32]


@pytest.fixture(scope="module")
def reference(classifier_folder: Path, classifier_task: Task) -> TorchEngine:
    return TorchEngine(classifier_folder, classifier_task)


@pytest.fixture(scope="module")
def batches(classifier_task: Task, news_rows: list[dict[str, str]]) -> list[Batch]:
    examples = [Example(row["text"][: 60 * (1 + index % 7)]) for index, row in enumerate(news_rows[:24])]
    return make_batches(classifier_task, examples)


@pytest.fixture(scope="module")
def verified(
    reference: TorchEngine, classifier_export: ExportResult, batches: list[Batch], classifier_task: Task
) -> Verification:
    engine = open_engine(open_artifact(classifier_export.path))
    return verify_outputs(reference, engine, batches, task=classifier_task, precision="fp32")


def with_weight(source: ExportResult, name: str, change: Callable[[Weights], Weights], folder: Path) -> Engine:
    """The exported model with one weight changed."""
    model = ir.load(source.path)
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=name)
    ir.save(model, folder / "model.onnx")
    return open_engine(open_artifact(folder / "model.onnx"))


def test_batches_are_single_odd_even_padded_and_longest(batches: list[Batch], classifier_task: Task) -> None:
    shapes = [batch.shape for batch in batches]
    singles = [length for size, length in shapes if size == 1]
    assert any(length % 2 for length in singles)
    assert any(length % 2 == 0 for length in singles)
    assert (1, classifier_task.max_length) in shapes
    padded = [batch for batch in batches if (batch.arrays["attention_mask"] == 0).any()]
    assert any(batch.shape[0] > 1 for batch in padded)
    assert sum(size for size, _ in shapes if size > 1) == 24, "every row once"
    assert all(len(batch.texts) == batch.shape[0] for batch in batches)


def test_a_right_export_passes_with_room(verified: Verification) -> None:
    assert verified.passed
    assert verified.num_rows == 24 + 4 + 1
    assert verified.metrics["max_abs_scaled"] <= 2e-6
    assert verified.metrics["top1_agreement"] == 1.0
    assert verified.metrics["kl_max"] <= 1e-9


def test_evidence_is_complete_json(verified: Verification, tmp_path: Path) -> None:
    stored = json.loads(verified.save(tmp_path).read_text())
    assert stored["verdict"] == "PASS"
    assert stored["metrics"] == verified.metrics
    assert stored["limits"]["max_abs_scaled"] == TOLERANCES["fp32"].max_abs_scaled
    assert {len(values) for values in stored["rows"].values()} == {stored["num_rows"]}
    assert "torch" in stored["reference"]
    assert "onnxruntime" in stored["candidate"]


def negate_one(weight: Weights) -> Weights:
    weight[weight.shape[0] // 2] *= -1
    return weight


def swap_labels(weight: Weights) -> Weights:
    weight[[0, 1]] = weight[[1, 0]]
    return weight


def to_nan(weight: Weights) -> Weights:
    weight[3] = np.nan
    return weight


def to_bfloat16(weight: Weights) -> Weights:
    return np.asarray((weight.view(np.uint32) & 0xFFFF0000).view(np.float32))


@pytest.mark.parametrize(
    ("name", "change", "metric"),
    [
        ("bert.encoder.layer.2.output.dense.weight.transposed", negate_one, "max_abs_scaled"),
        ("bert.encoder.layer.0.attention.self.query.weight.transposed", to_bfloat16, "max_abs_scaled"),
        ("classifier.weight", swap_labels, "top1_agreement_decided"),
        ("bert.embeddings.LayerNorm.weight", to_nan, "NaN"),
    ],
)
def test_one_wrong_weight_is_caught(
    name: str,
    change: Callable[[Weights], Weights],
    metric: str,
    classifier_export: ExportResult,
    reference: TorchEngine,
    batches: list[Batch],
    classifier_task: Task,
    tmp_path: Path,
) -> None:
    broken = with_weight(classifier_export, name, change, tmp_path)
    with pytest.raises(VerificationError, match=metric) as caught:
        verify_outputs(reference, broken, batches, task=classifier_task, precision="fp32")
    assert caught.value.exit_code == 1
    assert "row" in caught.value.message
    assert any(repr(text[:20])[1:-1] in caught.value.message for batch in batches for text in batch.texts)


def test_swapped_labels_are_caught_at_int8_too(
    classifier_export: ExportResult, reference: TorchEngine, batches: list[Batch], classifier_task: Task, tmp_path: Path
) -> None:
    broken = with_weight(classifier_export, "classifier.weight", swap_labels, tmp_path)
    with pytest.raises(VerificationError, match=r"top1_agreement_decided is 0\.\d+, below the limit 0\.97"):
        verify_outputs(reference, broken, batches, task=classifier_task, precision="int8")


def test_a_breach_names_value_limit_and_the_worst_row(
    classifier_export: ExportResult, reference: TorchEngine, batches: list[Batch], classifier_task: Task, tmp_path: Path
) -> None:
    def mark(weight: Weights) -> Weights:
        weight[1012] *= -1  # the word "."
        return weight

    broken = with_weight(classifier_export, "bert.embeddings.word_embeddings.weight", mark, tmp_path)
    found = compare_outputs(reference, broken, batches, task=classifier_task, precision="fp32")
    assert not found.passed
    first = found.breaches[0]
    assert first.value > first.limit
    assert first.value == found.metrics[first.metric]
    assert found.rows["max_abs"][first.row] == max(found.rows["max_abs"])
    texts = [text for batch in batches for text in batch.texts]
    assert texts[first.row].startswith(first.text.rstrip("…"))
    assert f"{first.limit:g}" in str(first)


def test_a_frozen_batch_axis_is_a_breach(
    classifier_export: ExportResult, reference: TorchEngine, batches: list[Batch], classifier_task: Task, tmp_path: Path
) -> None:
    """A graph whose output has one row whatever goes in, as exports from a batch of one have."""
    model = ir.load(classifier_export.path)
    output = model.graph.outputs[0]
    producer = output.producer()
    assert producer is not None
    axis = ir.Value(name="axis", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64), const_value=ir.tensor([0]))
    model.graph.register_initializer(axis)
    first = ir.node("ReduceMean", [output, axis], {"keepdims": 1})
    output.name, first.outputs[0].name = "all_logits", "logits"
    first.outputs[0].type = output.type
    model.graph.append(first)
    model.graph.outputs[0] = first.outputs[0]
    ir.save(model, tmp_path / "model.onnx")
    frozen = open_engine(open_artifact(tmp_path / "model.onnx"))
    with pytest.raises(VerificationError, match=r"'logits' has shape \[1, 5\].*\[8, 5\]"):
        verify_outputs(reference, frozen, batches, task=classifier_task, precision="fp32")


def test_limits_of_ones_own_are_applied(
    classifier_export: ExportResult, reference: TorchEngine, batches: list[Batch], classifier_task: Task
) -> None:
    engine = open_engine(open_artifact(classifier_export.path))
    strict = Tolerance(max_abs_scaled=1e-12)
    with pytest.raises(VerificationError, match="max_abs_scaled"):
        verify_outputs(reference, engine, batches[:1], task=classifier_task, precision="fp32", tolerance=strict)


def test_a_precision_without_limits_is_refused(reference: TorchEngine, classifier_task: Task) -> None:
    with pytest.raises(UsageError, match="'int3'"):
        verify_outputs(reference, reference, [], task=classifier_task, precision="int3")


def test_no_rows_is_an_error_not_a_pass(reference: TorchEngine, classifier_task: Task) -> None:
    with pytest.raises(DataError, match="no rows"):
        verify_outputs(reference, reference, [], task=classifier_task, precision="fp32")
    with pytest.raises(DataError, match="no rows"):
        make_batches(classifier_task, [])


def test_limits_widen_with_fewer_bits() -> None:
    fp32, fp16, int8 = (TOLERANCES[name] for name in ("fp32", "fp16", "int8"))
    for tight, wide in ((fp32, fp16), (fp16, int8)):
        assert tight.min_cosine is not None
        assert wide.min_cosine is not None
        assert tight.min_cosine > wide.min_cosine
        assert (tight.max_mean_kl or 0) < (wide.max_mean_kl or 0)
        assert (tight.min_top1_agreement_decided or 0) > (wide.min_top1_agreement_decided or 0)


@pytest.fixture(scope="module")
def embedder(minilm_folder: Path) -> Task:
    return load_task(minilm_folder, "feature-extraction")


@pytest.fixture(scope="module")
def exported(minilm_folder: Path, embedder: Task, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_onnx(minilm_folder, tmp_path_factory.mktemp("encoder"), task=embedder)


@pytest.fixture(scope="module")
def torch_engine(minilm_folder: Path, embedder: Task) -> TorchEngine:
    return TorchEngine(minilm_folder, embedder)


@pytest.fixture(scope="module")
def rows(embedder: Task) -> list[Batch]:
    return make_batches(embedder, embedder.sample_examples()[:16])


class Scribbler:
    """An engine with a value of its own written over the states of padding."""

    def __init__(self, engine: Engine, value: float) -> None:
        self.engine, self.value, self.name, self.signature = engine, value, engine.name, engine.signature

    def run(self, arrays: Any) -> dict[str, NDArray[Any]]:
        states = self.engine.run(arrays)["last_hidden_state"].copy()
        states[arrays["attention_mask"] == 0] = self.value
        return {"last_hidden_state": states}

    def close(self) -> None:
        self.engine.close()


class TestEmbeddings:
    def test_a_right_export_passes(
        self, exported: ExportResult, torch_engine: TorchEngine, rows: list[Batch], embedder: Task
    ) -> None:
        engine = open_engine(open_artifact(exported.path))
        found = verify_outputs(torch_engine, engine, rows, task=embedder, precision="fp32")
        assert found.metrics["cosine_min"] > 0.9999999
        assert found.metrics["max_abs"] <= 1e-5
        assert "kl" not in found.rows

    def test_padding_positions_do_not_count(
        self, exported: ExportResult, torch_engine: TorchEngine, rows: list[Batch], embedder: Task
    ) -> None:
        engine = open_engine(open_artifact(exported.path))
        plain = compare_outputs(torch_engine, engine, rows, task=embedder, precision="fp32")
        assert any((batch.arrays["attention_mask"] == 0).any() for batch in rows)
        scribbled = compare_outputs(torch_engine, Scribbler(engine, 1e4), rows, task=embedder, precision="fp32")
        assert scribbled.metrics == plain.metrics

    def test_nan_in_padding_is_caught_where_pooling_spreads_it(
        self, exported: ExportResult, torch_engine: TorchEngine, rows: list[Batch], embedder: Task
    ) -> None:
        engine = Scribbler(open_engine(open_artifact(exported.path)), np.nan)
        with pytest.raises(VerificationError, match=r"the vector .* is NaN"):
            verify_outputs(torch_engine, engine, rows, task=embedder, precision="int8")

    @pytest.mark.parametrize("bits", [4, 3])
    def test_a_coarse_quantization_is_not_taken_for_int8(
        self,
        bits: int,
        exported: ExportResult,
        torch_engine: TorchEngine,
        rows: list[Batch],
        embedder: Task,
        tmp_path: Path,
    ) -> None:
        def round_all(weight: Weights) -> Weights:
            scale = np.abs(weight).max() / (2 ** (bits - 1) - 1)
            return np.asarray(np.round(weight / scale) * scale, np.float32)

        name = "encoder.layer.3.output.dense.weight.transposed"
        coarse = with_weight(exported, name, round_all, tmp_path)
        with pytest.raises(VerificationError, match="cosine_min is 0"):
            verify_outputs(torch_engine, coarse, rows, task=embedder, precision="int8")


class TestReference:
    def test_engine_says_what_it_takes_and_gives(self, reference: TorchEngine) -> None:
        assert [spec.name for spec in reference.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
        assert reference.signature.outputs[0].shape == ("batch", 5)

    def test_wrong_inputs_are_refused_by_name(self, reference: TorchEngine) -> None:
        ids = np.ones((1, 4), np.int64)
        with pytest.raises(UsageError, match="'token_type_ids' is missing"):
            reference.run({"input_ids": ids, "attention_mask": ids})
        with pytest.raises(UsageError, match="'attention_mask' is int32"):
            reference.run({"input_ids": ids, "attention_mask": ids.astype(np.int32), "token_type_ids": ids})

    def test_a_token_beyond_the_vocabulary_is_refused(self, reference: TorchEngine) -> None:
        ids = np.ones((1, 4), np.int64)
        with pytest.raises(UsageError, match="token ids"):
            reference.run({"input_ids": ids + 10**6, "attention_mask": ids, "token_type_ids": ids * 0})

    def test_a_closed_engine_does_not_run(self, classifier_folder: Path, classifier_task: Task) -> None:
        engine = TorchEngine(classifier_folder, classifier_task)
        engine.close()
        engine.close()
        with pytest.raises(UsageError, match="closed"):
            engine.run({})

    def test_a_checkpoint_without_weights_is_refused(self, tmp_path: Path, classifier_task: Task) -> None:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            TorchEngine(tmp_path, classifier_task)


def test_tolerance_is_plain_data() -> None:
    assert replace(TOLERANCES["int8"], min_cosine=0.9).min_cosine == 0.9
