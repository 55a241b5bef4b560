"""The workflows in examples/ci: their scripts run here as a build server would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Project

CI = Path(__file__).parents[2] / "examples" / "ci"
BIN = Path(sys.executable).parent


def script_of(name: str) -> str:
    """What the workflow's gate step runs."""
    workflow = yaml.safe_load((CI / name).read_text())
    if "jobs" in workflow:
        [step] = [one for one in workflow["jobs"]["gate"]["steps"] if one.get("id") == "gate"]
        return str(step["run"])
    return "\n".join(workflow["release-gate"]["script"])


@pytest.fixture
def project(released: Callable[[Path], Project], tmp_path: Path) -> Project:
    """Nothing is released, and the store is there, as a build server keeps it from build to build."""
    project = released(tmp_path)
    shutil.rmtree(project.out)
    return project


def run_job(project: Project, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CI / "release-gate.sh", project.folder)
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=project.folder,
        env={**project.environment, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_github_job_judges_the_first_release_and_the_next_against_it(project: Project) -> None:
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(project.folder / "step.md")}
    first = run_job(project, script_of("github-actions.yml"), **environment)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "no earlier release" in first.stdout
    (project.folder / "release").rename(project.folder / "previous")
    recipe = project.recipe.read_text()
    project.recipe.write_text(recipe + "  regression: {max_growth: 0.01, max_drop: 0.2}\n")
    second = run_job(project, script_of("github-actions.yml"), **environment)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "regression" in second.stdout
    suites = ElementTree.parse(project.folder / "verdicts.xml").getroot()
    assert int(suites.attrib["tests"]) >= 2
    assert (project.folder / "step.md").read_text().count("###") >= 2  # both runs added to it
    assert "PASS" in (project.folder / "comment.md").read_text()


@pytest.mark.slow
def test_gitlab_job_fails_where_a_gate_fails_and_keeps_the_old_release(project: Project) -> None:
    project.recipe.write_text(project.recipe.read_text().replace("min_reduction: 2", "min_reduction: 50"))
    branch = {"CI_COMMIT_BRANCH": "main", "CI_DEFAULT_BRANCH": "main"}
    failed = run_job(project, script_of("gitlab-ci.yml"), **branch)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert not (project.folder / "previous").exists()
    failures = ElementTree.parse(project.folder / "verdicts.xml").findall(".//failure")
    assert "50×" in failures[0].attrib["message"]
    project.recipe.write_text(project.recipe.read_text().replace("min_reduction: 50", "min_reduction: 2"))
    passed = run_job(project, script_of("gitlab-ci.yml"), **branch)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert (project.folder / "previous" / "release.json").is_file()
