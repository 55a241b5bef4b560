"""A release on disk: judged by its own evidence, compared with an earlier one, reported again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Project

pytestmark = pytest.mark.slow
Released = Callable[[Path], Project]


def parts(project: Project) -> set[str]:
    return {path.name for path in (project.out / "evidence" / "server").iterdir()}


def test_report_is_written_anew_from_disk_with_the_same_bytes(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    before = (project.out / "report.html").read_bytes()
    (project.out / "report.html").unlink()
    done = project.edgesmith("report", "out")
    assert done.returncode == 0, done.stderr
    assert (project.out / "report.html").read_bytes() == before
    as_json = json.loads(project.edgesmith("report", "out", "--json").stdout)
    assert as_json["verdict"] == "PASS"
    assert "## " in project.edgesmith("report", "out", "--markdown").stdout


def test_report_of_no_release_says_so(project: Project) -> None:
    (project.folder / "empty").mkdir()
    done = project.edgesmith("report", "empty")
    assert done.returncode == 2
    assert "holds no release" in done.stderr


def test_an_unchanged_artifact_is_no_regression_and_is_not_timed_again(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    shutil.copytree(project.out, project.folder / "previous")
    project.recipe.write_text(project.recipe.read_text() + "  regression: {max_slowdown: 0.01, max_drop: 0.01}\n")
    done = project.run("--against", "previous")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "regression" in done.stdout
    assert "previous-compare" not in parts(project)


def test_evidence_that_a_run_no_longer_makes_goes_and_the_users_stays(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    mine = project.out / "evidence" / "server" / "mine"
    shutil.copytree(project.out / "evidence" / "server" / "footprint", mine)
    done = project.run("--set", "measure.scenarios=[offline]")
    assert done.returncode == 0, done.stderr
    assert "bench-offline" in parts(project)
    assert project.run().returncode == 0
    assert "bench-offline" not in parts(project)
    assert "mine" in parts(project)


def test_a_missing_note_of_the_baseline_is_an_error_and_no_verdict(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    shutil.rmtree(project.out / "evidence" / "server" / "baseline")
    done = project.edgesmith("report", "out")
    assert done.returncode == 2
    assert "baseline" in done.stderr
    itself = project.edgesmith("gate", "out/server", "--gates", "recipe.yaml", "--against", "out/server")
    assert itself.returncode == 2
    assert "the very artifact" in itself.stderr


def test_release_names_lead_nowhere_else(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    index = json.loads((project.out / "release.json").read_text())
    index["targets"]["../../secret"] = index["targets"].pop("server")
    (project.out / "release.json").write_text(json.dumps(index))
    done = project.edgesmith("report", "out")
    assert done.returncode == 4
    assert "release.json" in done.stderr
