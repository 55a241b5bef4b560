"""Each pass changes what it says, and the outputs stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from compress.load import load_model
from edgesmith.tasks import Task
from export.passes.base import GraphPass, PassError, PassResult, run_passes
from export.passes.clean import Deduplicate, DropMetadata
from export.passes.fuse_attention import FuseAttention
from export.passes.keep_layer_norm import KeepLayerNorm
from export.passes.narrow_last_layer import NarrowLastLayer
from export.passes.rename import Rename
from export.passes.simplify_mask import SimplifyMask
from export.to_onnx import trace

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def traced(classifier_folder: Path, classifier_task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as the library exports it, before any pass."""
    model, _ = trace(load_model(classifier_folder, classifier_task, attention="eager"), classifier_task, 20)
    path = tmp_path_factory.mktemp("traced") / "model.onnx"
    ir.save(model, path)
    return path


@pytest.fixture(scope="module")
def batch(classifier_task: Task) -> Arrays:
    """Real sentences of different lengths, so that there is padding."""
    arrays: Arrays = dict(classifier_task.encode([one.text for one in classifier_task.sample_examples()[:6]]))
    assert (arrays["attention_mask"] == 0).any()
    return arrays


def run(model: ir.Model, arrays: Arrays) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["logits"], arrays)[0])


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    "graph_pass",
    [
        DropMetadata(),
        SimplifyMask(),
        FuseAttention(),
        KeepLayerNorm(),
        Rename({}, ("batch", "sequence")),
    ],
    ids=lambda item: type(item).__name__,
)
def test_outputs_stay_within_rounding(graph_pass: GraphPass, traced: Path, batch: Arrays) -> None:
    model = ir.load(traced)
    expected = run(model, batch)
    if isinstance(graph_pass, FuseAttention):
        run_passes(model, [SimplifyMask()])
    [result] = run_passes(model, [graph_pass])
    assert result.num_changes > 0
    assert np.abs(run(model, batch) - expected).max() <= 1e-5


def test_mask_comes_straight_from_the_input(traced: Path) -> None:
    model = ir.load(traced)
    assert count(model)["GatherND"] == 1
    run_passes(model, [SimplifyMask(), Deduplicate()])
    left = count(model)
    assert not {"GatherND", "Range", "Expand", "And", "GreaterOrEqual", "Max"} & left.keys()
    [where] = [node for node in model.graph if node.op_type == "Where"]
    assert where.outputs[0].shape is not None
    assert [dim for dim in where.outputs[0].shape if dim == 1] == [1, 1]


def test_every_attention_becomes_one_node(traced: Path) -> None:
    model = ir.load(traced)
    *_, fused, _ = run_passes(model, [SimplifyMask(), FuseAttention(), Deduplicate()])
    assert fused.num_changes == 6
    assert fused.left_out == ()
    left = count(model)
    assert left["MultiHeadAttention"] == 6
    assert left["Softmax"] == left["Transpose"] == left["Reshape"] == 0
    assert left["Cast"] == 1, "one mask for all layers"
    [attention, *_] = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert attention.attributes["num_heads"].as_int() == 12
    assert attention.attributes["scale"].as_float() == pytest.approx(32**-0.5)


def test_attention_with_another_mask_is_left_and_named(traced: Path, batch: Arrays) -> None:
    """A mask that is not one of padding, as a sliding window's, must not be taken for one."""
    model = ir.load(traced)
    run_passes(model, [SimplifyMask(), Deduplicate()])
    [where] = [node for node in model.graph if node.op_type == "Where"]
    low = where.inputs[2]
    assert low is not None
    low.const_value = ir.tensor(np.array(-1.0, np.float32), name=low.name)  # a mild penalty, not a mask
    expected = run(model, batch)
    [result] = run_passes(model, [FuseAttention()])
    assert result.num_changes == 0
    assert len(result.left_out) == 1
    assert "6 attentions" in result.left_out[0]
    assert np.array_equal(run(model, batch), expected)


def test_weights_normalized_over_another_axis_are_no_attention(traced: Path) -> None:
    model = ir.load(traced)
    run_passes(model, [SimplifyMask()])
    for node in model.graph:
        if node.op_type == "Softmax":
            node.attributes["axis"] = ir.AttrInt64("axis", 2)
    [result] = run_passes(model, [FuseAttention()])
    assert result.num_changes == 0
    assert result.left_out == (
        "6 attentions were left as plain operators: its weights are not normalized over the keys",
    )


def test_a_mask_of_unknown_length_is_left_as_it_is(traced: Path) -> None:
    """Two lengths that nobody knows are not equal for that."""
    model = ir.load(traced)
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        value.shape = None
    SimplifyMask()(model)
    [gather] = [node for node in model.graph if node.op_type == "GatherND"]
    assert gather.outputs[0].uses(), "not replaced"


