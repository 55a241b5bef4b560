"""The command line: parses, calls one function of `edgesmith.api`, prints what it returns, chooses the exit code.

Nothing heavy is imported here: `--help`, `plan`, `inspect` and `gate` start at once.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgesmith.errors import EdgesmithError, UsageError

__all__ = ["app", "main"]

EXIT_CODES = "Exit codes: 0 done or PASS · 1 FAIL · 2 usage or internal error · 3 INCONCLUSIVE · 4 input refused."
_EXIT_BY_VERDICT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


class _Commands(TyperGroup):
    """Ends every command with the exit code that its outcome has."""

    def invoke(self, ctx: Any) -> Any:
        """Run one command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except EdgesmithError as error:
            _end(error)
        except KeyboardInterrupt:
            text = "interrupted; finished steps are in the store, and the next run goes on from there"
            _end(EdgesmithError(text), code=130)
        except BrokenPipeError:  # whoever reads has seen enough, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "format_message"):
                raise
            import traceback

            traceback.print_exc()  # a bug must not look like a gate's FAIL, which is exit code 1
            _end(EdgesmithError(f"internal error: {error!r}", mend="Report it with the lines above."))
        return result


app = typer.Typer(
    cls=_Commands,
    name="edgesmith",
    help="From a fine-tuned checkpoint to small, verified, measured and gated artifacts.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write.", show_default=False)]
StoreRoot = Annotated[
    Path | None,
    typer.Option("--store", help="Cache of finished steps. [default: $EDGESMITH_STORE or ~/.cache/edgesmith/store]"),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the engine.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder, or a bare .onnx file.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Replace one value of the recipe; may be repeated."),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Task, such as text-classification; guessed from config.json if left out.")
]
DataFile = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Real rows: JSONL, CSV or TSV.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="The file's column for one of the task's, `text=body`."),
]


def _example(command: str) -> str:
    return f"[dim]Example:[/dim] {command}"


