"""Models of pictures, exported: equal to torch at every batch, of the processor's size, and quantized."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bench.accuracy import evaluate
from bench.machine.operations import count_operations
from bench.scenarios.inputs import encode_inputs
from edgesmith.api.graphs import export_onnx, quantize_onnx
from edgesmith.api.look import check, predict
from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks import ImageClassification, load_task
from export.inputs import input_specs
from export.reference import TorchEngine
from serve.runtime import open_engine

pytest.importorskip("PIL.Image")
EDGE = 16
LABELS = {0: "one", 1: "two", 2: "three"}
COMMON: dict[str, Any] = {"id2label": LABELS, "label2id": {name: key for key, name in LABELS.items()}}


def write_model(folder: Path, kind: str) -> Path:
    """A small seeded model with its image processor."""
    import transformers

    torch.manual_seed(3)
    options: dict[str, Any] = {
        "ResNet": {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [12, 20], "depths": [1, 1]}
        | {"layer_type": "basic"},
        "ViT": {"image_size": EDGE, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 2}
        | {"num_attention_heads": 2, "intermediate_size": 128},
        "ConvNext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**COMMON, **options)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 2.0)
    model.save_pretrained(folder)
    channels = getattr(config, "num_channels", 3)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": EDGE, "width": EDGE}}
    processor |= {"image_mean": [0.3] * channels, "image_std": [0.3] * channels}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module", params=["ResNet", "ViT", "ConvNext"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A checkpoint, and the artifact that was proved to equal it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write_model(folder / "checkpoint", request.param)
    artifact, verification = export_onnx(checkpoint, out=folder / "onnx")
    assert verification.passed
    assert (1, *verification.shapes[0][1:]) in verification.shapes  # single rows too
    return checkpoint, artifact


def test_the_signature_is_the_processors_size_with_a_free_batch(exported: tuple[Path, Artifact]) -> None:
    checkpoint, artifact = exported
    task = load_task(artifact.folder)
    assert isinstance(task, ImageClassification)
    assert task.runtime_config() == load_task(checkpoint).runtime_config()
    signature = artifact.manifest.signature
    assert signature is not None
    assert signature.inputs == input_specs(task)
    assert signature.inputs[0].shape == ("batch", *task.pixel_shape)
    assert [tuple(one.shape) for one in signature.outputs] == [("batch", 3)]
    reference = TorchEngine(checkpoint, task)
    assert reference.signature == signature
    reference.close()


def test_normalisation_is_folded_into_convolutions_whose_work_is_counted_exactly(
    exported: tuple[Path, Artifact],
) -> None:
    checkpoint, artifact = exported
    graph = ir.load(artifact.file("model.onnx")).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.all_nodes()}
    if "ResNet" not in str(checkpoint):
        return
    task = load_task(artifact.folder)
    inputs = encode_inputs(task, task.sample_examples(), num_inputs=1)
    assert inputs.description == f"1 real pictures of 1×{EDGE}×{EDGE}"
    [found] = count_operations(artifact, inputs.arrays)
    # stem 8×8, pooled to 4×4: one block of 12 channels at 4×4 and one of 20 at 2×2, each with a shortcut, and the head
    stem, first = 64 * 49 * 8, 16 * (9 * 8 * 12 + 9 * 12 * 12 + 8 * 12)
    second, head = 4 * (9 * 12 * 20 + 9 * 20 * 20 + 12 * 20), 20 * 3
    assert found.fp32_macs == stem + first + second + head


def test_accuracy_and_answers_are_the_torch_models(exported: tuple[Path, Artifact], tmp_path: Path) -> None:
    checkpoint, artifact = exported
    task = load_task(artifact.folder)
    pictures = task.sample_examples()
    files = []
    for index, picture in enumerate(pictures):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(picture.image)  # type: ignore[arg-type]  # packaged ones are bytes
    reference, engine = TorchEngine(checkpoint, task), open_engine(artifact)
    arrays = task.encode(pictures)
    wanted = task.decode(reference.run(arrays), arrays, pictures)
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"image": file.name, "label": one["label"]}) + "\n"
            for file, one in zip(files, wanted, strict=True)
        )
    )
    found = evaluate(engine, task, task.read_examples(tmp_path / "rows.jsonl"))
    assert found.metrics["accuracy"] == 1.0
    answers = predict(artifact.path, [str(file) for file in files[:2]])
    assert [one["label"] for one in answers] == [one["label"] for one in wanted[:2]]
    assert check(artifact.path)["golden"]["num_rows"] == 4
    for opened in (reference, engine):
        opened.close()


def write_rows(folder: Path, num: int = 24) -> Path:
    """Rows that name packaged pictures."""
    files = sorted(resources.files("edgesmith.tasks").joinpath("sample_pictures").iterdir(), key=lambda file: file.name)
    pictures = [file.read_bytes() for file in files]
    for index, picture in enumerate(pictures):
        (folder / f"{index}.png").write_bytes(picture)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": f"{i % len(pictures)}.png"}) + "\n" for i in range(num)))
    return path


def test_convolutions_run_in_integers_beside_those_that_stay_in_float(
    exported: tuple[Path, Artifact], tmp_path: Path
) -> None:
    checkpoint, artifact = exported
    if "ResNet" not in str(checkpoint):
        return
    rows = write_rows(tmp_path)
    with pytest.raises(UnsupportedError, match=r"convolution becomes integers by static-int8 alone"):
        quantize_onnx(artifact.path, method="dynamic-int8", out=tmp_path / "dynamic")
    made, verification = quantize_onnx(
        artifact.path, method="static-int8", calibration=rows, out=tmp_path / "int8", against=checkpoint
    )
    assert verification.passed
    assert verification.metrics["relative_error"] < 0.03
    task = load_task(made.folder)
    [found] = count_operations(made, encode_inputs(task, task.sample_examples(), num_inputs=1).arrays)
    # the kernels of 1,024 weights and more: 12→12 at 4×4, 12→20 and 20→20 at 2×2
    assert found.int8_macs == 16 * 9 * 12 * 12 + 4 * (9 * 12 * 20 + 9 * 20 * 20)


def test_a_transformer_of_pictures_is_quantized(exported: tuple[Path, Artifact], tmp_path: Path) -> None:
    checkpoint, artifact = exported
    if "ViT" not in str(checkpoint):
        return
    made, verification = quantize_onnx(artifact.path, method="dynamic-int8", out=tmp_path / "int8", against=checkpoint)
    assert verification.passed
    assert made.model_bytes < 0.6 * artifact.model_bytes


def test_sizes_that_follow_the_picture_are_refused_before_tracing(tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "checkpoint", "ResNet")
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": EDGE}}))
    with pytest.raises(UnsupportedError, match="no common size"):
        export_onnx(checkpoint, out=tmp_path / "out")


def test_pictures_have_no_length_to_be_timed_at(exported: tuple[Path, Artifact]) -> None:
    task = load_task(exported[1].folder)
    with pytest.raises(UsageError, match="128 tokens"):
        encode_inputs(task, task.sample_examples(), length=128)
    assert open_artifact(exported[1].path).manifest.task == "image-classification"
    assert np.isfinite(task.encode(task.sample_examples())["pixel_values"]).all()