def test_layer_norm_keeps_its_own_kernel(traced: Path, tmp_path: Path) -> None:
    """ONNX Runtime must not fuse the residual addition into SkipLayerNormalization."""
    model = ir.load(traced)
    assert "SkipLayerNormalization" in optimized_operators(model, tmp_path / "before.onnx")
    [result] = run_passes(model, [KeepLayerNorm()])
    assert result.num_changes == 13
    assert "SkipLayerNormalization" not in optimized_operators(model, tmp_path / "after.onnx")


def optimized_operators(model: ir.Model, path: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return count(ir.load(path))


def test_equal_weights_are_kept_once(traced: Path, batch: Arrays) -> None:
    model = ir.load(traced)
    expected = run(model, batch)
    weight = next(value for value in model.graph.initializers.values() if value.shape == ir.Shape([384, 384]))
    assert weight.const_value is not None
    copy = ir.Value(
        name="copy",
        shape=weight.shape,
        type=weight.type,
        const_value=ir.tensor(weight.const_value.numpy().copy(), name="copy"),
    )
    model.graph.register_initializer(copy)
    reader = next(iter(weight.uses())).node
    reader.replace_input_with(1, copy)
    [result] = run_passes(model, [Deduplicate()])
    assert result.num_changes == 1
    assert np.array_equal(run(model, batch), expected)
    assert ("copy" in model.graph.initializers) != (weight.name in model.graph.initializers)


def test_weights_nodes_and_axes_have_the_checkpoints_names(
    traced: Path, classifier_folder: Path, classifier_task: Task
) -> None:
    weights = {
        name: tensor.numpy() for name, tensor in load_model(classifier_folder, classifier_task).state_dict().items()
    }
    model = ir.load(traced)
    run_passes(model, [Rename(weights, ("batch", "sequence"))])
    assert "bert.encoder.layer.3.attention.self.query.weight.transposed" in model.graph.initializers
    assert "bert.encoder.layer.3.output.LayerNorm.weight" in model.graph.initializers
    names = [node.name for node in model.graph]
    assert "bert.encoder.layer.3.attention.self.query/MatMul" in names
    assert len(names) == len(set(names))
    assert model.graph.inputs[0].shape == ir.Shape(["batch", "sequence"])


def test_metadata_leaves_no_trace(traced: Path) -> None:
    model = ir.load(traced)
    model.graph.doc_string = "made in /home/somebody"
    node = next(iter(model.graph))
    node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/somebody/model.py"
    node.outputs[0].metadata_props["note"] = "/home/somebody"
    [result] = run_passes(model, [DropMetadata()])
    assert result.num_changes >= 3
    assert b"somebody" not in ir.to_proto(model).SerializeToString()


def _lose_an_input(model: ir.Model) -> PassResult:
    node = list(model.graph)[-1]
    node.replace_input_with(0, ir.Value(name="nowhere"))
    return PassResult(name="lose-an-input", num_changes=1)


def _rename_the_output(model: ir.Model) -> PassResult:
    model.graph.outputs[0].name = "other"
    return PassResult(name="rename-the-output", num_changes=1)


@pytest.mark.parametrize(("broken", "message"), [(_lose_an_input, "'nowhere'"), (_rename_the_output, "'other'")])
def test_a_broken_graph_is_an_error_that_names_the_pass(
    broken: Callable[[ir.Model], PassResult], message: str, traced: Path
) -> None:
    with pytest.raises(PassError, match=message) as caught:
        run_passes(ir.load(traced), [broken])
    assert broken(ir.load(traced)).name in str(caught.value)


def narrowed(traced: Path) -> tuple[ir.Model, PassResult]:
    model = ir.load(traced)
    *_, result = run_passes(model, [SimplifyMask(), FuseAttention(), Deduplicate(), NarrowLastLayer()])
    return model, result


def test_only_the_token_that_is_read_goes_through_the_last_layer(traced: Path, batch: Arrays) -> None:
    expected = run(ir.load(traced), batch)
    model, result = narrowed(traced)
    assert result.num_changes == 14
    assert np.abs(run(model, batch) - expected).max() <= 1e-5
    lengths = [
        node.outputs[0].shape[1]
        for node in model.graph
        if node.op_type in ("MatMul", "MultiHeadAttention") and node.outputs[0].shape is not None
    ]
    # 7 in each layer: query, key, value, attention, output and two of the feed-forward part
    assert len(lengths) == 42
    assert [length == 1 for length in lengths].count(True) == 5, "all of the last layer but keys and values"
    assert 1 not in lengths[:35]


def test_states_that_leave_the_graph_are_all_computed(traced: Path) -> None:
    model = ir.load(traced)
    run_passes(model, [SimplifyMask(), FuseAttention(), Deduplicate()])
    [gather] = [node for node in model.graph if node.op_type == "Gather" and node.attributes["axis"].as_int() == 1]
    states = gather.inputs[0]
    assert states is not None
    model.graph.outputs.append(states)
    [result] = run_passes(model, [NarrowLastLayer()])
    assert result.num_changes == 0
