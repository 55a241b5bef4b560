"""What an engine gets done: throughput, generation, batches and lengths, and how near it is to the machine's limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.verdict import show
from bench.report.blocks import Bar, Block, Cell, Heat, Items, Section, Table, Text, keep_filled
from bench.report.data import TargetReport
from bench.report.figures import MB, count, largest, meanwhile, show_ms, show_percentiles, show_rate, show_short

if TYPE_CHECKING:
    from bench.machine.limits import Limits
    from bench.scenarios.generation import Generation
    from bench.scenarios.sweep import SweepRow
    from bench.scenarios.throughput import Throughput

__all__ = ["show_generation", "show_limits", "show_sweep", "show_throughput"]

_MAX_OPERATORS = 12


def show_throughput(target: TargetReport) -> Section | None:
    """Examples a second when all of them are at hand."""
    if not target.throughputs:
        return None
    rows: list[tuple[Cell | None, ...]] = []
    notes: list[Block] = []
    for ours in target.throughputs:
        wanted = (ours.batch_size, ours.machine.name)
        theirs = next((o for o in target.baseline_throughputs if (o.batch_size, o.machine.name) == wanted), None)
        for name, one in (("baseline", theirs), (target.name, ours)):
            if one is not None:
                rows.append((name, *_throughput_cells(one)))
        how = f"{ours.engine}; {ours.inputs}; {count(ours.rounds, 'round')}, {count(ours.threads, 'thread')}."
        notes.append(Text(how + meanwhile(ours.conditions)))
        if not ours.is_settled:
            notes.append(Text("The engine never settled during warm-up: take these rates with care.", is_warning=True))
        if theirs is not None:
            before, after = theirs.examples_per_second().estimate, ours.examples_per_second().estimate
            faster, ratio = ("more", after / before) if after >= before else ("fewer", before / after)
            notes.append(Text(f"{target.name} answers {show(ratio)}× {faster} examples a second than the baseline."))
    head = ("offline", "batch", "examples/s", "bounds at 99 %", "CPU an example", "energy an example, mJ")
    table = keep_filled(head, rows)
    return Section(title="Throughput", level=3, blocks=(*notes, *([table] if table else [])))


def _throughput_cells(one: Throughput) -> tuple[Cell | None, ...]:
    bounds = one.examples_per_second()
    lower = show_rate(bounds.lower) if bounds.lower else "–"
    upper = show_rate(bounds.upper) if np.isfinite(bounds.upper) else "–"
    energy = None if one.energy_mj is None else show_short(one.energy_mj)
    spread = None if lower == upper == "–" else f"{lower} to {upper}"
    return (str(one.batch_size), show_rate(bounds.estimate), spread, show_ms(one.cpu_ms), energy)


def show_generation(target: TargetReport) -> Section | None:
    """Time to the first token, between tokens, and tokens a second."""
    ours = target.generation
    if ours is None:
        return None
    rows: list[tuple[Cell | None, ...]] = []
    for name, one in (("baseline", target.baseline_generation), (target.name, ours)):
        if one is not None:
            rows += _generation_rows(name, one)
    table = keep_filled(("model", "ms", "p50", "p90", "p99"), rows, num_text=2)
    rates: list[tuple[Cell | None, ...]] = []
    for name, one in (("baseline", target.baseline_generation), (target.name, ours)):
        if one is not None:
            written = one.generated_tokens_per_second
            rates.append(
                (
                    name,
                    show_rate(one.prompt_tokens_per_second),
                    None if written is None else show_rate(written),
                    show_ms(one.cpu_ms_per_token),
                    None if one.energy_mj is None else show_short(one.energy_mj),
                )
            )
    head = ("model", "prompt tokens/s", "generated tokens/s", "CPU a token", "energy a token, mJ")
    speeds = keep_filled(head, rates, is_stacked=True)
    answers = f"{count(ours.num_requests, 'answer')} of up to {count(ours.max_tokens, 'token')}"
    inputs = re.sub(r"\b(\d+) to \1 tokens", r"\1 tokens", ours.inputs)
    said = f"{ours.engine}; {answers}; {inputs}."
    limits = target.generation_limits
    reached = "" if limits is None else f" Writing reaches {limits.sentence}; {limits.prompt_sentence}."
    blocks: list[Block] = [Text(said + reached + meanwhile(ours.conditions))]
    blocks += [one for one in (speeds, table) if one is not None]
    return Section(title="Generation", level=3, blocks=tuple(blocks))


def _generation_rows(name: str, one: Generation) -> list[tuple[Cell | None, ...]]:
    figures = (("ttft", "to the first token"), ("tpot", "per token, mean of an answer"), ("itl", "between two tokens"))
    return [
        (name, title, *show_percentiles([one.percentile(kind, percentile) for percentile in (50.0, 90.0, 99.0)]))
        for kind, title in figures
    ]


def show_sweep(target: TargetReport) -> Section | None:
    """Every batch size and length as a heat table."""
    sweep = target.sweep
    if sweep is None or not sweep.rows:
        return None
    found = {(row.batch_size, row.length): row for row in sweep.rows}
    batches = sorted({row.batch_size for row in sweep.rows})
    lengths = sorted({row.length for row in sweep.rows}, key=lambda length: -1 if length is None else length)
    head = ("batch \\ tokens", *("as they are" if length is None else f"{length:,}" for length in lengths))
    texts = "real texts, of their own length or cut and joined to a fixed one"
    said = f"{sweep.engine}, {count(sweep.threads, 'thread')}; {texts}.{meanwhile(sweep.conditions)}"
    blocks: list[Block] = [Text(said)]
    for caption, value in _SWEPT:
        values = {key: figure for key, row in found.items() if (figure := value(row)) is not None}
        if not values:
            continue
        most = largest(list(values.values()))
        rows = tuple(
            (f"{batch:,}", *(_heat(values.get((batch, length)), most) for length in lengths)) for batch in batches
        )
        blocks.append(Table(head=head, rows=rows, caption=caption))
    if sweep.left_out:
        blocks += [Text("Left out:"), Items(sweep.left_out)]
    return Section(title="Batch sizes and lengths", level=3, blocks=tuple(blocks))


_SWEPT: tuple[tuple[str, Callable[[SweepRow], float | None]], ...] = (
    ("Examples a second; the darker, the more.", lambda row: row.examples_per_second),
    ("CPU time of an example, ms; the darker, the longer.", lambda row: row.cpu_ms),
    (
        "Share of the machine's limit, %; the darker, the nearer.",
        lambda row: None if row.share is None else 100 * row.share,
    ),
)


def _heat(value: float | None, most: float) -> Cell:
    return "–" if value is None else Heat(show_short(value), value / most)


def show_limits(target: TargetReport) -> Section | None:
    """How near to the machine's limit, what binds, and which operators take the time."""
    limits = target.limits
    if limits is None:
        return None
    rows: list[tuple[Cell | None, ...]] = []
    for name, one in (("baseline", target.baseline_limits), (target.name, limits)):
        if one is not None:
            rows.append(_limit_cells(name, one))
    head = ("one request", "at the limit", "measured", "share of the limit", "bound by", "fp32", "int8", "weights read")
    table = keep_filled(head, rows, is_stacked=True)
    peaks = limits.peaks
    said = (
        f"{target.name} reaches {limits.sentence}. The machine's peaks with {count(peaks.threads, 'thread')}: "
        f"{show_short(peaks.fp32_gflop_s)} GFLOP/s in fp32, {show_short(peaks.int8_gop_s)} GOP/s in int8, "
        f"{show_short(peaks.read_gb_s)} GB/s read, {show_short(peaks.copy_gb_s)} GB/s copied."
    )
    blocks: list[Block] = [Text(said), *([table] if table else [])]
    if limits.operators:
        blocks.append(_operators(limits))
    return Section(title="Share of the machine's limit", level=3, blocks=tuple(blocks))


def _limit_cells(name: str, one: Limits) -> tuple[Cell | None, ...]:
    work = one.operations
    return (
        name,
        show_ms(one.ideal_ms),
        show_ms(one.measured_ms),
        Bar(f"{show(100 * one.share, digits=1)} %", one.share),
        one.bound_by,
        f"{show_short(work.fp32_macs / 1e6)} M MAC" if work.fp32_macs else None,
        f"{show_short(work.int8_macs / 1e6)} M MAC" if work.int8_macs else None,
        f"{show_short(work.weight_bytes / MB)} MB",
    )


def _operators(limits: Limits) -> Table:
    most = max(operator.share for operator in limits.operators)
    rows = tuple(
        (
            operator.operator,
            f"{operator.num_nodes:,}",
            show_ms(operator.ms) or "–",
            Bar(f"{show(100 * operator.share, digits=1)} %", operator.share / max(most, 1e-12)),
        )
        for operator in limits.operators[:_MAX_OPERATORS]
    )
    return Table(head=("operator", "nodes", "time in a request", "share of the time"), rows=rows)
