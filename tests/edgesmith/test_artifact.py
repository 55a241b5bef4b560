"""An artifact is exactly what its manifest says, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesmith.artifact import Artifact, Manifest, open_artifact, write_artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "artifact"
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model" * 100)
    (folder / "golden" / "golden.json").write_text("{}")
    return write_artifact(folder, kind="onnx", step="export", task="text-classification", precision="fp32")


def test_open_gives_what_was_written(artifact: Artifact) -> None:
    opened = open_artifact(artifact.path)
    assert opened.manifest == artifact.manifest
    assert opened.model_bytes == 500
    assert opened.size_bytes == 502


def test_manifest_is_the_same_bytes_again(artifact: Artifact) -> None:
    first = (artifact.path / "manifest.json").read_bytes()
    write_artifact(artifact.path, kind="onnx", step="export", task="text-classification", precision="fp32")
    assert (artifact.path / "manifest.json").read_bytes() == first


def test_digest_depends_on_content_and_origin(artifact: Artifact) -> None:
    other = artifact.manifest.model_copy(update={"options": {"opset": 20}})
    assert other.digest != artifact.digest
    assert Manifest.model_validate_json(artifact.manifest.model_dump_json()).digest == artifact.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "model.onnx").write_bytes(b"Model" * 100), r"model\.onnx: was altered"),
        (lambda path: (path / "model.onnx").write_bytes(b"model"), "has 5 bytes, but the manifest says 500"),
        (lambda path: (path / "model.onnx").unlink(), "is missing"),
        (lambda path: (path / "extra.txt").write_text("x"), "was added"),
        (lambda path: (path / "manifest.json").write_text("{"), "is damaged"),
        (lambda path: (path / "manifest.json").write_text('{"schema_version": 2}'), "schema_version"),
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "is a link"),
    ],
)
def test_altered_artifact_is_refused(artifact: Artifact, change: object, message: str) -> None:
    change(artifact.path)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        open_artifact(artifact.path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "./a", "a//b", "."])
def test_manifest_cannot_name_a_file_outside(artifact: Artifact, name: str) -> None:
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["files"][0]["path"] = name
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is damaged at files"):
        open_artifact(artifact.path)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_byte_of_the_manifest_is_found_or_harmless(artifact: Artifact, data: st.DataObject) -> None:
    path = artifact.path / "manifest.json"
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    altered = bytearray(original)
    altered[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(altered)
    try:
        opened = open_artifact(artifact.path)
    except ArtifactError:
        return
    finally:
        path.write_bytes(original)
    # White space and letters inside free texts may change: then the digest says so, or nothing was said.
    assert opened.digest != artifact.digest or opened.manifest == artifact.manifest


def test_wrong_kind_is_refused(artifact: Artifact) -> None:
    with pytest.raises(UnsupportedError, match="of kind 'onnx', but this needs 'checkpoint'"):
        open_artifact(artifact.path, kinds=("checkpoint",))


def test_bare_onnx_file_and_hugging_face_folder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "found.onnx").write_bytes(b"onnx")
    assert open_artifact(tmp_path / "found.onnx").kind == "onnx"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    assert open_artifact(tmp_path / "hf").kind == "checkpoint"


def test_nothing_there_and_no_artifact_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_artifact(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is no artifact"):
        open_artifact(tmp_path)
