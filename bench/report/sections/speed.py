"""How long requests take: each scenario's distribution, and the comparison in turns with the baseline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.faults import drifting
from bench.gates.verdict import Verdict, show
from bench.report.blocks import Block, Cell, Figure, Section, Table, Text, keep_filled
from bench.report.data import TargetReport
from bench.report.figures import count, meanwhile, show_bounds, show_ms, show_percentiles, show_significant
from bench.report.plots import Series, plot_ecdf, plot_histogram, plot_percentiles, plot_turns
from bench.stats.percentiles import PercentileBounds

if TYPE_CHECKING:
    from bench.duet.duet import Duet
    from bench.scenarios.latency import Latency

__all__ = ["find_limit", "show_duets", "show_latencies"]

_CURVE = (50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.0, 98.0, 98.5, 99.0, 99.3, 99.5, 99.7, 99.8, 99.9)
_TABLE = (50.0, 90.0, 95.0, 99.0, 99.9)


def find_limit(verdicts: Sequence[Verdict], latency: Latency) -> tuple[float, float] | None:
    """Percentile and milliseconds of the gate that was judged on these very samples."""
    for one in verdicts:
        found = re.search(r"\bp(\d+(?:\.\d+)?)\b", f"{one.gate} {one.reason}")
        if "latency" not in one.gate or one.unit != "ms" or found is None or one.num_samples != latency.num_requests:
            continue
        percentile = float(found[1])
        if one.machine in (None, latency.machine.name) and one.estimate == latency.percentile(percentile).estimate:
            return percentile, one.threshold
    return None


def show_latencies(target: TargetReport) -> list[Section]:
    """Each scenario's samples, the baseline's beside them where it was measured in the same way."""
    return [_latency(target, latency, _beside(latency, target.baseline_latencies)) for latency in target.latencies]


def _beside(latency: Latency, others: Sequence[Latency]) -> Latency | None:
    wanted = (latency.scenario, latency.rate, latency.machine.name)
    return next((one for one in others if (one.scenario, one.rate, one.machine.name) == wanted), None)


def _latency(target: TargetReport, latency: Latency, baseline: Latency | None) -> Section:
    rate = latency.rate
    title = {"single": "Latency, one client"}.get(latency.scenario, f"Latency, {latency.scenario}")
    if rate is not None:
        title = f"Latency at {show_significant(rate)} requests a second"
    if len({one.machine.name for one in target.latencies}) > 1:
        title += f", {latency.machine.name}"
    both = [("baseline", "b", baseline)] if baseline is not None else []
    both.append((target.name, "a", latency))
    curves = [(name, style, [one.percentile(p) for p in _CURVE]) for name, style, one in both if one is not None]
    series = [Series(name=name, style=style, values=one.wall_ns / 1e6) for name, style, one in both if one is not None]
    limit = find_limit(target.verdicts, latency)
    limit_ms = limit[1] if limit else None
    blocks: list[Block] = [Text(_how(latency)), *_warnings(latency), _table(curves, both, limit_ms)]
    if percentiles := plot_percentiles(curves, limit=limit):
        caption = "Percentiles towards the tail; the band is the bounds, where the samples support both."
        blocks.append(Figure(caption=caption, svg=percentiles))
    blocks.append(Figure(caption="Share of requests answered within a time.", svg=plot_ecdf(series, limit=limit_ms)))
    blocks.append(Figure(caption="How often each time occurred.", svg=plot_histogram(series, limit=limit_ms)))
    return Section(title=title, level=3, blocks=tuple(blocks))


def _how(latency: Latency) -> str:
    rate = latency.rate
    loop = "the next request starts when the last one is answered"
    if rate is not None:
        arrivals = f"arrivals at {show_significant(rate)} a second whatever the engine does"
        loop = f"{arrivals}; times count from the intended start"
    parts = [
        f"{latency.engine}; {count(latency.num_requests, 'request')} after {latency.num_warm_up:,} to warm up; {loop}"
    ]
    parts.append(latency.inputs)
    parts.append(count(latency.threads, "thread"))
    if latency.drift is not None:
        change = f"{100 * latency.drift:+.1f}".replace("-", "−")
        parts.append(f"CPU time {change} % from the first to the last third")
    if latency.utilization is not None:
        parts.append(f"busy {show(100 * latency.utilization, digits=0)} % of the time")
    if latency.energy_mj is not None:
        parts.append(f"{show(latency.energy_mj)} mJ a request")
    if latency.overhead_ns:
        parts.append(
            f"an engine that answers at once takes {show(latency.overhead_ns / 1e3, digits=1)} µs in the same loop"
        )
    below = "distribution-free bounds, each at 99 % confidence, or how many requests the upper one needs"
    return f"{'; '.join(parts)}. Below each percentile: {below}.{meanwhile(latency.conditions)}"


def _warnings(latency: Latency) -> list[Block]:
    found: list[Block] = []
    if not latency.is_settled:
        found.append(Text("The engine never settled during warm-up: take these times with care.", is_warning=True))
    if drift := drifting(latency):
        found.append(Text(f"{drift[0].upper()}{drift[1:]}.", is_warning=True))
    if latency.is_saturated:
        found.append(Text("Requests came faster than the engine answers: the queue grew to the end.", is_warning=True))
    if latency.waiting_share > 0.1:
        waited = f"Requests waited {latency.waiting_share:.0%} of the time for a processor that others used."
        found.append(Text(waited, is_warning=True))
    return found


def _table(
    curves: Sequence[tuple[str, str, Sequence[PercentileBounds]]],
    both: Sequence[tuple[str, str, Latency | None]],
    limit: float | None,
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (name, _, bounds), (_, _, latency) in zip(curves, both, strict=True):
        picked = [one for one in bounds if one.percentile in _TABLE]
        cpu = "–" if latency is None else f"{show(latency.cpu_ms)}"
        rows.append((name, *show_percentiles(picked, limit), cpu))
    return Table(head=("ms", *(f"p{one:g}" for one in _TABLE), "CPU, median"), rows=tuple(rows), is_stacked=True)


def show_duets(target: TargetReport) -> list[Section]:
    """The comparison in turns, with what noise alone shows."""
    return [_duet(target, duet) for duet in target.duets]


def _duet(target: TargetReport, duet: Duet) -> Section:
    cpu, wall, summary = duet.speedup(), duet.wall_speedup(), duet.summary()
    title = "Speed against the baseline, in turns"
    if len({one.machine.name for one in target.duets}) > 1:
        title += f", {duet.machine.name}"
    rows: list[tuple[Cell | None, ...]] = [
        (
            "CPU time",
            show_ms(summary["baseline_cpu_ms"]),
            show_ms(summary["artifact_cpu_ms"]),
            show_bounds(cpu, unit="×"),
        ),
        ("wall time", *_wall(duet), show_bounds(wall, unit="×")),
    ]
    head = ("of a request", "baseline", "artifact", "ratio (bounds at 95 %)")
    table = keep_filled(head, rows)
    turns = f"{count(duet.num_pairs, 'pair of turns', 'pairs of turns')} of {count(duet.turn_requests, 'request')}"
    how = f"{turns} in {count(duet.num_sessions, 'session')} of freshly opened engines; {duet.inputs}."
    blocks: list[Block] = [Text(how + meanwhile(duet.conditions))]
    if not duet.is_settled:
        blocks.append(Text("An engine never settled during warm-up: take these times with care.", is_warning=True))
    blocks.append(Text(f"Noise floor, measured in the same run: {duet.noise.summary}."))
    blocks += [table] if table else []
    limit = next((one.threshold for one in target.verdicts if one.gate.startswith("speed")), None)
    ratios = duet.baseline_cpu_ns / np.maximum(duet.artifact_cpu_ns, 1)
    svg = plot_turns(ratios, cpu, noise=duet.noise.percent / 100, limit=limit, sessions=duet.session)
    caption = "Each pair's ratio of CPU times; the band is the bounds of the estimate."
    blocks.append(Figure(caption=caption, svg=svg))
    return Section(title=title, level=3, blocks=tuple(blocks))


def _wall(duet: Duet) -> tuple[str | None, str | None]:
    per_request = 1e6 * duet.turn_requests
    medians = (float(np.median(times_ns)) / per_request for times_ns in (duet.baseline_wall_ns, duet.artifact_wall_ns))
    baseline, artifact = (show_ms(median) for median in medians)
    return baseline, artifact
