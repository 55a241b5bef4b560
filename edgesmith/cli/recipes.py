"""Commands about recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesmith.cli.options import (
    Against,
    CommentFile,
    DataFile,
    Json,
    JUnitFile,
    RecipePath,
    Settings,
    StoreRoot,
    SummaryFile,
)
from edgesmith.cli.show import EXIT_BY_VERDICT, show_verdicts

__all__ = ["init", "plan", "run", "schema"]


def init(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face folder of the fine-tuned model or of the base.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter to merge first.")] = None,
    data: DataFile = None,
    train: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows or text to train on: the recipe makes a smaller model.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write.")] = Path("recipe.yaml"),
    json: Json = False,
) -> None:
    """Write a starter recipe for a checkpoint, saying what was guessed."""
    from edgesmith import api, console

    result = api.init(checkpoint, adapter=adapter, data=data, train=train, out=out)
    if json:
        console.print_json(result)
        return
    console.say(f"wrote {out}; next: edgesmith plan {out}")
    for guess in result["guesses"]:
        console.say(guess)


def plan(recipe: RecipePath, settings: Settings = None, store: StoreRoot = None, json: Json = False) -> None:
    """Show the steps of a recipe, what each needs, and which are done already."""
    from edgesmith import api, console

    steps = api.plan(recipe, settings=settings or (), store=store)
    if json:
        console.print_json({"steps": [step.to_json() for step in steps]})
        return
    rows = [(step.name, step.state, step.does, ", ".join(step.needs)) for step in steps]
    console.print_table(("step", "state", "does", "needs"), rows)


def run(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write. \\[default: out/NAME]")] = None,
    settings: Settings = None,
    store: StoreRoot = None,
    against: Against = None,
    junit: JUnitFile = None,
    summary: SummaryFile = None,
    comment: CommentFile = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Take times anew that the store has.")] = False,
    json: Json = False,
) -> None:
    """Do all of it: compress, export, verify, measure, judge, report."""
    from edgesmith import api, console

    result = api.run(
        recipe,
        out=out,
        settings=settings or (),
        store=store,
        against=against,
        junit=junit,
        summary=summary,
        comment=comment,
        remeasure=remeasure,
        progress=console.ConsoleProgress(),
    )
    if json:
        console.print_json(result.to_json())
    else:
        _show_run(result)
    raise typer.Exit(EXIT_BY_VERDICT[result.verdict])


def _show_run(result: Any) -> None:
    from edgesmith import console
    from edgesmith.release_table import release_table, steps_table
    from edgesmith.units import format_seconds

    steps = [
        (step.name, step.does, "cached" if step.was_cached else "done", format_seconds(step.seconds))
        for step in result.steps
    ]
    console.print_table(("step", "does", "", "time"), steps)
    if result.model_steps:
        console.print_table(*steps_table(result.model_steps))
    console.print_table(*release_table(result.targets))
    for target in result.targets:
        if result.is_judged and not target.verdicts:
            console.say(
                f"INCONCLUSIVE {target.name}: is its own baseline, and no gate is left that compares with none; "
                "set one such as accuracy.min or size.max_mb, or name another baseline"
            )
        show_verdicts(target.verdicts, title=target.name)
    overall = result.verdict if result.is_judged else "no gates set: nothing was judged"
    console.say(
        f"{overall} in {format_seconds(result.seconds)}; artifacts, evidence and report.html are in {result.out}"
    )


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from edgesmith import api, console

    console.print_json(api.schema())
