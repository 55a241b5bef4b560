"""Bundles are whole: they serve with their own files and the libraries of their lock file, and nothing else."""

from __future__ import annotations

import json
import sys
import tarfile
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest

from edgesmith import api
from edgesmith.bundle import write_bundle
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.thin_runtime import runtime_files, runtime_libraries
from tests.serve.served import serving


def link_libraries(lock: Path, folder: Path) -> None:
    """Make a folder that holds the lock file's libraries and no other."""
    folder.mkdir()
    for line in lock.read_text().split():
        name, _, version = line.partition("==")
        found = metadata.distribution(name)
        assert found.version == version
        for file in found.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))


def test_a_bundle_serves_where_nothing_but_its_lock_file_is_installed(classifier_path: Path, tmp_path: Path):
    made = write_bundle({"news": classifier_path}, tmp_path / "box")
    link_libraries(made.path / "requirements.lock", tmp_path / "libraries")
    command = [sys.executable, "-S", "-m", "serve"]  # -S: no site-packages
    with serving(
        tmp_path / "run", command=command, cwd=str(made.path), PYTHONPATH=str(tmp_path / "libraries")
    ) as server:
        request = urllib.request.Request(
            server.url + "/predict/news", data=b"Shares fell.", headers={"content-type": "text/plain"}
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=10).read())
    assert answer["predictions"][0]["label"]


def test_the_runtime_is_all_of_serve_and_of_edgesmith_only_what_that_imports():
    names = set(runtime_files())
    assert {"serve/__main__.py", "serve/page/index.html", "edgesmith/tasks/sample_texts.txt"} <= names
    assert "edgesmith/artifact.py" in names
    assert not [name for name in names if name.startswith(("edgesmith/cli", "edgesmith/api", "edgesmith/stages"))]


def test_no_library_of_training_or_of_the_hub_is_locked():
    names = {line.split("==")[0] for line in runtime_libraries(["onnx"])}
    assert {"onnxruntime", "tokenizers", "numpy"} <= names
    assert not names & {"torch", "transformers", "huggingface-hub", "typer", "rich", "sympy"}


def test_an_archive_is_the_same_bytes_each_time_and_unpacks_to_the_folder(classifier_path: Path, tmp_path: Path):
    one = write_bundle({"news": classifier_path}, tmp_path / "box.tar.gz")
    other = write_bundle({"news": classifier_path}, tmp_path / "again" / "box.tar.gz")
    assert one.sha256 == other.sha256
    with tarfile.open(one.path) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    folder = write_bundle({"news": classifier_path}, tmp_path / "folder")
    files = {path.relative_to(folder.path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    root = tmp_path / "out" / "box"
    assert files == {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_parts_of_the_size_add_up(classifier_path: Path, tmp_path: Path):
    made = write_bundle({"news:2": classifier_path}, tmp_path / "box", with_runtime=False)
    assert made.runtime_bytes == made.wheel_bytes == 0
    index = made.path / "bundle.json"
    manifest = made.path / "models" / "news" / "2" / "manifest.json"
    assert made.size_bytes == made.model_bytes + index.stat().st_size + manifest.stat().st_size


def test_something_else_is_not_overwritten(classifier_path: Path, tmp_path: Path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already and is no bundle"):
        write_bundle({"news": classifier_path}, tmp_path)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_checkpoint_is_no_artifact_to_bundle(minilm_folder: Path, tmp_path: Path):
    with pytest.raises(UnsupportedError, match="of kind 'checkpoint'"):
        write_bundle({"m": minilm_folder}, tmp_path / "box")
    assert not (tmp_path / "box").exists()


def test_one_version_given_twice_is_refused(classifier_path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="news:1 is given twice"):
        api.bundle([f"news={classifier_path}", f"news:1={classifier_path}"], out=tmp_path / "box")


def test_wheels_without_a_runtime_mean_nothing(classifier_path: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="wheels belong to the runtime"):
        api.bundle([f"news={classifier_path}"], out=tmp_path / "box", wheels=True)
