"""A recipe's steps on the checkpoint: merge, trim the vocabulary, prune, distill, in the recipe's order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UsageError
from edgesmith.pipeline.needs import NUM_VERIFIED, needed
from edgesmith.recipe import (
    DistillOptions,
    DistillStep,
    MergeOptions,
    MergeStep,
    PruneOptions,
    PruneStep,
    TrimVocabularyOptions,
    TrimVocabularyStep,
)
from edgesmith.stages.merge import MergeStage, ProveMergeStage

if TYPE_CHECKING:
    from edgesmith.pipeline.base import Walk

__all__ = ["Checkpoints", "walk_checkpoints"]


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What became of the checkpoint; None where a planner could not know it yet."""

    original: Artifact | None
    """Base with its adapters: what graphs are compared with, and what a smaller model is smaller than."""
    teacher: Artifact | None
    """The same with its final vocabulary: what students learn from and language models are compared with."""
    final: Artifact | None
    """What is exported."""
    chain: tuple[Artifact | None, ...]
    """All of them, in the order they were made."""
    is_cut: bool = False
    """Whether `final` has been pruned or distilled."""
    merge_proof: Artifact | None = None
    """Evidence that base + adapters equal the checkpoint."""


def walk_checkpoints(walk: Walk, base: Artifact) -> Checkpoints:
    """Go through a recipe's steps on the checkpoint."""
    made = Checkpoints(original=base, teacher=base, final=base, chain=(base,))
    steps = list(walk.recipe.steps)
    if steps and isinstance(first := steps[0], MergeStep):
        del steps[0]
        merged, proof = _merge(walk, base, first.merge)
        made = Checkpoints(original=merged, teacher=merged, final=merged, chain=(merged,), merge_proof=proof)
    if made.original is not None:
        walk.check_data(made.original)
    for step in steps:
        match step:
            case TrimVocabularyStep(trim_vocabulary=options):
                trimmed = _trim(walk, made.final, options)
                made = replace(made, teacher=trimmed, final=trimmed, chain=(*made.chain, trimmed))
            case PruneStep(prune=options):
                pruned = _prune(walk, made.final, options)
                made = replace(made, final=pruned, is_cut=True, chain=(*made.chain, pruned))
            case DistillStep(distill=options):
                student = _distill(walk, made, options)
                made = replace(made, final=student, is_cut=True, chain=(*made.chain, student))
    return made


def _merge(walk: Walk, base: Artifact, options: MergeOptions) -> tuple[Artifact | None, Artifact | None]:
    """The merged checkpoint, and the proof that it equals base + adapters."""
    recipe = walk.recipe
    adapters = tuple((walk.folder / adapter.path, adapter.weight) for adapter in recipe.model.adapter)
    for path, _ in adapters:
        if not path.is_dir():
            raise UsageError(f"{path}: no such adapter folder", mend="model.adapter is relative to the recipe.")
    stage = MergeStage(base=base, adapters=adapters, dequantize=options.dequantize)
    rows = walk.rows(recipe.data.eval, NUM_VERIFIED, "data.eval")
    names = " + ".join(path.name for path, _ in adapters)
    merged = walk.walker.step("merge", f"{base.path.name} + {names}", [("base", base)], lambda: stage)
    task = None if recipe.generates else recipe.task
    proof = walk.walker.step(
        "merge: verify",
        "against base + adapter on real rows",
        [("checkpoint", merged)],
        lambda: ProveMergeStage(stage=stage, merged=needed(merged), rows=rows, task=task),
    )
    return merged, proof


def _training_file(walk: Walk) -> tuple[Path, str]:
    """The file that steps look at where they are not given one of their own, and its key."""
    data = walk.recipe.data
    if data.train is not None:
        return walk.data_file(data.train, "data.train"), "data.train"
    assert data.calibration is not None  # as the recipe has checked
    return walk.data_file(data.calibration.path, "data.calibration"), "data.calibration"


def _trim(walk: Walk, source: Artifact | None, options: TrimVocabularyOptions) -> Artifact | None:
    from edgesmith.stages.trim_vocabulary import TrimVocabularyStage

    corpus = walk.data_file(options.corpus, "corpus") if options.corpus else _training_file(walk)[0]
    return walk.walker.step(
        "trim vocabulary",
        f"to the tokens of {corpus.name}" + (f", at most {options.max_tokens:,}" if options.max_tokens else ""),
        [("checkpoint", source)],
        lambda: TrimVocabularyStage(
            source=needed(source), corpus=corpus, columns=walk.recipe.data.columns, trim=options
        ),
    )


def _prune(walk: Walk, source: Artifact | None, options: PruneOptions) -> Artifact | None:
    from edgesmith.stages.prune import PruneStage

    data, path = walk.recipe.data, None
    if options.needs_rows:
        path, _ = _training_file(walk)
    return walk.walker.step(
        "prune",
        f"{_target_of(options)}, by {options.measure}" + (f" on rows of {path.name}" if path else ""),
        [("checkpoint", source)],
        lambda: PruneStage(
            source=needed(source),
            prune=options,
            data=path,
            num_samples=data.calibration.num_samples if data.calibration and data.train is None else None,
            columns=data.columns,
            task=walk.recipe.task,
            seed=walk.recipe.seed,
            threads=walk.recipe.measure.threads,
        ),
    )


def _target_of(options: PruneOptions) -> str:
    """What is to be left, in a few words."""
    if options.pattern or options.sparsity:
        return options.pattern or f"{options.sparsity:.0%} of the weights"
    parts = [f"{options.num_layers} layers"] if options.num_layers else []
    parts += [f"{name} {kept:.0%}" if kept < 1 else f"{name} {kept:g}" for name, kept in options.keep.items()]
    budgets = (("parameters", options.max_params), ("MACs", options.max_macs), ("latency", options.max_latency))
    parts += [f"{name} {limit:.0%}" if limit < 1 else f"{name} {limit:,.0f}" for name, limit in budgets if limit]
    return ", ".join(parts)


def _distill(walk: Walk, made: Checkpoints, options: DistillOptions) -> Artifact | None:
    """Train what the steps before left, or a student of the teacher's own layers, or a checkpoint of the user's."""
    from edgesmith.stages.distill import DistillStage

    data = walk.recipe.data
    assert data.train is not None  # as the recipe has checked
    train = walk.data_file(data.train, "data.train")
    unlabelled = walk.data_file(data.unlabelled, "data.unlabelled") if data.unlabelled else None
    needs = [("teacher", made.teacher)]
    given: Artifact | None = None
    if options.student is not None:
        given = open_artifact(walk.folder / options.student, kinds=("checkpoint",))
    elif made.is_cut:
        needs.append(("student", made.final))
        given = made.final
    of = f"{options.num_layers} of its layers" if options.num_layers else "what is left of it"
    return walk.walker.step(
        "distill",
        f"{options.student or of}, on {train.name}" + (f" and {unlabelled.name}" if unlabelled else ""),
        needs,
        lambda: DistillStage(
            workplace=walk.walker.store.root / "training",
            teacher=needed(made.teacher),
            student=given,
            data=train,
            unlabelled=unlabelled,
            distill=options,
            columns=data.columns,
            task=walk.recipe.task,
            seed=walk.recipe.seed,
        ),
    )
