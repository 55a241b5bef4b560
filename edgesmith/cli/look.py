"""Commands that look into artifacts and at the machine."""

from __future__ import annotations

from typing import Annotated

import typer

from edgesmith.cli.options import ArtifactPath, Json, Threads
from edgesmith.cli.show import plain

__all__ = ["check", "doctor", "inspect", "predict"]


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


def inspect(artifact: ArtifactPath, json: Json = False) -> None:
    """Show what an artifact is, what it was made from, and its files."""
    from edgesmith import api, console
    from edgesmith.units import format_bytes

    facts = api.inspect(artifact)
    if json:
        console.print_json(facts)
        return
    files = facts.pop("files")
    console.print_facts({name: plain(value) for name, value in facts.items()})
    console.print_table(
        ("file", "size", "sha256"),
        [(file["path"], format_bytes(file["size_bytes"]), file["sha256"][:16]) for file in files],
    )


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
