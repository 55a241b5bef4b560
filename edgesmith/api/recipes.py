"""Recipes: start one, plan it, run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.release import Release
    from edgesmith.walkers import PlannedStep

__all__ = ["init", "plan", "run", "schema"]


def init(
    checkpoint: Path,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
    train: Path | None = None,
    out: Path = Path("recipe.yaml"),
) -> dict[str, Any]:
    """Write a starter recipe.

    Returns:
        `path` of the recipe, and `guesses`: what was guessed and what is left to fill in.

    Raises:
        UsageError: the checkpoint is missing, or `out` is there already.
        UnsupportedError: no task fits the checkpoint.
    """
    from edgesmith.starter import write_starter

    guesses, path = write_starter(checkpoint, adapter=adapter, data=data, train=train, out=out)
    return {"path": str(path), "guesses": guesses}


def plan(recipe: Path, *, settings: Sequence[str] = (), store: Path | None = None) -> list[PlannedStep]:
    """List a recipe's steps, and which of them the store has.

    Raises:
        RecipeError: the recipe breaks the schema.
        UsageError: a file that it names is missing.
    """
    from edgesmith.pipeline import walk
    from edgesmith.recipe import load_recipe
    from edgesmith.store import Store, default_store_root
    from edgesmith.walkers import Planner

    planner = Planner(store=Store(store or default_store_root()))
    walk(load_recipe(recipe, settings), recipe.parent, planner)
    return planner.steps


def run(
    recipe: Path,
    *,
    out: Path | None = None,
    settings: Sequence[str] = (),
    store: Path | None = None,
    against: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
    comment: Path | None = None,
    remeasure: bool = False,
    progress: Progress = SILENT,
) -> Release:
    """Do everything that a recipe says; steps that the store has are not done again.

    Args:
        recipe: YAML file.
        out: Folder for artifacts, evidence and report; `out/NAME` if left out.
        settings: `a.b=c` strings that replace single values.
        store: Cache of finished steps.
        against: What regressions are judged against: an artifact, or an earlier release, whose target of the same
            name is taken; the recipe's baseline if left out.
        junit: Also write the verdicts as JUnit XML.
        summary: Also write the verdicts as Markdown.
        comment: Also write the verdicts as Markdown for a comment on a pull request.
        remeasure: Take times anew that the store has.
        progress: Shows how far it is.

    Returns:
        Artifacts, steps, verdicts. A FAIL is a result, not an exception.

    Raises:
        EdgesmithError: a step could not be done, or an artifact breaks its tolerance.
    """
    from edgesmith.release import make_release
    from edgesmith.verdict_files import VerdictFiles

    return make_release(
        recipe,
        out=out,
        settings=settings,
        store_root=store,
        against=against,
        outputs=VerdictFiles(junit=junit, summary=summary, comment=comment),
        remeasure=remeasure,
        progress=progress,
    )


def schema() -> dict[str, Any]:
    """Give the JSON Schema of recipes."""
    from edgesmith.recipe import Recipe

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
