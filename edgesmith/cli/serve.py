"""The commands that serve, and pack up what is served."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.options import Json, Out

__all__ = ["bundle", "serve", "unbundle"]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[:VERSION]=PATH…",
            help="Artifact folder, release, .onnx or .gguf file; a bare path is called by its last part.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on: this machine alone, unless told otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Also speak gRPC on this port.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of each model's engine. \\[default: the machine's cores, shared out]"),
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(metavar="ROWS", min=1, help="Rows run together. \\[default: measured at start]")
    ] = None,
    max_queue_delay_us: Annotated[
        int, typer.Option(metavar="US", min=0, help="How long a batch that is not full waits for more rows.")
    ] = 0,
    max_queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that may wait for a model.")] = 128,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="Deadline of a request that names none; 0 for none.")
    ] = 60.0,
    slots: Annotated[int, typer.Option(min=1, help="Texts that a language model writes at a time.")] = 4,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Most tokens that a language model keeps room for.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:SCALE]", help="LoRA adapter of a GGUF model; repeatable.")
    ] = None,
    isolate: Annotated[bool, typer.Option("--isolate", help="Run each engine in a process of its own.")] = False,
    engine_timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="When an isolated engine hangs and is started again; 0: never.")
    ] = 120.0,
    repository: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of models that an admin may load by name.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VERSION:WEIGHT,…", help="Share a model's traffic among its versions; repeatable."),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VERSION", help="Give a version a copy of the traffic, unseen; repeatable."),
    ] = None,
    slo_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="Later answers count against a version that is compared.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON line for each request, without texts.")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One key a line; also $EDGESMITH_API_KEYS, with commas.")
    ] = None,
    admin_token: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Opens the admin routes; also $EDGESMITH_ADMIN_TOKEN.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Further name that clients may call it by; repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Web page whose scripts may send requests; repeatable.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file with the chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM file with the private key.")] = None,
    drain: Annotated[float, typer.Option(metavar="S", min=0, help="Time for running requests at the end.")] = 30.0,
    max_body_mb: Annotated[float, typer.Option(metavar="MB", help="Largest request, in MiB.")] = 64.0,
    announce: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the address here once all models are ready.")
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Do not serve the page at /.")] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="ray: run it on Ray Serve, in the cluster of $RAY_ADDRESS or one of this machine's own.",
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(metavar="N", min=1, help="Servers that run at a time, with --on ray.")] = 1,
) -> None:
    """Serve models: Open Inference Protocol v2, OpenAI, /predict, metrics, and a page to try them."""
    from edgesmith import api
    from serve.arguments import read_config
    from serve.logs import log_to_stderr

    log_to_stderr()
    given = Namespace(**{name: [] if value is None and name in _LISTS else value for name, value in locals().items()})
    api.serve(read_config(given), on=on, replicas=replicas)


_LISTS = ("models", "adapter", "split", "shadow", "allow_host", "allow_origin")


def bundle(
    models: Annotated[
        list[str], typer.Argument(metavar="NAME[:VERSION]=PATH…", help="Artifact folder, release, .onnx or .gguf file.")
    ],
    out: Out,
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Put the thin runtime and a lock file in: `python -m serve` runs it.")
    ] = False,
    wheels: Annotated[
        bool, typer.Option("--wheels", help="Put the libraries in too, so that the box needs no network.")
    ] = False,
    platform: Annotated[
        str | None,
        typer.Option(metavar="TAG", help="Of the wheels, such as manylinux_2_28_aarch64."),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="Open each model in a fresh process, and say what it takes there."),
    ] = True,
    json: Json = False,
) -> None:
    """Pack artifacts, and the runtime if wanted, into one folder or archive to copy to an edge box."""
    from edgesmith import api, console
    from edgesmith.units import format_bytes

    made = api.bundle(
        models,
        out=out,
        runtime=runtime,
        wheels=wheels,
        platform=platform,
        memory=memory,
        progress=console.ConsoleProgress(),
    )
    if json:
        console.print_json(made.to_json())
        return
    parts = {"models": made.model_bytes, "runtime": made.runtime_bytes, "wheels": made.wheel_bytes}
    facts = {"bundle": str(made.path), "serves": ", ".join(made.models)}
    facts |= {"over the air": format_bytes(made.size_bytes)} if made.sha256 else {}
    facts |= {"on disk": format_bytes(made.unpacked_bytes)}
    if made.memory_bytes:
        peaks = [f"{label} {format_bytes(size)}" for label, size in made.memory_bytes.items()]
        facts["in memory"] = f"{', '.join(peaks)} (peak of a process that answers)"
    facts |= {name: format_bytes(size) for name, size in parts.items() if size}
    facts |= {"libraries": ", ".join(made.libraries)} if made.libraries else {}
    facts |= {"sha256": made.sha256} if made.sha256 else {}
    console.print_facts(facts)


def unbundle(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Bundle: .tar.zst, .tar.gz or .tar.")],
    out: Out,
    json: Json = False,
) -> None:
    """Unpack a bundle, every file checked against its hash as it is written; all of it appears, or nothing."""
    from edgesmith import console
    from edgesmith.api.serve import unbundle as unpack
    from edgesmith.units import format_bytes

    done = unpack(archive, out=out, progress=console.ConsoleProgress())
    if json:
        console.print_json(done.to_json())
        return
    sizes = f"{format_bytes(done.archive_bytes)} → {format_bytes(done.unpacked_bytes)}"
    console.print_facts(
        {"bundle": str(done.path), "serves": ", ".join(done.models), "files": f"{done.num_files}, {sizes}"}
    )
