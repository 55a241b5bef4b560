"""What is delivered of a language model's targets: with its verdict, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gates.verdict import Outcome
from bench.language.evaluation import LanguageEvaluation
from edgesmith.artifact import Artifact, Parent, write_artifact
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.pipeline import Made, TargetResult
from edgesmith.pipeline.checkpoints import Checkpoints
from edgesmith.recipe import Recipe, load_recipe
from edgesmith.release import USUAL_LANGUAGE_REGRESSION, _deliver_release

RECIPE = """\
version: 1
name: novel
task: text-generation
model: {base: base}
data: {eval: held_out.txt}
targets:
  phone: {format: gguf}
gates: {perplexity: {max_ratio: 1.1}, regression: {max_growth: 0.5, max_perplexity_ratio: 1.01}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.yaml", ())


def model(folder: Path, content: bytes) -> Artifact:
    folder.mkdir()
    (folder / "model.gguf").write_bytes(content)
    return write_artifact(folder, kind="gguf", step="gguf-export", task="text-generation", precision="f16")


def predictions(of: Artifact, checkpoint: Artifact, *, ratio: float = 1.0) -> LanguageEvaluation:
    rng = np.random.default_rng(0)
    before = rng.exponential(3.0, (20, 31)).astype(np.float32)
    return LanguageEvaluation(
        engine="llama.cpp",
        artifact_digest=of.digest,
        windows_digest="sha256:windows",
        window_length=64,
        bos=None,
        num_vocabulary=100,
        num_excluded=0,
        nll=before + np.float32(np.log(ratio)),
        reference_nll=before,
        kld=np.full_like(before, 1e-3),
        same_top=np.ones_like(before, dtype=bool),
        reference_engine="torch",
        reference_artifact=checkpoint.digest,
        reference_digest="sha256:reference",
    )


def sealed(folder: Path, language: LanguageEvaluation, of: Artifact) -> Artifact:
    folder.mkdir()
    language.save(folder)
    return write_artifact(folder, kind="evidence", step="language", parents=[Parent(role="artifact", digest=of.digest)])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Bench:
    """Artifacts of two versions beside their checkpoint, and what was measured of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.out.mkdir()
        self.checkpoint = model(folder / "checkpoint", b"0" * 400)
        self.before, self.now = model(folder / "before", b"1" * 200), model(folder / "now", b"2" * 200)

    def made(self, ratio: float = 1.0, **changes: object) -> Made:
        """With an artifact of that perplexity, and its earlier release's measurement changed so."""
        theirs = replace(predictions(self.before, self.checkpoint), **changes)  # type: ignore[arg-type]
        number = len(list(self.folder.iterdir()))
        ours = predictions(self.now, self.checkpoint, ratio=ratio)
        evidence: dict[str, Artifact | None] = {
            "language": sealed(self.folder / f"{number}a", ours, self.now),
            "previous-language": sealed(self.folder / f"{number}b", theirs, self.before),
        }
        target = TargetResult(
            name="phone",
            artifact=self.now,
            unquantized=self.now,
            baseline=self.checkpoint,
            previous=self.before,
            evidence=evidence,
        )
        same = self.checkpoint
        checkpoints = Checkpoints(original=same, teacher=same, final=same, chain=(same,))
        return Made(checkpoints=checkpoints, targets=(target,))


@pytest.mark.parametrize(("ratio", "outcome"), [(1.0, Outcome.PASS), (1.02, Outcome.FAIL)])
def test_predictions_are_judged_against_those_of_the_earlier_release(
    tmp_path: Path, recipe: Recipe, ratio: float, outcome: Outcome
) -> None:
    bench = Bench(tmp_path)
    [target] = _deliver_release(recipe, bench.made(ratio), "edgesmith run", bench.out)
    verdicts = {one.gate: one for one in target.verdicts}
    assert verdicts["regression.max_perplexity_ratio"].verdict is outcome
    assert "that of the previous release" in verdicts["regression.max_perplexity_ratio"].reason
    assert verdicts["perplexity"].verdict is Outcome.PASS
    assert (bench.out / "phone" / "model.gguf").read_bytes() == b"2" * 200


def test_what_cannot_be_judged_leaves_the_folder_as_it_was(tmp_path: Path, recipe: Recipe) -> None:
    bench = Bench(tmp_path)
    others = bench.made(windows_digest="sha256:others")
    with pytest.raises(UsageError, match="the perplexities cannot be compared"):
        _deliver_release(recipe, others, "edgesmith run", bench.out)
    assert tree(bench.out) == {}
    _deliver_release(recipe, bench.made(), "edgesmith run", bench.out)
    delivered = tree(bench.out)
    with pytest.raises(UsageError, match="the perplexities cannot be compared"):
        _deliver_release(recipe, others, "edgesmith run", bench.out)
    assert tree(bench.out) == delivered


def test_a_users_own_evidence_is_judged_ahead_and_what_a_run_replaces_is_not(tmp_path: Path, recipe: Recipe) -> None:
    bench = Bench(tmp_path)
    _deliver_release(recipe, bench.made(), "edgesmith run", bench.out)
    evidence = bench.out / "evidence" / "phone"
    (evidence / "language" / "language.json").write_text("{}")  # damaged, and written anew
    [target] = _deliver_release(recipe, bench.made(), "edgesmith run", bench.out)
    assert {one.verdict for one in target.verdicts} == {Outcome.PASS}
    sealed(evidence / "mine", predictions(bench.now, bench.checkpoint, ratio=1.05), bench.now)
    before = tree(bench.out)
    with pytest.raises(UsageError, match="holds 2 measurements of a language model on texts"):
        _deliver_release(recipe, bench.made(), "edgesmith run", bench.out)
    assert tree(bench.out) == before


def test_a_model_held_against_itself_is_not_delivered(tmp_path: Path, recipe: Recipe) -> None:
    bench = Bench(tmp_path)
    bench.checkpoint, checkpoint = bench.now, bench.checkpoint
    itself = bench.made()
    itself = replace(itself, targets=(replace(itself.targets[0], baseline=checkpoint),))
    with pytest.raises(ArtifactError, match="held against the artifact itself, but the baseline is"):
        _deliver_release(recipe, itself, "edgesmith run", bench.out)
    assert tree(bench.out) == {}


def test_the_usual_regression_limits_what_a_language_model_has() -> None:
    usual = USUAL_LANGUAGE_REGRESSION.model_dump(exclude_unset=True)
    assert json.loads(json.dumps(usual)) == {"max_growth": 0.05, "max_perplexity_ratio": 1.01}