def _show_version(asked: bool) -> None:
    if asked:
        from edgesmith import __version__, console

        console.say(f"edgesmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command(epilog=_example("edgesmith init out/merged --data test.jsonl -o recipe.yaml"), rich_help_panel="Recipes")
def init(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face folder of the fine-tuned model or of the base.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter to merge first.")] = None,
    data: DataFile = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write.")] = Path("recipe.yaml"),
    json: Json = False,
) -> None:
    """Write a starter recipe for a checkpoint, saying what was guessed."""
    from edgesmith import api, console

    result = api.init(checkpoint, adapter=adapter, data=data, out=out)
    if json:
        console.print_json(result)
        return
    for guess in result["guesses"]:
        console.say(guess)
    console.say(f"wrote {out}; next: edgesmith plan {out}")


@app.command(epilog=_example("edgesmith plan recipe.yaml"), rich_help_panel="Recipes")
def plan(recipe: RecipePath, settings: Settings = None, store: StoreRoot = None, json: Json = False) -> None:
    """Show the steps of a recipe, what each needs, and which are done already."""
    from edgesmith import api, console

    steps = api.plan(recipe, settings=settings or (), store=store)
    if json:
        console.print_json({"steps": [step.to_json() for step in steps]})
        return
    rows = [(step.name, step.state, step.does, ", ".join(step.needs)) for step in steps]
    console.print_table(("step", "state", "does", "needs"), rows)


@app.command(
    epilog=_example("edgesmith run recipe.yaml --out release --set targets.server.quantize.method=static-int8"),
    rich_help_panel="Recipes",
)
def run(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write. [default: out/NAME]")] = None,
    settings: Settings = None,
    store: StoreRoot = None,
    junit: Annotated[Path | None, typer.Option(help="Also write the verdicts as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write the verdicts as Markdown.")] = None,
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
        junit=junit,
        summary=summary,
        remeasure=remeasure,
        progress=console.ConsoleProgress(),
    )
    if json:
        console.print_json(result.to_json())
    else:
        _show_run(result)
    raise typer.Exit(_EXIT_BY_VERDICT[result.verdict])


def _show_run(result: Any) -> None:
    from edgesmith import console
    from edgesmith.units import format_seconds

    steps = [
        (step.name, step.does, "cached" if step.was_cached else "done", format_seconds(step.seconds))
        for step in result.steps
    ]
    console.print_table(("step", "does", "", "time"), steps)
    console.print_table(*result.table())
    for target in result.targets:
        for verdict in target.verdicts:
            console.say(f"{verdict.verdict} {target.name} {verdict.gate}: {verdict.reason}")
    overall = result.verdict if result.is_judged else "no gates set: nothing was judged"
    console.say(f"{overall} in {format_seconds(result.seconds)}; reports, artifacts and evidence are in {result.out}")


@app.command(
    epilog=_example("edgesmith merge --base MiniLM --adapter lora-news -o merged --data test.jsonl"),
    rich_help_panel="One step",
)
def merge(
    base: Annotated[Path, typer.Option(help="Hugging Face folder that the adapter was trained on.")],
    adapter: Annotated[
        list[str], typer.Option(metavar="PATH[:WEIGHT]", help="PEFT adapter folder; repeat to add several.")
    ],
    out: Out,
    data: DataFile = None,
    task: TaskName = None,
    dequantize: Annotated[bool, typer.Option(help="Allow a 4- or 8-bit base: turn it into floats first.")] = False,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fold PEFT adapters into their base, and prove the result equal to base + adapter."""
    from edgesmith import api, console

    artifact, result = api.merge(
        base,
        adapter,
        out=out,
        data=data,
        task=task,
        dequantize=dequantize,
        seed=seed,
        columns=_pairs(columns),
        progress=console.ConsoleProgress(),
    )
    from dataclasses import asdict

    _show_artifact(artifact, asdict(result), json)


@app.command(
    rich_help_panel="One step", epilog=_example("edgesmith export merged --format onnx -o fp32 --data test.jsonl")
)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: Hugging Face folder.")],
    out: Out,
    format: Annotated[str, typer.Option("--format", help="What will run it: onnx.")] = "onnx",  # noqa: A002
    task: TaskName = None,
    data: DataFile = None,
    optimize_for: Annotated[str, typer.Option(help="onnxruntime-cpu, or portable (standard operators only).")] = (
        "onnxruntime-cpu"
    ),
    opset: Annotated[int | None, typer.Option(help="ONNX opset; chosen by --optimize-for if left out.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens.")] = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Export a checkpoint, and prove the result equal to it on real rows."""
    from edgesmith import api, console

    artifact, verification = api.export(
        checkpoint,
        out=out,
        format=format,
        task=task,
        data=data,
        optimize_for=optimize_for,
        opset=opset,
        max_length=max_length,
        seed=seed,
        columns=_pairs(columns),
        progress=console.ConsoleProgress(),
    )
    _show_artifact(artifact, verification.to_json(), json)


@app.command(
    epilog=_example("edgesmith quantize fp32 --method dynamic-int8 --against merged --data test.jsonl -o int8"),
    rich_help_panel="One step",
)
def quantize(
    artifact: ArtifactPath,
    out: Out,
    method: Annotated[str, typer.Option(help="dynamic-int8 or static-int8.")] = "dynamic-int8",
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real rows to take activation ranges from (static-int8).")
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Rows drawn from the calibration file.")] = 128,
    against: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Verify against this; the given artifact if left out.")
    ] = None,
    data: DataFile = None,
    smoothing: Annotated[
        bool | None,
        typer.Option(
            "--smoothing/--no-smoothing",
            help="Scale down outlying activation channels first: nearer to fp32, a little slower. "
            "[default: static-int8 does]",
        ),
    ] = None,
    reduce_range: Annotated[bool, typer.Option(help="7-bit weights, for x86 without VNNI.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Nodes or weights that stay in float.")
    ] = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Turn an fp32 ONNX artifact into an INT8 one, and prove how near it stays."""
    from edgesmith import api, console

    made, verification = api.quantize(
        artifact,
        method=method,
        out=out,
        calibration=calibration,
        num_samples=num_samples,
        against=against,
        data=data,
        smoothing=smoothing,
        reduce_range=reduce_range,
        exclude=exclude or (),
        columns=_pairs(columns),
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show_artifact(made, verification.to_json(), json)


@app.command(epilog=_example("edgesmith verify int8 --against merged --data test.jsonl"), rich_help_panel="Measure")
def verify(
    artifact: ArtifactPath,
    against: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="Reference: checkpoint or another artifact.")],
    data: DataFile = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows drawn from the data file.")] = 64,
    task: TaskName = None,
    columns: Columns = None,
    seed: Seed = 0,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Compare an artifact's outputs with its reference on real rows; a breach is an error."""
    from edgesmith import api, console

    result = api.verify(
        artifact,
        against=against,
        data=data,
        num_samples=rows,
        task=task,
        columns=_pairs(columns),
        seed=seed,
        threads=threads,
        progress=console.ConsoleProgress(),
    )
    _show_proof(result.to_json(), json)


@app.command(
    "eval", epilog=_example("edgesmith eval int8 --data test.jsonl -o evidence/int8-eval"), rich_help_panel="Measure"
)
def eval_command(
    artifact: ArtifactPath,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Held-out rows: JSONL, CSV or TSV.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Save metrics and per-example predictions here.")
    ] = None,
    task: TaskName = None,
    columns: Columns = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure the task's metrics; every single prediction is saved, so that artifacts can be compared in pairs."""
    from edgesmith import api, console

    result = api.eval(
        artifact,
        data=data,
        out=out,
        task=task,
        columns=_pairs(columns),
        threads=threads,
        progress=console.ConsoleProgress(),
    )
    _show_facts(result, json)


@app.command(epilog=_example("edgesmith bench int8 --against fp32 --data test.jsonl"), rich_help_panel="Measure")
def bench(
    artifact: ArtifactPath,
    against: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="Run this artifact in turns with it, and give the ratio.")
    ] = None,
    data: DataFile = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of every request. [default: each row's own]")
    ] = None,
    scenario: Annotated[str, typer.Option(help="single: one client, one request after another.")] = "single",
    requests: Annotated[int | None, typer.Option(min=1, help="Timed requests.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Save the raw samples here.")] = None,
    task: TaskName = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure latency, CPU time, memory and start-up, with the sample size that each figure stands on."""
    from edgesmith import api, console

    result = api.bench(
        artifact,
        against=against,
        data=data,
        scenario=scenario,
        length=length,
        num_requests=requests,
        out=out,
        task=task,
        columns=_pairs(columns),
        threads=threads,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show_facts(result, json)


@app.command(
    epilog=_example("edgesmith gate release/server --gates recipe.yaml --junit verdicts.xml"), rich_help_panel="Judge"
)
def gate(
    artifact: ArtifactPath,
    gates: Annotated[Path, typer.Option(metavar="FILE", help="A recipe, or a YAML file with just the gates.")],
    against: Annotated[Path | None, typer.Option(metavar="BASELINE", help="Baseline artifact.")] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements. [default: the folder `evidence` beside the artifact]"),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Judge an artifact by saved evidence: PASS, FAIL or INCONCLUSIVE, with the bound that decided."""
    from edgesmith import api, console

    overall, verdicts = api.gate(
        artifact, gates=gates, against=against, evidence=evidence, junit=junit, summary=summary
    )
    if json:
        console.print_json({"verdict": overall, "gates": [verdict.to_json() for verdict in verdicts]})
    else:
        for verdict in verdicts:
            console.say(f"{verdict.verdict} {verdict.gate}: {verdict.reason}")
        console.say(overall)
    raise typer.Exit(_EXIT_BY_VERDICT[overall])


@app.command(
    rich_help_panel="Look and check",
    epilog=_example('edgesmith predict release/server "Shares fell after the bank cut its forecast."'),
)
def predict(
    artifact: ArtifactPath,
    texts: Annotated[list[str], typer.Argument(help="Texts to answer.")],
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Answer texts with an artifact, as its server would."""
    from edgesmith import api, console

    answers = api.predict(artifact, texts, threads=threads)
    if json:
        console.print_json({"predictions": answers})
        return
    for text, answer in zip(texts, answers, strict=True):
        if "label" in answer:
            console.say(f"{answer['label']} ({answer['score']:.3f})  {text}")
        else:
            vector = answer["embedding"]
            start = ", ".join(f"{value:.4f}" for value in vector[:5])
            console.say(f"{len(vector)} dimensions [{start}, …]  {text!r}")


@app.command(epilog=_example("edgesmith inspect release/server"), rich_help_panel="Look and check")
def inspect(artifact: ArtifactPath, json: Json = False) -> None:
    """Show what an artifact is, what it was made from, and its files."""
    from edgesmith import api, console
    from edgesmith.units import format_bytes

    facts = api.inspect(artifact)
    if json:
        console.print_json(facts)
        return
    files = facts.pop("files")
    console.print_facts({name: _plain(value) for name, value in facts.items()})
    console.print_table(
        ("file", "size", "sha256"),
        [(file["path"], format_bytes(file["size_bytes"]), file["sha256"][:16]) for file in files],
    )


@app.command(epilog=_example("edgesmith check release/server"), rich_help_panel="Look and check")
def check(
    artifact: ArtifactPath,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Check every file's hash, then run the artifact's golden vectors on this machine."""
    from edgesmith import api, console

    result = api.check(artifact, threads=threads)
    if json:
        console.print_json(result)
    else:
        console.say(result["summary"])


@app.command(epilog=_example("edgesmith doctor"), rich_help_panel="Look and check")
def doctor(json: Json = False) -> None:
    """Say what this machine can do: extras, versions, processor, memory, store."""
    from edgesmith import api, console

    facts = api.doctor()
    if json:
        console.print_json(facts)
        return
    console.print_table(
        ("", "state", "detail"), [(fact["name"], fact["state"], fact["detail"]) for fact in facts["facts"]]
    )


@app.command(epilog=_example("edgesmith schema > recipe.schema.json"), rich_help_panel="Recipes")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from edgesmith import api, console

    console.print_json(api.schema())


def _show_artifact(artifact: Any, proof: dict[str, Any], json: bool) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    summary = {
        "path": str(artifact.path),
        "digest": artifact.digest,
        "kind": artifact.kind,
        "model_bytes": artifact.model_bytes,
    }
    if json:
        console.print_json({**summary, "verification": proof})
        return
    summary["model_bytes"] = format_bytes(artifact.model_bytes)
    console.print_facts({name: str(value) for name, value in summary.items()})
    _show_proof(proof, json=False)


def _show_proof(proof: dict[str, Any], json: bool) -> None:
    """Show what a verification found; single rows and shapes are for machines."""
    from edgesmith import console

    if json:
        console.print_json(proof)
        return
    facts = {name: value for name, value in proof.items() if name not in ("rows", "shapes", "breaches")}
    console.print_facts({name: _plain(value) for name, value in _flatten(facts).items()})


_FOR_MACHINES = ("confusion", "higher_is_better", "labels", "latency_bounds_ms", "machine")


def _show_facts(facts: dict[str, Any], json: bool) -> None:
    from edgesmith import console

    if json:
        console.print_json(facts)
    else:
        facts = {name: value for name, value in facts.items() if name not in _FOR_MACHINES}
        console.print_facts({name: _plain(value) for name, value in _flatten(facts).items()})


def _flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "—"
    return "—" if value is None else str(value)


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--column {text}: must look like text=body")
        pairs[name] = column
    return pairs


def main() -> None:
    """Run the command line; every error becomes a message and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads sleep instead of spinning: torch's take turns with other work on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        error.show()  # type: ignore[attr-defined]  # a flag or argument that does not exist or is missing
        _end(UsageError(error.format_message()), is_said=True)
    sys.exit(code if isinstance(code, int) else 0)


def _end(error: EdgesmithError, *, is_said: bool = False, code: int | None = None) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    from edgesmith import console

    if not is_said:
        console.fail(str(error))
    code = error.exit_code if code is None else code
    if "--json" in sys.argv:
        console.print_json({"error": error.message, "mend": error.mend, "exit_code": code})
    sys.exit(code)
