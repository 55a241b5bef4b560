"""`edgesmith run` finishes, is cached, is the same to the byte, and survives kills and company."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.artifact import open_artifact
from tests.e2e.conftest import Project

pytestmark = pytest.mark.slow
Released = Callable[[Path], Project]
NUM_KILLS = int(os.environ.get("EDGESMITH_KILLS", "15"))


def test_second_run_is_answered_from_the_store(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    before = project.manifests()
    done = project.run("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "PASS"
    assert all(step["cached"] for step in result["steps"])
    assert project.manifests() == before
    plan = json.loads(project.edgesmith("plan", "recipe.yaml", "--json").stdout)
    assert {step["state"] for step in plan["steps"]} == {"cached"}


def test_a_new_store_gives_the_same_manifest_bytes(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    before = project.manifests()
    done = project.run("--store", "other")
    assert done.returncode == 0, done.stderr
    assert project.manifests() == before


def test_a_changed_row_is_a_changed_measurement_but_not_a_changed_merge(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    rows = (project.folder / "test.jsonl").read_text().splitlines()
    (project.folder / "test.jsonl").write_text("\n".join(rows[1:]) + "\n")
    plan = json.loads(project.edgesmith("plan", "recipe.yaml", "--json").stdout)
    states = {step["name"]: step["state"] for step in plan["steps"]}
    assert states["merge"] == "cached"
    assert states["merge: verify"] == "to do"


def test_killed_at_random_moments_the_next_run_finishes_with_the_same_bytes(
    released: Released, project: Project, tmp_path: Path
) -> None:
    expected = released(tmp_path / "reference").manifests()
    chance = random.Random(7)
    killed = 0
    for _ in range(NUM_KILLS):
        process = project.start("run", "recipe.yaml", "--out", "out")
        time.sleep(chance.uniform(0.1, 5))  # no import of torch comes first
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for entry in project.store.glob("entries/*"):
            open_artifact(entry)
    assert killed > NUM_KILLS / 3
    done = project.run()
    assert done.returncode == 0, done.stderr
    assert project.manifests() == expected
    assert not list(project.store.glob("work/*"))
    assert not list(project.out.glob(".*.tmp"))


def test_two_runs_at_once_both_succeed_with_one_result(released: Released, project: Project, tmp_path: Path) -> None:
    expected = released(tmp_path / "reference").manifests()
    both = [project.start("run", "recipe.yaml", "--out", "out") for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert project.manifests() == expected
    assert len(list(project.store.glob("entries/*"))) == len(list(released(tmp_path / "again").store.glob("entries/*")))


def test_static_quantization_runs_from_the_same_recipe(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    done = project.run("--set", "targets.server.quantize.method=static-int8", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    states = {step["name"]: step["cached"] for step in result["steps"]}
    assert states["server: export"] is True
    assert states["server: quantize"] is False


@pytest.mark.parametrize(
    ("setting", "verdict", "code"),
    [
        ("gates.size.max_mb=0.1", "FAIL", 1),
        ("gates.accuracy.max_drop=0.01", "INCONCLUSIVE", 3),
        ("gates.speed.min_speedup=100", "FAIL", 1),
    ],
)
def test_verdict_decides_the_exit_code(
    released: Released, tmp_path: Path, setting: str, verdict: str, code: int
) -> None:
    project = released(tmp_path)
    done = project.run("--set", setting, "--json", "--junit", "verdicts.xml", "--summary", "verdicts.md")
    assert json.loads(done.stdout)["verdict"] == verdict
    assert done.returncode == code
    assert (project.folder / "verdicts.xml").read_text().startswith("<?xml")
    assert verdict in (project.folder / "verdicts.md").read_text()


def test_gate_judges_the_saved_evidence_alone(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    done = project.edgesmith("gate", "out/server", "--gates", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "PASS"
    (project.folder / "gates.yaml").write_text("gates:\n  size: {max_mb: 0.1}\n")
    assert project.edgesmith("gate", "out/server", "--gates", "gates.yaml").returncode == 1
    (project.folder / "gates.yaml").write_text("latency: {max_ms: 10000, percentile: 99.999}\n")
    done = project.edgesmith("gate", "out/server", "--gates", "gates.yaml")
    assert done.returncode == 3, done.stdout + done.stderr


def test_targets_that_share_a_baseline_are_each_judged(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    done = project.run("--set", "targets.fp32={format: onnx}", "--set", "gates.size.max_mb=20")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("server", "fp32"):
        (project.folder / "gates.yaml").write_text("size: {max_mb: 20}\naccuracy: {max_drop: 0.9}\n")
        done = project.edgesmith("gate", f"out/{name}", "--gates", "gates.yaml")
        assert done.returncode == 0, (name, done.stdout + done.stderr)


def test_gates_that_compare_a_target_with_itself_are_no_pass(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    done = project.run("--set", "targets={fp32: {format: onnx}}")  # its one gate is a reduction of size
    assert done.returncode == 3, done.stdout + done.stderr
    assert "fp32: is its own baseline" in done.stderr


def test_times_are_taken_anew_when_asked(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    result = json.loads(project.run("--remeasure", "--json").stdout)
    anew = {step["name"] for step in result["steps"] if not step["cached"]}
    assert anew == {"server: bench", "server: bench baseline", "server: compare speed"}


def test_every_delivered_thing_opens_and_answers(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    assert project.edgesmith("check", "out/server").returncode == 0
    answer = json.loads(project.edgesmith("predict", "out/server", "Shares fell again.", "--json").stdout)
    assert answer["predictions"][0]["label"] in ("business", "entertainment", "politics", "sports", "tech")
    facts = json.loads(project.edgesmith("inspect", "out/server", "--json").stdout)
    assert facts["precision"] == "int8"
    assert facts["parents"][0].startswith("source sha256:")
    report = (project.out / "report.md").read_text()
    assert "PASS" in report
    for evidence in (project.out / "evidence").glob("*/*/manifest.json"):
        assert open_artifact(evidence.parent).kind == "evidence"


def test_each_step_on_its_own_gives_the_artifact_of_the_recipe(released: Released, tmp_path: Path) -> None:
    project = released(tmp_path)
    steps = [
        ("merge", "--base", "base", "--adapter", "adapter", "-o", "merged", "--data", "test.jsonl"),
        ("export", "merged", "-o", "fp32", "--data", "test.jsonl"),
        ("quantize", "fp32", "-o", "int8", "--against", "merged", "--data", "test.jsonl"),
        ("verify", "int8", "--against", "merged", "--data", "test.jsonl"),
        ("eval", "int8", "--data", "test.jsonl", "-o", "evidence/int8"),
        ("eval", "fp32", "--data", "test.jsonl", "-o", "evidence/fp32"),
        ("bench", "int8", "--against", "fp32", "-o", "evidence/duet"),
        ("bench", "int8", "--requests", "20", "--data", "test.jsonl", "-o", "evidence/bench"),
    ]
    for step in steps:
        done = project.edgesmith(*step, "--json")
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    model = (project.folder / "int8" / "model.onnx").read_bytes()
    assert model == (project.out / "server" / "model.onnx").read_bytes()
    (project.folder / "gates.yaml").write_text("accuracy: {max_drop: 0.9}\nsize: {min_reduction: 2}\n")
    done = project.edgesmith("gate", "int8", "--gates", "gates.yaml", "--against", "fp32", "--evidence", "evidence")
    assert done.returncode == 0, done.stdout + done.stderr


def test_init_writes_a_recipe_that_plans(project: Project) -> None:
    project.recipe.unlink()
    done = project.edgesmith("init", "base", "--adapter", "adapter", "--data", "test.jsonl")
    assert done.returncode == 0, done.stderr
    done = project.edgesmith("plan", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "merge" in done.stdout
    assert project.edgesmith("init", "base").returncode == 2  # never overwrites
