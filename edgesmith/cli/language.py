"""Commands for language models alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.options import ArtifactPath, Columns, Json, Seed, Threads, columns_of
from edgesmith.errors import UsageError

__all__ = ["generate", "imatrix"]


def imatrix(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint, or unquantized GGUF artifact or file.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Calibration text, not the held-out one.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")],
    windows: Annotated[int, typer.Option(min=2, help="Windows of 512 tokens at most.")] = 40,
    columns: Columns = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure how strongly real text uses each weight's columns, in llama.cpp's file format."""
    from edgesmith import api, console

    found = api.imatrix(
        model,
        data=data,
        out=out,
        num_windows=windows,
        columns=columns_of(columns, data),
        threads=threads,
        progress=console.ConsoleProgress(),
    )
    facts = {"path": str(out), "num_tensors": len(found.entries), "num_tokens": found.num_tokens}
    if json:
        console.print_json(facts)
    else:
        console.print_facts({name: str(value) for name, value in facts.items()})


def generate(
    artifact: ArtifactPath,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the answer.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Write the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON Schema that the answer must follow.")
    ] = None,
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="GBNF grammar of the answer (gguf).")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH[:SCALE]", help="LoRA adapter in GGUF, artifact or file; may be repeated."),
    ] = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Continue a text with a language model's artifact, as its server would."""
    from edgesmith import api, console
    from edgesmith.api.adapters import adapter_files, check_speaks

    for text in stop or ():
        if not text:
            raise UsageError("--stop is empty: it would end every answer before its first character")
    check_speaks(artifact)
    chunks = api.generate(
        artifact,
        prompt,
        max_tokens=max_tokens,
        chat=chat,
        temperature=temperature,
        stop=stop or (),
        json_schema=_schema(schema),
        grammar=_text(grammar, "--grammar"),
        adapters=adapter_files(adapter or ()),
        threads=threads,
        seed=seed,
    )
    if json:
        parts = list(chunks)
        console.print_json(
            {
                "text": "".join(chunk.text for chunk in parts),
                "num_tokens": sum(chunk.num_tokens for chunk in parts),
                "finish_reason": parts[-1].finish_reason if parts else None,
            }
        )
        return
    for chunk in chunks:
        console.write(chunk.text)
    console.write("\n")


def _text(path: Path | None, flag: str) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file", mend="Check the path.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {path}: cannot be read: {error}") from error


def _schema(path: Path | None) -> dict[str, object] | None:
    import json

    text = _text(path, "--schema")
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--schema {path}: is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--schema {path}: a JSON Schema is an object, not {type(found).__name__}")
    return found
