"""A release tells what every step on its checkpoint did, from what the steps themselves wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.report import to_html, to_markdown
from edgesmith import api
from edgesmith.api.distill import distill
from edgesmith.api.prune import prune
from edgesmith.api.vocabulary import trim_vocabulary
from edgesmith.artifact import Artifact, Parent, open_artifact, read_artifact, write_artifact
from edgesmith.cli.look import inspect
from edgesmith.lineage import trace_lineage, trace_steps
from edgesmith.pipeline import Made, TargetResult
from edgesmith.pipeline.checkpoints import Checkpoints
from edgesmith.recipe import DistillOptions, PruneOptions
from edgesmith.release_table import steps_table
from edgesmith.releases import ReleaseIndex, read_index
from edgesmith.reports import build_report
from edgesmith.step_facts import read_facts
from edgesmith.tasks import sample_texts
from tests.compress.merge_models import quiet
from tests.export.generators import save_generator


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, ...]:
    """Checkpoint, trimmed, pruned, distilled: each made by the step itself."""
    folder = tmp_path_factory.mktemp("lineage")
    rows = folder / "text.txt"
    rows.write_text("\n".join(sample_texts()[:60]))
    base = open_artifact(save_generator(folder / "base", vocab_size=320), kinds=("checkpoint",))
    with quiet():
        trimmed, _ = trim_vocabulary(base.path, corpus=rows, out=folder / "trimmed")
        structured = PruneOptions(num_layers=1, keep={"ffn": 0.5}, importance="magnitude")
        pruned, _ = prune(trimmed.path, out=folder / "pruned", options=structured, data=rows)
        training = DistillOptions.model_validate({"train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}})
        student, _ = distill(
            trimmed.path,
            data=rows,
            out=folder / "student",
            options=training,
            student=pruned.path,
            workplace=folder / "work",
        )
    return base, trimmed, pruned, student


def test_every_step_says_what_it_did_and_how_large_it_left_the_model(chain: tuple[Artifact, ...]) -> None:
    given, trimmed, pruned, student = trace_steps(chain)
    assert [step.name for step in trace_steps(chain)] == ["found", "trim-vocabulary", "prune", "distill"]
    vocabulary, structure, training = (
        json.loads((one.path / name).read_text())
        for one, name in zip(chain[1:], ("vocabulary.json", "pruning.json", "training.json"), strict=True)
    )
    assert (given.num_parameters, given.weights_bytes) == (
        vocabulary["num_parameters_before"],
        vocabulary["weights_bytes_before"],
    )
    assert f"→ {vocabulary['num_tokens_after']:,} tokens" in trimmed.summary
    assert (trimmed.num_parameters, trimmed.macs) == (structure["params_before"], structure["macs_before"])
    assert pruned.summary.startswith("layers 2 → 1, ffn 48 → 24 (by magnitude)")
    assert pruned.num_parameters == structure["params_after"] == training["num_parameters"] == student.num_parameters
    assert given.macs is None
    assert pruned.macs == structure["macs_after"] == student.macs  # training changes no shape
    assert student.macs_of.endswith(" tokens")
    assert f"held-out windows of text {training['first_metric']:.4g} → {training['best_metric']:.4g}" in student.summary


def test_the_curve_has_every_evaluation_and_the_losses_between(chain: tuple[Artifact, ...]) -> None:
    curve = trace_steps(chain)[-1].curve
    training = json.loads((chain[-1].path / "training.json").read_text())
    assert curve is not None
    evaluated = [entry for entry in training["history"] if "metric" in entry]
    assert curve.metric_updates == tuple(entry["update"] for entry in evaluated)
    assert curve.metric_values == pytest.approx([entry["metric"] for entry in evaluated], rel=1e-4)
    assert set(curve.losses) == {"loss", "soft"}
    assert curve.updates == tuple(range(1, training["num_updates"] + 1))


def copied(of: Artifact, folder: Path, changes: Mapping[str, Any]) -> Artifact:
    """The artifact with other facts."""
    shutil.copytree(of.path, folder)
    path = folder / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "manifest.json").unlink()
    parents = [Parent(role=one.role, digest=one.digest) for one in of.manifest.parents]
    return write_artifact(folder, kind="checkpoint", step=of.manifest.step, parents=parents)


def test_a_long_curve_is_thinned_but_keeps_every_evaluation(chain: tuple[Artifact, ...], tmp_path: Path) -> None:
    history = [
        {"update": update, "loss": 1 / update, "soft": 0.5, **({"metric": update / 1e4} if update % 50 == 0 else {})}
        for update in range(1, 1001)
    ]
    history.insert(0, {"update": 0, "epoch": 0.0, "metric": 0.0})
    history[7]["loss"] = float("nan")
    facts, _ = read_facts(copied(chain[-1], tmp_path / "long", {"history": history}))
    assert facts is not None
    curve = facts.curve
    assert curve is not None
    assert len(curve.updates) == len(curve.losses["soft"]) == 200
    assert (curve.updates[0], curve.updates[-1]) == (1, 1000)
    assert list(curve.updates) == sorted(set(curve.updates))
    assert 7 not in curve.updates
    assert curve.metric_updates == tuple(range(0, 1001, 50))
    assert set(range(50, 1001, 50)) <= set(curve.updates)


def test_facts_of_another_version_are_left_out_and_sizes_counted(chain: tuple[Artifact, ...], tmp_path: Path) -> None:
    other = copied(chain[-1], tmp_path / "other", {"best_metric": "very good"})
    [step] = trace_steps([other])
    assert (step.summary, step.curve) == ("", None)
    assert step.num_parameters == trace_steps(chain)[-1].num_parameters


def test_zeros_are_counted_and_change_no_size(chain: tuple[Artifact, ...], tmp_path: Path) -> None:
    with quiet():
        sparse, _ = prune(chain[0].path, out=tmp_path / "out", options=PruneOptions(method="magnitude", sparsity=0.5))
    given, pruned = trace_steps([chain[0], sparse])
    facts = json.loads((sparse.path / "pruning.json").read_text())
    assert pruned.summary.startswith(f"magnitude, sparsity 0.5: {facts['num_zeros'] / 1e3:.1f} k of")
    assert f"({100 * facts['model_sparsity']:.1f} %)" in pruned.summary
    assert (given.num_parameters, given.macs) == (pruned.num_parameters, None)


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0], "the adapter folded into the base"), ([1.0, 0.5], "2 adapters folded into the base, weights 1, 0.5")],
)
def test_a_merge_says_what_was_folded_in(
    chain: tuple[Artifact, ...], tmp_path: Path, weights: list[float], said: str
) -> None:
    shutil.copytree(chain[0].path, tmp_path / "merged")
    options: dict[str, Any] = {"weights": weights, "dequantize": False}
    [step] = trace_steps([write_artifact(tmp_path / "merged", kind="checkpoint", step="merge", options=options)])
    assert step.summary == said
    assert step.num_parameters == trace_steps(chain)[0].num_parameters


def test_a_checkpoint_without_steps_has_nothing_to_tell(chain: tuple[Artifact, ...]) -> None:
    assert trace_steps(chain[:1]) == ()
    assert trace_steps([]) == ()


def test_an_index_keeps_the_steps_and_an_older_one_has_none(chain: tuple[Artifact, ...], tmp_path: Path) -> None:
    index = ReleaseIndex(name="small", command="edgesmith run", steps=trace_steps(chain), targets={})
    index.save(tmp_path)
    assert read_index(tmp_path) == index
    report = build_report(tmp_path, ())
    assert json.loads(json.dumps(report.to_json()))["steps"][-1]["curve"]["losses"]["soft"]
    for text in (to_html(report), to_markdown(report)):
        assert "How the model was made" in text
        assert "layers 2 → 1" in text
    older = '{"name": "small", "command": "edgesmith run", "targets": {}}'
    (tmp_path / "release.json").write_text(older)
    assert read_index(tmp_path).steps == ()
    assert "How the model was made" not in to_markdown(build_report(tmp_path, ()))


def test_the_line_of_an_artifact_names_what_each_step_did(chain: tuple[Artifact, ...]) -> None:
    base, trimmed, _, student = chain
    checkpoints = Checkpoints(original=base, teacher=trimmed, final=student, chain=chain)
    target = TargetResult(name="phone", artifact=student, unquantized=None, baseline=base, previous=None, evidence={})
    steps = trace_steps(chain)
    line = trace_lineage(Made(checkpoints=checkpoints, targets=(target,)), target, steps)
    assert [one.role for one in line[:3]] == ["phone", "student", "checkpoint"]
    assert {one.digest: one.summary for one in line[:4]} == {step.digest: step.summary for step in steps}


def test_the_table_of_a_run_has_sizes_before_and_after(chain: tuple[Artifact, ...]) -> None:
    steps = trace_steps(chain)
    head, rows = steps_table(steps)
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    assert steps[0].num_parameters > steps[1].num_parameters > steps[2].num_parameters
    assert cells[0]["parameters"] == f"{steps[0].num_parameters:,}"
    assert cells[1]["parameters"] == f"{steps[0].num_parameters:,} → {steps[1].num_parameters:,}"
    assert " → " in cells[2]["weights"]
    assert cells[3]["parameters"] == f"{steps[3].num_parameters:,}"  # training changes none
    assert steps_table(())[1] == []


def test_inspect_shows_what_the_step_wrote(chain: tuple[Artifact, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for artifact, wanted in zip(chain[1:], ("num_tokens_after", "output_change", "best_update"), strict=True):
        found = api.inspect(artifact.path)
        assert found["summary"] == trace_steps([artifact])[0].summary
        assert wanted in found["facts"]
        inspect(artifact.path)
        shown = capsys.readouterr().out
        assert wanted in shown
        assert found["summary"] in shown
    assert "evaluations" in shown
    assert "facts" not in api.inspect(chain[0].path)
    assert read_artifact(chain[1].path).digest == chain[1].digest
