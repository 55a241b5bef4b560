"""Workers' recordings as one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.histogram import Histogram
from bench.load.plan import LoadPlan
from bench.load.recording import COLUMNS, Recording
from bench.load.result import SERVED_HERE, Failure, LoadResult
from bench.load.target import Target
from bench.machine.conditions import Conditions
from bench.machine.machine import Machine

__all__ = ["gather"]


def gather(
    plan: LoadPlan,
    target: Target,
    recordings: Sequence[Recording],
    *,
    begin_uncertainty_s: float,
    stopped_because: str,
    notes: Sequence[str],
    machine: Machine,
    conditions: Conditions | None,
) -> LoadResult:
    """Merge what the workers recorded.

    Args:
        plan: The load.
        target: What was sent.
        recordings: Of the workers that reported at all.
        begin_uncertainty_s: How much later than another a worker may have begun.
        stopped_because: Why the load is not complete; empty if it is.
        notes: What the user should know.
        machine: Of this process.
        conditions: While the load ran.
    """
    rows, failures = _merge_rows(recordings)
    failures = tuple(replace(failure, sample=plan.hide_secrets(failure.sample)) for failure in failures)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    columns = {name: np.ascontiguousarray(rows[:, index]) for index, name in enumerate(COLUMNS)}
    is_stream = bool(target.contract.get("is_stream"))
    histogram, lag_histogram = _merge_histograms(recordings)
    states = [recording.state for recording in recordings]
    num_requests = sum(int(state["num_requests"]) for state in states)
    cpu_ns = sum(int(state["cpu_ns"]) for state in states)
    gaps = [recording.gaps for recording in recordings]
    dropped = num_requests - len(rows)
    own = [SERVED_HERE] if plan.is_served_here else []
    said = [*own, *target.notes, *notes, *(note for state in states for note in state["notes"])]
    if begin_uncertainty_s:
        said.append(f"a worker may have begun up to {begin_uncertainty_s * 1e3:.1f} ms after the others")
    num_tokens, are_chunks = _count_tokens(columns)
    if dropped:
        said.append(f"{dropped:,} of {num_requests:,} requests are in the histogram only, not one by one")
    return LoadResult(
        url=plan.url,
        protocol=target.protocol,
        payload=target.payload,
        server=dict(target.server),
        shape=plan.shape,
        seed=plan.seed,
        num_workers=plan.num_workers,
        timeout_s=plan.timeout_s,
        limit_ms=plan.limit_ms,
        limit_percentile=plan.limit_percentile,
        start_ns=columns["start_ns"],
        wall_ns=columns["wall_ns"],
        lag_ns=columns["lag_ns"],
        outcome=columns["outcome"],
        ttft_ns=columns["ttft_ns"] if is_stream else None,
        num_tokens=num_tokens if is_stream else None,
        tokens_are_chunks=is_stream and are_chunks,
        itl_ns=np.concatenate(gaps) if is_stream and gaps else np.empty(0, np.int64) if is_stream else None,
        failures=failures,
        histogram=histogram,
        lag_histogram=lag_histogram,
        num_requests=num_requests,
        num_not_sent=sum(int(state["num_not_sent"]) for state in states),
        client_cpu_us=cpu_ns / num_requests / 1e3 if num_requests else 0.0,
        max_in_flight=max((int(state["max_in_flight"]) for state in states), default=0),
        num_connections=sum(int(state["num_connections"]) for state in states),
        is_complete=not stopped_because,
        stopped_because=plan.hide_secrets(stopped_because),
        begin_uncertainty_s=begin_uncertainty_s,
        notes=tuple(dict.fromkeys(plan.hide_secrets(note) for note in said)),
        machine=machine,
        conditions=conditions,
    )


def _count_tokens(columns: Mapping[str, NDArray[np.int64]]) -> tuple[NDArray[np.int64], bool]:
    """Give each stream's tokens and whether they are only pieces of text: one server's answer without a count is so."""
    is_ok = columns["outcome"] == 0
    if not is_ok.any() or (columns["num_tokens"][is_ok] < 0).any():
        return columns["num_chunks"], True
    return np.maximum(columns["num_tokens"], 0), False


def _merge_rows(recordings: Sequence[Recording]) -> tuple[NDArray[np.int64], tuple[Failure, ...]]:
    """Put all rows together, the outcomes' codes meaning the same in all."""
    failures: dict[str, Failure] = {}
    parts = [np.empty((0, len(COLUMNS)), np.int64)]
    outcome = COLUMNS.index("outcome")
    for recording in recordings:
        codes = [0]
        for name, count, sample in recording.state["failures"]:
            known = failures.setdefault(name, Failure(name=name, count=0, sample=sample))
            failures[name] = replace(known, count=known.count + count)
            codes.append(list(failures).index(name) + 1)
        rows = recording.rows.copy()
        rows[:, outcome] = np.array(codes)[rows[:, outcome]]
        parts.append(rows)
    return np.concatenate(parts), tuple(failures.values())


def _merge_histograms(recordings: Sequence[Recording]) -> tuple[Histogram, Histogram]:
    """Add up the workers' histograms of durations and of lags."""
    merged = Histogram(), Histogram()
    for recording in recordings:
        for total, part in zip(merged, recording.histograms(), strict=True):
            total.merge(part)
    return merged
