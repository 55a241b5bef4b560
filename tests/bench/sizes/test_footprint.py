from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bench.sizes.footprint import FOOTPRINT, Footprint, measure_footprint
from edgesmith.artifact import Artifact, open_artifact, write_artifact
from edgesmith.bundle import write_bundle
from edgesmith.errors import ArtifactError
from tests.bench.conftest import News

MIB = 1 << 20


def artifact_of(folder: Path, **contents: bytes) -> Artifact:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return write_artifact(folder, kind="onnx", step="test")


def test_the_download_is_the_bundle_of_the_artifact_alone(news: News, tmp_path: Path) -> None:
    footprint = measure_footprint(news.exact)
    made = write_bundle({"model": news.exact.path}, tmp_path / "model.tar.zst", with_runtime=False)
    assert footprint.download_bytes == made.path.stat().st_size
    assert footprint.total_bytes == sum(
        news.exact.file(entry.path).stat().st_size for entry in news.exact.manifest.files
    )
    assert footprint.model_bytes == (news.exact.path / "model.onnx").stat().st_size
    assert footprint.compression.startswith("zstd -9")


def test_repeats_across_files_cost_nothing_twice(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(200_000)
    one = measure_footprint(artifact_of(tmp_path / "one", model_onnx=noise))
    two = measure_footprint(artifact_of(tmp_path / "two", model_onnx=noise, other_bin=noise))
    assert two.download_bytes < 1.05 * one.download_bytes
    assert two.total_bytes == 2 * one.total_bytes


def test_memory_does_not_grow_with_the_artifact(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path / "big", model_onnx=np.random.default_rng(0).bytes(64 * MIB))
    tracemalloc.start()
    try:
        measure_footprint(artifact)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_single_file_has_a_footprint(news: News, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((news.exact.path / "model.onnx").read_bytes())
    footprint = measure_footprint(open_artifact(path))
    assert footprint.model_bytes == footprint.total_bytes == path.stat().st_size


def test_what_was_measured_reads_back_and_damage_is_refused(news: News, tmp_path: Path) -> None:
    footprint = measure_footprint(news.exact)
    footprint.save(tmp_path)
    assert Footprint.load(tmp_path) == footprint
    value = json.loads((tmp_path / FOOTPRINT).read_text())
    for broken in ({"download_bytes": -1}, {"model_bytes": "many"}, {"model_bytes": 10**12}):
        (tmp_path / FOOTPRINT).write_text(json.dumps(value | broken))
        with pytest.raises(ArtifactError, match=FOOTPRINT):
            Footprint.load(tmp_path)
