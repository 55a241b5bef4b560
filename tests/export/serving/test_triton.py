"""Model repositories of Triton: what they say, and that whatever is changed in them is noticed."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgesmith.api.serving import export_for
from edgesmith.artifact import open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError, VerificationError
from export.serving.config_text import read_config_text
from export.serving.served import ServedModel
from export.serving.triton import check_repository, number_versions, write_triton
from export.serving.triton_config import check_parity, make_config
from serve.config import ModelSpec, ServerConfig
from serve.runtime.golden import read_golden
from tests.serve.models_built import affine, save, write
from tests.serve.protocols.oip.serving import Serving, run_client

FULL_SHAPES = """
import json, sys
from pathlib import Path
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
found = {}
for path in Path(sys.argv[1]).glob("*/config.pbtxt"):
    config = text_format.Parse(path.read_text(), ModelConfig())
    batch = [-1] if config.max_batch_size > 0 else []
    found[config.name] = {
        side: [[one.name, DataType.Name(one.data_type)[5:], batch + list(one.dims)] for one in tensors]
        for side, tensors in (("inputs", config.input), ("outputs", config.output))
    }
print(json.dumps(found))
"""


def config_of(repository: Path, name: str) -> dict[str, Any]:
    return read_config_text((repository / name / "config.pbtxt").read_text())


def test_triton_asks_clients_for_the_shapes_and_types_that_our_own_server_asks_for(
    repository: Path, models: Sequence[ModelSpec]
):
    theirs = run_client(FULL_SHAPES, str(repository))
    with Serving(ServerConfig(models=tuple(models))) as ours:
        for name, tensors in theirs.items():
            metadata = ours.ask(f"/v2/models/{name}").value
            for side in ("inputs", "outputs"):
                said = [[one["name"], one["datatype"], one["shape"] or [1]] for one in metadata[side]]
                assert [[one, kind.replace("STRING", "BYTES"), shape] for one, kind, shape in tensors[side]] == said
            config = ours.ask(f"/v2/models/{name}/config").value
            assert config["max_batch_size"] == config_of(repository, name)["max_batch_size"] or name in ("scorer",)
    assert theirs.keys() == {spec.name for spec in models}


@pytest.mark.parametrize(
    ("name", "size", "dims"),
    [
        ("affine", 16, [[4], [3]]),
        ("image", 16, [[3, -1, 64], [3, -1, 64]]),
        ("fixed", 0, [[2, 3], [2, 3]]),
        ("scorer", 0, [[-1, 4], [-1]]),  # an output with nothing but rows has no shape that Triton could batch
        ("total", 0, [[-1, -1], [1]]),
        ("news", 16, [[-1], [-1], [-1], [3]]),
    ],
)
def test_the_axis_of_rows_is_left_out_where_batches_are_formed(
    repository: Path, name: str, size: int, dims: list[list[int]]
):
    config = config_of(repository, name)
    assert config["max_batch_size"] == size
    assert [one["dims"] for one in (*config["input"], *config["output"])] == dims
    assert config.get("dynamic_batching") == ({"max_queue_delay_microseconds": 250} if size else None)
    assert config["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    assert config["parameters"] == {"intra_op_thread_count": {"string_value": "2"}}


def test_a_classifier_has_its_labels_in_their_order(repository: Path):
    assert (repository / "news" / "labels.txt").read_text() == "business\nsport\ntech\n"
    assert config_of(repository, "news")["output"][0]["label_filename"] == "labels.txt"
    assert "label_filename" not in config_of(repository, "affine")["output"][0]


def test_warm_up_is_the_first_golden_row_alone_and_as_the_largest_batch(repository: Path, served: dict[str, Any]):
    samples = config_of(repository, "news")["model_warmup"]
    golden = read_golden(served["news"].artifact)
    assert [one["batch_size"] for one in samples] == [1, 16]
    for name, given in samples[0]["inputs"].items():
        raw = (repository / "news" / "warmup" / given["input_data_file"]).read_bytes()
        row = np.frombuffer(raw, np.int64).reshape(given["dims"])
        np.testing.assert_array_equal(row, golden.inputs[name][0])


def test_the_request_in_the_repository_is_answered_with_the_golden_outputs(
    repository: Path, models: Sequence[ModelSpec], served: dict[str, Any]
):
    request = json.loads((repository / "news" / "request.json").read_text())
    with Serving(ServerConfig(models=tuple(spec for spec in models if spec.name == "news"))) as server:
        answer = server.infer("news", request).value
    expected = read_golden(served["news"].artifact).outputs["logits"][0]
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected, atol=1e-4)


def test_a_graph_with_weights_beside_it_runs_from_the_repository(tmp_path: Path):
    folder = tmp_path / "affine"
    save(affine(), folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    write(folder)
    made = write_triton([ModelSpec(name="affine", path=folder, version="7")], tmp_path / "out")
    session = onnxruntime.InferenceSession(
        made.path / "affine" / "7" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    row = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": row})[0], row @ np.arange(12).reshape(4, 3) + 1)


def test_texts_are_encoded_by_what_lies_beside_the_graph(repository: Path, served: dict[str, Any]):
    from edgesmith.tasks import load_task

    arrays = load_task(repository / "news" / "4").encode(read_golden(served["news"].artifact).texts)
    for name, array in read_golden(served["news"].artifact).inputs.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_the_readme_says_how_it_is_run_and_asked(repository: Path):
    text = (repository / "README.txt").read_text()
    assert "tritonserver --model-repository=/models" in text
    assert "-d @affine/request.json" not in text  # it has no golden row
    assert 'load_task(Path("news/1"))' in text
    assert "scorer: not every tensor has an axis of rows" in text


def set_at(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        place: Any = config
        for key in path[:-1]:
            place = place[key]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_at("name", to="old"), "name is 'old', and 'news' of our server"),
        (set_at("platform", to="tensorrt_plan"), "platform is 'tensorrt_plan'"),
        (set_at("backend", to=None), "backend is None"),
        (set_at("version_policy", to=None), "version_policy is None"),
        (set_at("max_batch_size", to=8), "max_batch_size is 8, and 16 of our server"),
        (set_at("max_batch_size", to=0), "the whole shape of input 'input_ids' is [-1], and [-1, -1] of the graph"),
        (set_at("dynamic_batching", to=None), "dynamic_batching is None"),
        (set_at("dynamic_batching", "max_queue_delay_microseconds", to=1), "dynamic_batching is {'max_queue"),
        (set_at("input", 0, "name", to="ids"), "input names is ['ids', 'token_type_ids', 'attention_mask']"),
        (set_at("input", 1, to=None), "input names"),
        (set_at("input", 2, "data_type", to="TYPE_INT32"), "is 'TYPE_INT32', and 'TYPE_INT64' of the graph"),
        (set_at("input", 2, "dims", to=[128]), "the whole shape of input 'attention_mask' is [-1, 128]"),
        (set_at("input", 2, "dims", to=[-1, -1]), "is [-1, -1, -1], and [-1, -1] of our server's metadata"),
        (set_at("output", 0, "name", to="scores"), "output names is ['scores']"),
        (set_at("output", 0, "data_type", to="TYPE_FP16"), "and 'TYPE_FP32' of our server's metadata"),
        (set_at("output", 0, "dims", to=[-1]), "the whole shape of output 'logits' is [-1, -1], and [-1, 3]"),
        (lambda config: config["input"].reverse(), "input names"),
        (lambda config: config["output"].append(copy.deepcopy(config["output"][0])), "output names"),
    ],
)
def test_every_difference_from_the_artifact_is_found(
    repository: Path, served: dict[str, ServedModel], change: Callable[[dict[str, Any]], None], said: str
):
    config = config_of(repository, "news")
    labels = ["business", "sport", "tech"]
    check_parity(config, served["news"], labels)
    change(config)
    with pytest.raises(VerificationError) as caught:
        check_parity(config, served["news"], labels)
    assert said in caught.value.message


@pytest.mark.parametrize("labels", [["sport", "business", "tech"], ["business", "sport"], None])
def test_other_labels_than_the_tasks_are_found(repository: Path, served: dict[str, ServedModel], labels: Any):
    with pytest.raises(VerificationError, match="the list of labels"):
        check_parity(config_of(repository, "news"), served["news"], labels)


def test_batches_of_a_graph_that_has_none_are_found(served: dict[str, ServedModel]):
    config = make_config(served["scorer"], threads=0, num_instances=1)
    check_parity(config, served["scorer"])
    with pytest.raises(VerificationError, match="max_batch_size is 4, and 0 of a graph whose requests cannot share"):
        check_parity(config | {"max_batch_size": 4}, served["scorer"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "4" / "model.onnx").write_bytes(b"x"), "is not the artifact's model.onnx"),
        (lambda root: shutil.rmtree(root / "1"), "holds the versions 4"),
        (lambda root: (root / "5").mkdir(), "holds the versions 1, 4, 5"),
        (lambda root: (root / "labels.txt").write_text("a\nb\nc\n"), "the list of labels"),
        (lambda root: (root / "labels.txt").unlink(), "the list of labels"),
        (lambda root: (root / "warmup" / "input1.bin").write_bytes(b"x"), "does not have the"),
    ],
)
def test_damage_to_a_repository_is_found(
    repository: Path, served: dict[str, ServedModel], tmp_path: Path, damage: Callable[[Path], None], said: str
):
    shutil.copytree(repository / "news", tmp_path / "news")
    both = [replace_version(served["news"], "1"), served["news"]]
    check_repository(tmp_path, both)
    damage(tmp_path / "news")
    with pytest.raises(VerificationError, match=said):
        check_repository(tmp_path, both)


def replace_version(model: ServedModel, version: str) -> ServedModel:
    return replace(model, spec=replace(model.spec, version=version))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_at("model_warmup", 1, "batch_size", to=17), "'largest batch' has 17 rows"),
        (set_at("model_warmup", 0, "inputs", "input_ids", to=None), "is not of the inputs"),
        (set_at("model_warmup", 0, "inputs", "input_ids", "data_type", to="TYPE_INT32"), "is TYPE_INT32"),
        (set_at("model_warmup", 0, "inputs", "input_ids", "dims", to=[4, 4]), "has the dims [4, 4]"),
        (set_at("model_warmup", 0, "inputs", "input_ids", "input_data_file", to="none.bin"), "does not have the"),
    ],
)
def test_a_sample_that_does_not_fit_the_inputs_is_found(
    repository: Path, change: Callable[[dict[str, Any]], None], said: str
):
    from export.serving.triton_config import find_warm_up_fault

    config = config_of(repository, "news")
    assert not find_warm_up_fault(repository / "news" / "warmup", config)
    change(config)
    assert said in find_warm_up_fault(repository / "news" / "warmup", config)


def test_versions_become_numbers_and_it_is_said():
    versions = ["3", "beta", "01", "0", "1.0"]
    numbered, notes = number_versions([ModelSpec(name="a", path=Path("a"), version=one) for one in versions])
    assert [spec.version for spec in numbered] == ["3", "4", "5", "6", "7"]
    assert notes[0] == "a: the version 'beta' is called 4: Triton's are numbers"
    assert len(notes) == 4


def test_versions_with_other_tensors_are_refused(models: Sequence[ModelSpec], tmp_path: Path):
    paths = {spec.name: spec.path for spec in models}
    specs = [ModelSpec(name="a", path=paths["affine"]), ModelSpec(name="a", path=paths["image"], version="2")]
    with pytest.raises(UsageError, match=r"versions 1 and 2 differ(.|\n)*a-1=PATH"):
        write_triton(specs, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gguf", "genai"])
def test_kinds_without_a_backend_are_refused_with_the_way_out(tmp_path: Path, kind: Any):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.gguf").write_bytes(b"GGUF")
    write_artifact(tmp_path / "a", kind=kind, step="test")
    with pytest.raises(UnsupportedError, match=f"'{kind}', for which Triton has no backend(.|\n)*--for kserve"):
        write_triton([ModelSpec(name="a", path=tmp_path / "a")], tmp_path / "out")


def test_a_model_that_fails_its_golden_vectors_is_not_exported(classifier_path: Path, tmp_path: Path):
    from serve.runtime.golden import write_golden

    folder = shutil.copytree(classifier_path, tmp_path / "bad")
    artifact = open_artifact(folder)
    golden = read_golden(artifact)
    wrong = {"logits": golden.outputs["logits"] + 1}
    write_golden(folder, inputs=golden.inputs, outputs=wrong, max_abs_difference=1e-4, texts=golden.texts)
    (folder / "manifest.json").unlink()
    write(folder, artifact.manifest.signature, task=artifact.manifest.task)
    with pytest.raises(ArtifactError, match="golden"):
        write_triton([ModelSpec(name="bad", path=folder)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_repository_replaces_a_repository_and_nothing_else(models: Sequence[ModelSpec], tmp_path: Path):
    spec = next(spec for spec in models if spec.name == "affine")
    write_triton([spec], tmp_path / "out")
    write_triton([replace(spec, name="other")], tmp_path / "out")
    assert not (tmp_path / "out" / "affine").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is no model repository"):
        write_triton([spec], tmp_path / "mine")


def test_the_same_models_give_the_same_bytes(models: Sequence[ModelSpec], tmp_path: Path):
    spec = next(spec for spec in models if spec.name == "affine")
    trees = [write_triton([spec], tmp_path / name).path for name in ("one", "other")]
    one, other = ({p.relative_to(tree): p.read_bytes() for p in tree.rglob("*") if p.is_file()} for tree in trees)
    assert one == other


def test_a_release_gives_the_target_of_the_models_name(classifier_path: Path, tmp_path: Path):
    from edgesmith.releases import ReleasedTargetIndex, ReleaseIndex

    shutil.copytree(classifier_path, tmp_path / "release" / "box")
    index = ReleaseIndex(name="news", command="test", targets={"box": ReleasedTargetIndex()})
    index.save(tmp_path / "release")
    made = export_for([f"news={tmp_path / 'release'}"], server="triton", out=tmp_path / "out", max_batch_size=4)
    assert made["models"] == ("news/1",)
    assert config_of(tmp_path / "out", "news")["max_batch_size"] == 4


def test_options_of_another_server_are_refused(classifier_path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--image means nothing to --for triton"):
        export_for([f"news={classifier_path}"], server="triton", out=tmp_path / "out", image="x")
    with pytest.raises(UsageError, match="news:1 is given twice"):
        export_for([f"news={classifier_path}"] * 2, server="triton", out=tmp_path / "out")
    with pytest.raises(UsageError, match="--for seldon: unknown; use triton, kserve"):
        export_for([f"news={classifier_path}"], server="seldon", out=tmp_path / "out")
