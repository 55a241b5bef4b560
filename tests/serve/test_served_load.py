"""Loads on an artifact behind our own server, and what artifacts keep to notice drift by."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from edgesmith import api
from edgesmith.artifact import open_artifact
from edgesmith.errors import ServerError, UsageError
from edgesmith.pipeline.graphs import GraphWalk
from edgesmith.progress import SILENT
from edgesmith.recipe import Recipe
from edgesmith.stages.rows import Rows
from edgesmith.stages.served import served
from edgesmith.stages.side_files import add_reference
from edgesmith.store import Store
from edgesmith.tasks import load_task
from edgesmith.tasks.base import sample_texts
from edgesmith.walkers import Planner
from serve.drift.reference import read_reference
from tests.serve.models_built import write


def test_an_artifact_is_served_loaded_and_judged_by_one_command(classifier_path: Path, tmp_path: Path):
    test = api.load(str(classifier_path), rate=30, duration=2, limit_ms=5000, percentile=50, out=tmp_path / "load")
    assert test.result.num_failed == 0
    assert test.verdicts[0].verdict.value in ("PASS", "INCONCLUSIVE")  # a busy machine may send late
    assert "`edgesmith serve` with this artifact" in test.verdicts[0].reason
    evidence = open_artifact(tmp_path / "load")
    assert {parent.role: parent.digest for parent in evidence.manifest.parents}["artifact"] == (
        open_artifact(classifier_path).digest
    )


def test_an_artifact_and_the_flag_that_names_a_servers_exclude_each_other(classifier_path: Path):
    with pytest.raises(UsageError, match="is served for this test"):
        api.load(str(classifier_path), artifact=classifier_path)


def test_the_server_ends_with_the_test_even_when_that_fails(classifier_path: Path):
    before: set[int] = set()

    def fail_while_serving() -> None:
        with served(open_artifact(classifier_path)):
            before.update(_servers())
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fail_while_serving()
    assert before
    assert not before & _servers()


def _servers() -> set[int]:
    """Processes of ours that serve."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                status = (entry / "status").read_text()
            except OSError:
                continue
            if b"serve" in words and f"PPid:\t{os.getpid()}\n" in status and "\nState:\tZ" not in status:
                found.add(int(entry.name))
    return found


def test_a_server_that_cannot_start_says_why(classifier_path: Path, tmp_path: Path):
    artifact = open_artifact(shutil.copytree(classifier_path, tmp_path / "copy"))
    (artifact.path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ServerError, match=r"ended with code 4(.|\n)*model\.onnx"), served(artifact):
        pass


@pytest.mark.parametrize(("rate", "is_refused"), [(None, True), (20, False)])
def test_a_load_gate_needs_a_rate_to_be_run(tmp_path: Path, rate: float | None, is_refused: bool):
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "news",
            "task": "text-classification",
            "model": {"base": "base"},
            "data": {"eval": "rows.jsonl"},
            "targets": {"server": {"format": "onnx"}},
            "gates": {"latency": {"scenario": "load", "rate": rate, "percentile": 90, "max_ms": 100}},
        }
    )
    walk = GraphWalk(recipe=recipe, folder=tmp_path, walker=Planner(store=Store(tmp_path)), against=None)
    refused = pytest.raises(UsageError, match="scenario load needs a rate") if is_refused else nullcontext()
    with refused:
        walk.check_gates("server")


@pytest.mark.parametrize(("num_rows", "has_reference"), [(49, False), (200, True)])
def test_an_artifact_of_enough_rows_keeps_a_reference(
    classifier_path: Path, tmp_path: Path, num_rows: int, has_reference: bool
):
    folder = shutil.copytree(classifier_path, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json"))
    texts = sample_texts()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": texts[at % len(texts)] + f" {at}"}) + "\n" for at in range(num_rows)))
    add_reference(folder, task=load_task(folder), rows=Rows(path=rows), progress=SILENT)
    reference = read_reference(write(folder))
    assert (reference is not None) == has_reference
    if reference is not None:
        assert reference.num_rows == num_rows
