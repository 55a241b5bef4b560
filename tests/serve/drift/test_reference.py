from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesmith.errors import ArtifactError, DataError
from edgesmith.tasks import Task
from serve.drift import REFERENCE_FILE, Reference, make_reference, make_text_reference, read_reference, write_reference
from serve.runtime import Engine
from tests.serve.drift.conftest import NUM_REFERENCE
from tests.serve.models_built import affine, save, write


def test_reference_of_a_classifier_has_inputs_labels_and_confidence(reference: Reference) -> None:
    features = {feature.name: feature for feature in reference.features}
    assert set(features) == {"length", "surprise", "token", "unknown", "label", "confidence"}
    assert features["label"].labels == ("business", "sport", "tech")
    half = NUM_REFERENCE // 2
    counted = {name: sum(feature.counts) for name, feature in features.items()}
    assert counted == dict.fromkeys(features, half) | {"label": NUM_REFERENCE}
    assert reference.output == "logits"
    assert reference.unknown_id == 100
    assert {101, 102} <= set(reference.ignored_tokens)


def test_reference_of_an_encoder_has_norm_and_directions(embedder: tuple[Engine, Task], news: list[str]) -> None:
    made = make_reference(*embedder, news[:100])
    names = {feature.name for feature in made.features}
    assert {"norm", "direction 1", "direction 4"} <= names
    assert not {"label", "confidence"} & names


def test_reference_of_a_language_model_has_prompts_alone(news: list[str]) -> None:
    made = make_text_reference(lambda text: list(text.encode()), news[:100])
    assert {feature.name for feature in made.features} == {"length", "surprise", "token"}
    assert made.output == "text"


def test_confidence_on_what_it_was_trained_on_is_no_reference(classifier: tuple[Engine, Task], news: list[str]) -> None:
    made = make_reference(*classifier, news[:100], is_held_out=False)
    assert "confidence" not in {feature.name for feature in made.features}


def test_rows_of_one_length_are_a_reference_for_shorter_ones() -> None:
    made = make_text_reference(lambda text: [len(text)] * 7, ["a" * (index % 9) for index in range(60)])
    length = next(feature for feature in made.features if feature.name == "length")
    assert [length.bin_of(value) for value in (3, 7, 9)] == [0, 1, 2]
    assert length.counts == (0, 30, 0)


def test_values_that_are_all_alike_are_left_out_and_named() -> None:
    made = make_text_reference(lambda text: [3, 4] * len(text), ["a" * (1 + index % 9) for index in range(60)])
    assert {"length", "token"} <= {feature.name for feature in made.features}
    same = make_text_reference(lambda text: [3] * 50, ["a"] * 60)
    assert same.skipped == ("surprise",)


def test_too_few_rows_are_refused(classifier: tuple[Engine, Task], news: list[str]) -> None:
    with pytest.raises(DataError, match="49 rows are too few"):
        make_reference(*classifier, news[:49])


def written(folder: Path, text: str | bytes) -> Reference | None:
    save(affine(), folder / "model.onnx")
    (folder / REFERENCE_FILE).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_reference(write(folder))


def test_a_reference_is_read_as_it_was_written_and_is_small(reference: Reference, tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    write_reference(tmp_path, reference)
    assert read_reference(write(tmp_path)) == reference
    assert (tmp_path / REFERENCE_FILE).stat().st_size < 16 << 10


def test_the_same_rows_make_the_same_bytes(classifier: tuple[Engine, Task], news: list[str]) -> None:
    one, other = (make_reference(*classifier, news[:80]).model_dump_json() for _ in range(2))
    assert one == other


def test_an_artifact_without_a_reference_has_none(tmp_path: Path) -> None:
    save(affine(), tmp_path / "model.onnx")
    assert read_reference(write(tmp_path)) is None


def _without_ascending_edges(content: dict[str, Any]) -> None:
    content["features"][0]["edges"].reverse()


def _with_rows_missing(content: dict[str, Any]) -> None:
    content["num_rows"] += 1


def _with_a_count_missing(content: dict[str, Any]) -> None:
    content["features"][0]["counts"].pop()


def _with_a_feature_twice(content: dict[str, Any]) -> None:
    content["features"].append(content["features"][0])


def _with_a_key_too_many(content: dict[str, Any]) -> None:
    content["features"][0]["path"] = "/etc/passwd"


def _of_a_later_version(content: dict[str, Any]) -> None:
    content["schema_version"] = 3


def _with_a_negative_count(content: dict[str, Any]) -> None:
    content["features"][0]["counts"][0] -= 10_000


def _with_few_buckets(content: dict[str, Any]) -> None:
    content["bucket_counts"].pop()


@pytest.mark.parametrize(
    "damage",
    [_without_ascending_edges, _with_rows_missing, _with_a_count_missing, _with_a_feature_twice, _with_a_key_too_many,
     _of_a_later_version, _with_a_negative_count, _with_few_buckets],
)  # fmt: skip
def test_a_damaged_reference_is_refused(reference: Reference, tmp_path: Path, damage: Any) -> None:
    content = json.loads(reference.model_dump_json())
    damage(content)
    with pytest.raises(ArtifactError, match=rf"{REFERENCE_FILE}: is damaged at"):
        written(tmp_path, json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff", '{"num_rows": NaN}'])
def test_what_is_no_reference_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ArtifactError, match="is damaged"):
        written(tmp_path, text)


def test_a_huge_reference_is_not_even_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a reference has at most 65,536"):
        written(tmp_path, b" " * 70_000)


def test_making_one_loads_neither_torch_nor_a_stage() -> None:
    code = "import serve.drift, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "serve" in loaded
    assert not {"torch", "transformers", "bench", "export", "compress", "onnxruntime", "scipy"} & set(loaded)
