from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.tasks import TextTask, load_task
from serve.errors import EngineFailedError
from serve.models.batching import read_layout
from serve.models.warm_up import WarmUp, warm_up
from serve.runtime import open_engine
from tests.serve.models.models_run import Arrays, doubling, floats, graph, row_sum
from tests.serve.models_built import save, write


def warm(artifact: Artifact, *, with_task: bool = False, max_batch_size: int | None = None) -> WarmUp:
    engine = open_engine(artifact)
    task = load_task(artifact.path) if with_task else None
    layout = read_layout(engine.signature, task)
    assert bool(layout.fill) == with_task
    found = warm_up(engine.run, engine.signature, layout, artifact, task, max_batch_size=max_batch_size)
    engine.close()
    return found


def dynamic_int8(folder: Path) -> Artifact:
    """y = x · w with x quantized at run time with one scale for all rows, as dynamic quantization does."""
    weight = np.random.default_rng(1).integers(-127, 127, (4, 3)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["y"]),
    ]
    return graph(folder, nodes, {"x": ("batch", 4)}, {"y": ("batch", 3)}, [numpy_helper.from_array(weight, "w")])


def test_the_batch_size_is_measured_and_no_slower_than_one_row(tmp_path: Path) -> None:
    found = warm(doubling(tmp_path, ("batch", 3)))
    assert found.limits.max_rows in found.rows_per_s
    assert found.rows_per_s[found.limits.max_rows] >= found.rows_per_s[1]
    assert found.limits.max_elements == found.limits.max_rows * 3
    assert found.batch_effect == 0.0


def test_a_batch_size_that_is_given_is_taken(classifier_path: Path) -> None:
    found = warm(open_artifact(classifier_path), with_task=True, max_batch_size=20)
    assert (found.limits.max_rows, found.limits.max_elements) == (20, None)
    assert 20 in found.rows_per_s


def test_neither_mates_nor_padding_move_answers_in_floating_point(classifier_path: Path) -> None:
    found = warm(open_artifact(classifier_path), with_task=True)
    assert found.can_mix_lengths
    assert found.batch_effect < 1e-5
    assert found.padding_effect < 1e-5


def test_one_scale_for_the_whole_batch_is_found_out(tmp_path: Path) -> None:
    assert warm(dynamic_int8(tmp_path)).batch_effect > 1e-3


def test_rows_that_the_axes_promise_and_the_graph_does_not_have_are_found_out(tmp_path: Path) -> None:
    found = warm(row_sum(tmp_path, claims_rows=True))
    assert not found.has_rows
    assert found.limits.max_rows == 1


def test_a_graph_that_takes_long_axes_only_is_warmed_with_those(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(floats(1, 1, 60), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    found = warm(graph(tmp_path, [node], {"x": ("batch", 1, "size")}, {"y": ("batch", 1, "left")}, [weight]))
    assert len(found.notes) == 1
    assert "length 16 could not be run" in found.notes[0]
    assert found.rows_per_s


def test_a_graph_that_nothing_fits_is_left_cold(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(floats(1, 1, 600), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    found = warm(graph(tmp_path, [node], {"x": ("batch", 1, "size")}, {"y": ("batch", 1, "left")}, [weight]))
    assert found.limits.max_rows == 1
    assert not found.rows_per_s
    assert len(found.notes) == 3


@pytest.mark.parametrize("ignores_mask", [False, True])
def test_lengths_are_mixed_only_if_padding_is_hidden(classifier_path: Path, tmp_path: Path, ignores_mask: bool) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(classifier_path, folder, ignore=shutil.ignore_patterns("golden", "manifest.json"))
    if ignores_mask:
        model = onnx.load(folder / "model.onnx")
        pooled = next(node for node in model.graph.node if node.op_type == "ReduceSum")
        pooled.input[0] = "states"
        save(model.graph, folder / "model.onnx")
    artifact = write(folder, task="text-classification")
    assert warm(artifact, with_task=True).can_mix_lengths != ignores_mask


def test_large_shapes_are_run_before_anybody_waits(classifier_path: Path) -> None:
    artifact = open_artifact(classifier_path)
    engine, task = open_engine(artifact), load_task(classifier_path)
    lengths = set()

    def run(arrays: Arrays) -> Arrays:
        lengths.add(arrays["input_ids"].shape[1])
        return engine.run(arrays)

    warm_up(run, engine.signature, read_layout(engine.signature, task), artifact, task)
    assert max(lengths) == min(task.max_length or 512, 512)


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_row_is_longer_than_the_model_takes(classifier_path: Path, side: str) -> None:
    artifact = open_artifact(classifier_path)
    engine, task = open_engine(artifact), load_task(classifier_path, max_length=7)
    assert isinstance(task, TextTask)
    settings = task.encoder.settings.model_copy(update={"padding_side": side})
    task.encoder = replace(task.encoder, settings=settings)
    lengths = set()

    def run(arrays: Arrays) -> Arrays:
        lengths.add(arrays["input_ids"].shape[1])
        return engine.run(arrays)

    found = warm_up(run, engine.signature, read_layout(engine.signature, task), artifact, task)
    assert max(lengths) == 7
    assert found.rows_per_s
    assert found.can_mix_lengths


def test_an_engine_that_dies_is_no_model(tmp_path: Path) -> None:
    artifact = doubling(tmp_path, ("batch", 3))
    signature = open_engine(artifact).signature

    def run(arrays: Arrays) -> Arrays:
        raise EngineFailedError("the process has gone")

    with pytest.raises(EngineFailedError, match="gone"):
        warm_up(run, signature, read_layout(signature), artifact)
