"""The command that load-tests a server, or an artifact behind our own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.figures import show_load
from edgesmith.cli.options import Columns, DataFile, Json, Seed, Threads, headers, pairs
from edgesmith.cli.show import EXIT_BY_VERDICT

__all__ = ["load"]


def load(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL|ARTIFACT",
            help="The model's URL (…/v2/models/NAME), an OpenAI base (http://127.0.0.1:8000/v1), or an artifact, "
            "which is served here for as long as the test takes.",
        ),
    ],
    rate: Annotated[float, typer.Option(min=0.001, help="Requests that arrive in a second.")] = 10.0,
    duration: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds, of a search those of one step. \\[default: 20, or what --limit-ms needs]"),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="constant, soak, ramp (from --rate to --peak-rate) or spike (to --peak-rate).")
    ] = "constant",
    peak_rate: Annotated[float | None, typer.Option(min=0.001, help="Highest rate of a ramp or a spike.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find the highest rate that meets --limit-ms, from --rate on.")
    ] = False,
    limit_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Judge: the most that the percentile may be.")
    ] = None,
    percentile: Annotated[float, typer.Option(help="Which percentile is judged.")] = 99.0,
    data: DataFile = None,
    columns: Columns = None,
    artifact: Annotated[
        Path | None,
        typer.Option(
            metavar="ARTIFACT",
            help="What the server runs: its tokenizer makes the inputs, and the result is its evidence.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, where the URL does not say it.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one request.")] = 1,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Ask for generated tokens one by one.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a generated answer.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a request has failed.")] = 30.0,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Further header, also NAME:@FILE; repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that send.")] = 1,
    expect_workers: Annotated[
        int, typer.Option(min=0, help="Wait for so many `edgesmith load --worker` elsewhere instead.")
    ] = 0,
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Send for a master (--expect-workers); URL is its HOST[:PORT]."),
    ] = False,
    master_host: Annotated[
        str, typer.Option(metavar="HOST", help="Address on which those workers are awaited.")
    ] = "127.0.0.1",
    master_port: Annotated[int | None, typer.Option(help="Port of that address. \\[default: 5557]")] = None,
    web: Annotated[
        int | None, typer.Option("--web", metavar="PORT", help="Open Locust's web page on loopback.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Save the samples here, as evidence.")] = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Load-test a server with Locust, open loop: requests go out on time, whatever the server does."""
    from edgesmith import api, console

    if worker:
        from edgesmith.api.load import load_worker

        load_worker(url, progress=console.ConsoleProgress())
        return
    result = api.load(
        url,
        rate=rate,
        duration=duration,
        shape=shape,
        peak_rate=peak_rate,
        search=search,
        limit_ms=limit_ms,
        percentile=percentile,
        data=data,
        columns=pairs(columns),
        artifact=artifact,
        model=model,
        batch_size=batch_size,
        stream=stream,
        max_tokens=max_tokens,
        timeout=timeout,
        headers=headers(header),
        processes=processes,
        expect_workers=expect_workers,
        master_host=master_host,
        master_port=master_port,
        web_port=web,
        out=out,
        seed=seed,
        threads=threads,
        progress=console.ConsoleProgress(),
    )
    show_load(result, json)
    if result.is_interrupted:
        raise KeyboardInterrupt
    raise typer.Exit(EXIT_BY_VERDICT[result.outcome])
