"""A recipe that trims, prunes and distills: judged against the whole model, and the same to the byte after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Project

pytestmark = pytest.mark.slow
Released = Callable[[Path], Project]

STEPS = [
    "merge",
    "trim-vocabulary",
    {"prune": {"num_layers": 1, "keep": {"ffn": 0.5}, "importance": "magnitude"}},
    {"distill": {"hard": 0.5, "train": {"epochs": 2, "batch_size": 4, "max_length": 32}}},
]


def write_recipe(project: Project) -> None:
    recipe = yaml.safe_load(project.recipe.read_text())
    recipe |= {"steps": STEPS, "gates": {"size": {"min_reduction": 8}}}
    recipe["data"]["train"] = "train.jsonl"
    project.recipe.write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def smaller(released: Released, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, object]]:
    """The small project, made smaller, with what `run --json` printed."""
    project = released(tmp_path_factory.mktemp("smaller"))
    write_recipe(project)
    done = project.run("--json")
    assert done.returncode == 0, done.stderr
    return project, json.loads(done.stdout)


def test_the_result_is_judged_against_the_whole_model(smaller: tuple[Project, dict[str, object]]) -> None:
    project, result = smaller
    [target] = result["targets"]  # type: ignore[attr-defined]
    [gate] = target["gates"]
    evidence = project.out / "evidence" / "server"
    whole = json.loads((evidence / "baseline-footprint" / "footprint.json").read_bytes())["model_bytes"]
    ours = json.loads((evidence / "footprint" / "footprint.json").read_bytes())["model_bytes"]
    assert gate["verdict"] == "PASS"
    assert whole > 30522 * 64 * 4, "the baseline has all of the vocabulary, in fp32"
    assert ours < whole / 8


def test_what_was_left_out_has_really_left(smaller: tuple[Project, dict[str, object]]) -> None:
    project, _ = smaller
    steps = {step["name"]: step for step in json.loads((project.out / "release.json").read_bytes())["steps"]}
    assert list(steps) == ["merge", "trim-vocabulary", "prune", "distill"]
    numbers = [step["num_parameters"] for step in steps.values()]
    assert numbers[0] > numbers[1] > numbers[2] == numbers[3]
    config = json.loads((project.out / "server" / "config.json").read_bytes())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (1, 64)
    assert steps["distill"]["curve"]["updates"], "the report can draw how it learnt"


def test_a_second_run_trains_nothing(smaller: tuple[Project, dict[str, object]]) -> None:
    project, _ = smaller
    done = project.run("--json")
    assert done.returncode == 0, done.stderr
    cached = {step["name"] for step in json.loads(done.stdout)["steps"] if step["cached"]}
    assert {"merge", "trim vocabulary", "prune", "distill", "server: export"} <= cached


def test_killed_while_it_trains_the_next_run_goes_on_and_ends_with_the_same_bytes(
    smaller: tuple[Project, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESMITH_SAVE_SECONDS", "0.001")
    reference, _ = smaller
    project = Project(tmp_path / "killed")
    shutil.copytree(reference.folder, project.folder)
    expected = project.manifests()
    for entry in (project.store / "entries").iterdir():  # as if it had never been distilled
        if json.loads((entry / "manifest.json").read_bytes())["step"] == "distill":
            shutil.rmtree(entry)
    shutil.rmtree(project.out)
    training = project.store / "training"
    process = project.start("run", "recipe.yaml", "--out", "out")
    deadline = time.monotonic() + 120
    while not list(training.glob("*/training/last")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = project.run()
    assert done.returncode == 0, done.stderr
    assert re.search(r"goes on after update \d+", done.stderr)
    assert project.manifests() == expected
    assert not list(training.glob("*/training")), "a finished training leaves nothing behind"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": ["merge", {"distill": {}}]}, "makes nothing smaller"),
        ({"steps": ["merge", {"prune": {"keep": {"ffn": 0.5}}}, "trim-vocabulary"]}, "the order is merge"),
        ({"steps": ["merge", {"prune": {"num_layers": 1}}, {"distill": {"num_layers": 1}}]}, "belongs to prune"),
        ({"data": {"eval": "test.jsonl"}, "steps": ["merge", {"distill": {"num_layers": 1}}]}, "needs data.train"),
        ({"data": {"eval": "test.jsonl", "train": "test.jsonl"}}, "holds the held-out rows"),
        ({"data": {"eval": "test.jsonl", "train": "none.jsonl"}}, "no such data file"),
        ({"steps": ["merge", {"prune": {"num_layers": 3}}]}, "3 of 2 layers"),
        ({"steps": ["merge", {"prune": {"keep": {"heads": 3}}}]}, "heads"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    released: Released, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    project = released(tmp_path)
    write_recipe(project)
    recipe = yaml.safe_load(project.recipe.read_text()) | change
    project.recipe.write_text(yaml.safe_dump(recipe))
    done = project.run("--out", "elsewhere")
    assert done.returncode in (2, 4), done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "elsewhere").exists() or not any((project.folder / "elsewhere").iterdir())
