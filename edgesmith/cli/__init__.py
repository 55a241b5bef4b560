"""The command line: parses, calls one function of `edgesmith.api`, prints what it returns, chooses the exit code.

Nothing heavy is imported here: `--help`, `plan`, `inspect` and `gate` start at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgesmith.cli import distill, judge, language, load, look, measure, prune, recipes, serve, steps, vocabulary
from edgesmith.errors import EdgesmithError, StorageError, UsageError

__all__ = ["app", "main"]

_EXIT_PIPE = 141
EXIT_CODES = "Exit codes: 0 done or PASS · 1 FAIL · 2 usage or internal error · 3 INCONCLUSIVE · 4 input refused."


class _Commands(TyperGroup):
    """Ends every command with the exit code that its outcome has."""

    def invoke(self, ctx: Any) -> Any:
        """Run one command."""
        try:
            result = super().invoke(ctx)
        except EdgesmithError as error:
            _end(error)
        except KeyboardInterrupt as interrupt:
            goes_on = "; finished steps are in the store, and the next run goes on from there"
            text = "interrupted" + (goes_on if ctx.invoked_subcommand == "run" else "")
            _end(EdgesmithError(text), code=143 if isinstance(interrupt, _TerminatedError) else 130)
        except BrokenPipeError:
            _end_quietly()
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


def _show_version(asked: bool) -> None:
    if asked:
        from edgesmith import __version__, console

        console.say(f"edgesmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun sets it
    if num_processes > 1 and context.invoked_subcommand != distill.distill.__name__:
        raise UsageError(
            f"torchrun started {num_processes} processes, and each would do all of {context.invoked_subcommand}",
            mend="Only training is shared among processes: torchrun --nproc-per-node N -m edgesmith distill …",
        )


# Panel of `--help` → command → an example of it, or several.
_PANELS: Mapping[str, Mapping[Callable[..., None], str | tuple[str, ...]]] = {
    "Recipes": {
        recipes.init: "edgesmith init out/merged --data test.jsonl --train train.jsonl -o recipe.yaml",
        recipes.plan: "edgesmith plan recipe.yaml",
        recipes.run: "edgesmith run recipe.yaml --out release --set targets.server.quantize.method=static-int8",
        recipes.schema: "edgesmith schema > recipe.schema.json",
    },
    "One step": {
        steps.merge: "edgesmith merge --base MiniLM --adapter lora-news -o merged --data test.jsonl",
        vocabulary.trim_vocabulary_command: "edgesmith trim-vocabulary merged --corpus train.jsonl -o trimmed",
        prune.prune: (
            "edgesmith prune merged --num-layers 3 --keep ffn=0.5 --data train.jsonl -o pruned",
            "edgesmith prune SmolLM2 --method sparsegpt --pattern 2:4 --data train.txt -o sparse",
        ),
        distill.distill: (
            "edgesmith distill merged --data train.jsonl --num-layers 3 -o student",
            "edgesmith distill trimmed --student pruned --data train.jsonl --hard 0.5 -o student",
        ),
        steps.export: (
            "edgesmith export merged --format onnx -o fp32 --data test.jsonl",
            "edgesmith export merged --format gguf -o plain --data held_out.txt",
            "edgesmith export news=release/server --for triton -o repository",
        ),
        steps.quantize: (
            "edgesmith quantize fp32 --method dynamic-int8 --against merged --data test.jsonl -o int8",
            "edgesmith quantize plain --type Q4_K_M --imatrix imatrix.gguf --data held_out.txt -o q4",
        ),
        language.imatrix: "edgesmith imatrix merged --data train.txt -o imatrix.gguf",
    },
    "Measure": {
        measure.verify: "edgesmith verify int8 --against merged --data test.jsonl",
        measure.eval_command: (
            "edgesmith eval int8 --data test.jsonl -o evidence/int8-eval",
            "edgesmith eval q4 --against merged --data held_out.txt",
        ),
        measure.bench: (
            "edgesmith bench int8 --against fp32 --data test.jsonl",
            "edgesmith bench q4 --length 128 --max-tokens 64 --data held_out.txt",
        ),
        load.load: (
            "edgesmith load release/server --rate 50 --limit-ms 50 --data test.jsonl",
            "edgesmith load http://127.0.0.1:8000/v2/models/news --rate 100 --limit-ms 50 --data test.jsonl",
        ),
    },
    "Serve": {
        serve.serve: (
            "edgesmith serve news=release/server",
            "edgesmith serve news:1=old news:2=new --split news=1:95,2:5 --record traffic.jsonl",
            "edgesmith serve news=release/server --on ray --replicas 4",
        ),
        serve.bundle: "edgesmith bundle news=release/server --runtime -o box.tar.zst",
        serve.unbundle: "edgesmith unbundle box.tar.zst -o box",
    },
    "Judge": {
        judge.gate: "edgesmith gate release/server --gates recipe.yaml --junit verdicts.xml",
        judge.report: "edgesmith report release",
    },
    "Look and check": {
        language.generate: 'edgesmith generate release/phone "Call me" --max-tokens 32',
        look.predict: 'edgesmith predict release/server "Shares fell after the bank cut its forecast."',
        look.inspect: "edgesmith inspect release/server",
        look.check: "edgesmith check release/server",
        look.doctor: "edgesmith doctor",
    },
}

for _panel, _commands in _PANELS.items():
    for _command, _examples in _commands.items():
        _name = _command.__name__.removesuffix("_command").replace("_", "-")
        _listed = (_examples,) if isinstance(_examples, str) else _examples
        _epilog = "\n\n".join(f"[dim]Example:[/dim] {_example}" for _example in _listed)
        app.command(_name, epilog=_epilog, rich_help_panel=_panel)(_command)


def _end_orderly(*_: object) -> NoReturn:
    """On SIGTERM leave like on Ctrl-C, so that what was measured is kept and no temporary file stays."""
    raise _TerminatedError


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM."""


class _DecidedExit(SystemExit):
    """Leaves with the code of an error that has been said."""


def _end_quietly() -> NoReturn:
    """Leave when whoever reads has seen enough, as `| head` does."""
    _discard_output()
    sys.exit(_EXIT_PIPE)


def _discard_output() -> None:
    """What is still to be written goes nowhere, so that the interpreter does not stumble over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_discarded() -> bool:
    """Whether standard output leads to the null device."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY))
    except (OSError, ValueError):  # no file at all
        return False


def main() -> None:
    """Run the command line; every error becomes a message and an exit code."""
    signal.signal(signal.SIGTERM, _end_orderly)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Idle OpenMP threads sleep instead of spinning: torch's take turns with other work on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without Unicode shows escapes instead of failing
            stream.reconfigure(errors="backslashreplace")
    was_discarded = _is_discarded()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _end_quietly()
    except SystemExit as leaving:
        is_decided = isinstance(leaving, _DecidedExit)
        if (
            _is_discarded() and not was_discarded and not is_decided
        ):  # rich ends so, after it has closed the broken pipe
            sys.exit(_EXIT_PIPE)
        raise
    except OSError as error:  # of the help's, or of what was still to be written
        _end(StorageError(f"standard output: cannot be written: {error.strerror or error}"))
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
    try:
        if "--json" in sys.argv:
            console.print_json({"error": error.message, "mend": error.mend, "exit_code": code})
        sys.stdout.flush()
    except BrokenPipeError:
        _end_quietly()
    except (OSError, StorageError):  # which has been said, or matters less than what has
        _discard_output()
    raise _DecidedExit(code)
