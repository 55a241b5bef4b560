"""Commands that look into artifacts and at the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from edgesmith.cli.options import ArtifactPath, Json, Threads
from edgesmith.cli.show import plain

__all__ = ["check", "doctor", "inspect", "predict"]

_LONG = frozenset({"schema_version", "history", "kept", "matrices", "tensors", "left_dense", "row_shape"})
"""What a step wrote for machines."""
_MAX_ROWS = 12


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
    files, model, work = facts.pop("files"), facts.pop("gguf", None), facts.pop("facts", None)
    facts["options"] = _set_options(facts["options"])
    console.print_facts({name: plain(value) for name, value in facts.items() if value not in (None, [], {})})
    if model is not None:
        _show_gguf(model)
    if work is not None:
        _show_work(work)
    console.print_table(
        ("file", "size", "sha256"),
        [(file["path"], format_bytes(file["size_bytes"]), file["sha256"][:16]) for file in files],
    )


def _set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen: nothing that was left out, nor a precision that a quantization replaces."""
    shown = {name: value for name, value in options.items() if value is not None and value != {} and value != []}
    if "quantize" in shown:
        shown.pop("precision", None)
    return shown


def _show_gguf(model: dict[str, Any]) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    types = model.pop("tensor_types")
    template = model.pop("has_chat_template")
    tokenizer = "/".join(str(one) for one in (model.pop("tokenizer"), model.pop("pre_tokenizer")) if one is not None)
    facts = {name: plain(value) for name, value in model.items() if value is not None}
    facts |= {"num_parameters": f"{model['num_parameters']:,}"}
    if tokenizer:
        facts |= {"tokenizer": tokenizer, "chat_template": "yes" if template else "no"}
    console.say("")
    console.print_facts(facts)
    rows = [
        (one["type"], f"{one['num_tensors']:,}", format_bytes(one["size_bytes"]), f"{one['bits_per_weight']:.4g}")
        for one in types
    ]
    console.print_table(("type", "tensors", "size", "bits per weight"), rows)


def _show_work(work: Mapping[str, Any]) -> None:
    """Show what a step wrote of its own work: single figures, and of a training some of its evaluations."""
    from edgesmith import console

    single = {name: value for name, value in work.items() if name not in _LONG and value not in (None, [], {}, "")}
    console.say("")
    console.print_facts(
        {
            name: f"{one:,}" if isinstance(one, int) and not isinstance(one, bool) else plain(one)
            for name, one in single.items()
        }
    )
    evaluated = [entry for entry in work.get("history", ()) if "metric" in entry]
    if not evaluated:
        return
    every = -(-len(evaluated) // _MAX_ROWS)
    shown = sorted({*range(0, len(evaluated), every), len(evaluated) - 1})
    names = [name for name in evaluated[-1] if name not in ("update", "metric")]
    rows = [
        (f"{one['update']:,}", *(plain(one[name]) if name in one else "" for name in ("metric", *names)))
        for one in (evaluated[index] for index in shown)
    ]
    console.print_table(("update", str(work.get("metric", "metric")), *names), rows, title="evaluations")


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
