"""Load tests of a running server: second by second, percentiles with failures counted, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.gates.verdict import show
from bench.report.blocks import Block, Cell, Figure, Items, Section, Table, Text, keep_filled
from bench.report.data import TargetReport
from bench.report.figures import count, meanwhile, show_percentiles, show_rate, show_short
from bench.report.plots import Second, Series, plot_ecdf, plot_percentiles, plot_timeline
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import bound_percentile

if TYPE_CHECKING:
    from bench.load.result import LoadResult

__all__ = ["show_loads"]

_CURVE = (50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.0, 98.0, 98.5, 99.0, 99.5, 99.7, 99.9)
_TABLE = (50.0, 90.0, 95.0, 99.0, 99.9)
_MAX_SECONDS = 120


def show_loads(target: TargetReport) -> list[Section]:
    """Each load test: its timeline, percentiles and failures."""
    return [_load(load) for load in target.loads]


def _load(load: LoadResult) -> Section:
    blocks: list[Block] = [Text(_how(load))]
    if not load.is_open_loop_kept:
        blocks.append(Text(f"This run proves nothing: {load.why_not_kept}.", is_warning=True))
    bounds = [load.percentile(percentile) for percentile in _CURVE]
    head = ("run", "failed", "asked for/s", "sent/s", *(f"p{percentile:g}, ms" for percentile in _TABLE))
    picked = show_percentiles([one for one in bounds if one.percentile in _TABLE], load.limit_ms)
    failed = f"{load.num_failed:,} ({show(100 * load.num_failed / max(1, load.num_requests))} %)"
    row = (count(load.num_requests, "request"), failed, show_rate(load.rate), show_rate(load.rate_sent), *picked)
    blocks.append(Table(head=head, rows=(row,), is_stacked=True))
    if load.failures:
        rows = tuple((one.name, f"{one.count:,}", one.sample) for one in load.failures)
        blocks.append(Table(head=("failure", "requests", "the first of them"), rows=rows, num_text=3))
    limit = None if load.limit_ms is None else (load.limit_percentile, load.limit_ms)
    if seconds := _seconds(load):
        svg = plot_timeline(seconds, limit=load.limit_ms, percentile=load.limit_percentile)
        blocks.append(Figure(caption="Second by second, by when each request was to be sent.", svg=svg))
    if percentiles := plot_percentiles([("requests", "a", bounds)], limit=limit):
        caption = "Percentiles towards the tail, failures later than any; the band is bounds, each at 99 %."
        blocks.append(Figure(caption=caption, svg=percentiles))
    answered = np.where(load.outcome == 0, load.wall_ns / 1e6, np.inf)
    if np.isfinite(answered).any():
        svg = plot_ecdf([Series(name="requests", style="a", values=answered)], limit=load.limit_ms)
        blocks.append(Figure(caption="Share of requests answered within a time; a failure never is.", svg=svg))
    blocks += _streams(load)
    if load.notes:
        blocks.append(Items(load.notes))
    return Section(title=f"Load test: {load.shape.description}", level=3, blocks=tuple(blocks))


def _how(load: LoadResult) -> str:
    parts = [
        f"{load.url} ({load.protocol})",
        load.payload,
        f"{count(load.num_workers, 'worker')} of the load generator on {load.machine.name}",
        f"99 % of the requests left within {show(load.lag_p99_ns / 1e6, rounding='up')} ms of when they were due",
        f"the generator took {show_short(load.client_cpu_us)} µs of CPU time a request",
    ]
    server = load.server.get("name") or load.server.get("model")
    parts += [f"server: {server}"] if isinstance(server, str) else []
    return "; ".join(parts) + ". Times count from when a request was due." + meanwhile(load.conditions)


def _seconds(load: LoadResult) -> list[Second]:
    """The timeline, several seconds together in a long run: the worst p99 of them, the middle median."""
    seconds = load.timeline()
    step = max(1, -(-len(seconds) // _MAX_SECONDS))
    found = []
    for start in range(0, len(seconds), step):
        together = seconds[start : start + step]
        medians = [one.p50_ms for one in together if one.p50_ms is not None]
        tails = [one.p99_ms for one in together if one.p99_ms is not None]
        found.append(
            Second(
                start_s=float(together[0].second),
                num_sent=round(sum(one.num_sent for one in together) / len(together)),
                num_failed=round(sum(one.num_failed for one in together) / len(together)),
                p50_ms=float(np.median(medians)) if medians else None,
                p99_ms=max(tails) if tails else None,
            )
        )
    return found


def _streams(load: LoadResult) -> list[Block]:
    """Time to the first token and between tokens."""
    if load.ttft_ns is None or load.itl_ns is None or load.num_tokens is None or not len(load.itl_ns):
        return []
    first_ms = np.where((load.outcome == 0) & (load.ttft_ns >= 0), load.ttft_ns / 1e6, np.inf)
    rows: list[tuple[Cell | None, ...]] = []
    for name, times_ms in (("to the first token", first_ms), ("between two tokens", load.itl_ns / 1e6)):
        bounds = [
            bound_percentile(times_ms, percentile, 0.99, percentile_inflation(times_ms, percentile))
            for percentile in _TABLE
        ]
        rows.append((name, *show_percentiles(bounds)))
    table = keep_filled(("ms", *(f"p{percentile:g}" for percentile in _TABLE)), rows, is_stacked=True)
    num_tokens = int(load.num_tokens[load.outcome == 0].sum())
    return [Text(f"{count(num_tokens, 'token')} in answers without a failure."), *([table] if table else [])]
