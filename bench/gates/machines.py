"""Judge the gates whose figures belong to a machine: find the evidence of each, on each machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bench.gates.generation import judge_first_text, judge_writing
from bench.gates.latency import judge_latency, judge_load_latency
from bench.gates.sizes import judge_memory, judge_start
from bench.gates.speed import judge_cpu, judge_regression, judge_speed, judge_throughput
from bench.gates.verdict import Outcome, Verdict
from edgesmith.errors import UsageError
from edgesmith.gates import Gates, LatencyGate, MachineGates

if TYPE_CHECKING:
    from bench.gates.judge import Evidence
    from bench.load.result import LoadResult

__all__ = ["judge_machines"]

_STEADY = ("constant", "soak")


@dataclass(frozen=True, kw_only=True)
class _Question:
    """One gate, what it is judged on, and how."""

    kind: str
    """Name of the field under `gates:`."""
    name: str
    """Its place under `gates:`, unique among the machine's gates."""
    threshold: float
    unit: str
    at_least: bool
    found: Sequence[Any]
    """All evidence that fits, of any machine; each has a `machine`."""
    judge: Callable[[Sequence[Any]], Verdict]
    """Judges the evidence of one machine."""
    what: str
    """What the evidence is called."""
    command: str
    """What makes it."""
    takes_all: bool = False
    """Whether several measurements on one machine are judged together; else it must be a single one."""


def judge_machines(gates: Gates, evidence: Evidence) -> list[Verdict]:
    """Judge every gate of a machine on each machine that there is evidence of.

    A limit under `devices` takes the place of the general one of its kind on the machines that it names.

    Args:
        gates: The limits.
        evidence: What was measured, on whatever machines.

    Raises:
        UsageError: A general gate has no evidence, or one machine has several measurements of which one must count.
    """
    verdicts: list[Verdict] = []
    for question in _questions(gates, evidence):
        named = [pattern for pattern, limits in gates.devices.items() if question.kind in limits.kinds()]
        verdicts += _judge_general(question, named)
    for pattern, limits in gates.devices.items():
        for question in _questions(limits, evidence):
            verdicts += _judge_device(question, pattern, evidence)
    return verdicts


def _judge_general(question: _Question, named: Sequence[str]) -> list[Verdict]:
    by_machine = {
        machine: found
        for machine, found in _by_machine(question).items()
        if not any(fnmatchcase(machine, pattern) for pattern in named)
    }
    if not by_machine:
        measured = sorted({one.machine.name for one in question.found})
        elsewhere = f"; there are such of {', '.join(measured)}, which devices has limits for" if measured else ""
        raise UsageError(
            f"the {question.name} gate needs {question.what}{elsewhere}",
            mend=f"Make it with `edgesmith {question.command}`.",
        )
    return [
        replace(_judge_one(question, found), gate=_on(question.name, machine, by_machine))
        for machine, found in by_machine.items()
    ]


def _judge_device(question: _Question, pattern: str, evidence: Evidence) -> list[Verdict]:
    place = f"devices.{pattern}.{question.name}"
    by_machine = {machine: found for machine, found in _by_machine(question).items() if fnmatchcase(machine, pattern)}
    if not by_machine:
        return [_unmeasured(question, place, pattern, evidence)]
    return [
        replace(_judge_one(question, found), gate=_on(place, machine, by_machine))
        for machine, found in by_machine.items()
    ]


def _by_machine(question: _Question) -> dict[str, list[Any]]:
    """Machine's name → its evidence, in the order of the evidence."""
    found: dict[str, list[Any]] = {}
    for one in question.found:
        found.setdefault(one.machine.name, []).append(one)
    return found


def _on(name: str, machine: str, machines: Mapping[str, object]) -> str:
    return name if len(machines) == 1 else f"{name} [{machine}]"


def _judge_one(question: _Question, found: Sequence[Any]) -> Verdict:
    if len(found) > 1 and not question.takes_all:
        raise UsageError(
            f"the {question.name} gate has {len(found)} measurements on {found[0].machine.name} to choose from "
            f"({'; '.join(_describe(one) for one in found)}); which one counts is not for us to choose",
            mend="Keep the evidence that counts in a folder of its own and name it with --evidence.",
        )
    return question.judge(found)


def _describe(measurement: Any) -> str:
    rate = getattr(measurement, "rate", None)
    inputs = getattr(measurement, "inputs", None) or getattr(measurement, "url", "")
    return f"{inputs} at {rate:g} requests/s" if rate is not None else str(inputs)


def _unmeasured(question: _Question, place: str, pattern: str, evidence: Evidence) -> Verdict:
    """A device that nothing was measured on."""
    measured = sorted({one.machine.name for one in question.found})
    others = sorted({name for name in _machines(evidence) if name not in measured})
    known = f"there are such of {', '.join(measured)}" if measured else "there are none of any machine"
    if others:
        known += f", other measurements of {', '.join(others)}"
    return Verdict(
        gate=place,
        verdict=Outcome.INCONCLUSIVE,
        reason=(
            f"no {question.what} on a machine named like {pattern!r}; {known}. "
            f"`edgesmith {question.command}` on such a machine would settle it."
        ),
        unit=question.unit,
        threshold=question.threshold,
        estimate=None,
        bound=None,
        at_least=question.at_least,
    )


def _machines(evidence: Evidence) -> set[str]:
    parts = (evidence.latencies, evidence.loads, evidence.throughputs, evidence.starts, evidence.duets)
    return {one.machine.name for part in (*parts, evidence.generations) for one in part}


def _questions(limits: MachineGates, evidence: Evidence) -> Iterator[_Question]:
    """The gates that are set, in the order of the schema, each with its evidence."""
    yield from _of_processes(limits, evidence)
    for latency in limits.latency:
        yield _latency_question(latency, evidence, is_alone=len(limits.latency) == 1)
    yield from _of_requests(limits, evidence)
    yield from _of_writing(limits, evidence)
    yield from _of_turns(limits, evidence)


def _of_processes(limits: MachineGates, evidence: Evidence) -> Iterator[_Question]:
    if (memory := limits.memory) is not None:
        yield _Question(
            kind="memory",
            name="memory",
            threshold=memory.max_mb,
            unit="MB",
            at_least=False,
            found=evidence.starts,
            judge=lambda found: judge_memory(memory, found),
            what="starts of the artifact in fresh processes",
            command="bench",
            takes_all=True,
        )
    if (start := limits.start) is not None:
        yield _Question(
            kind="start",
            name="start",
            threshold=start.max_ms,
            unit="ms",
            at_least=False,
            found=evidence.starts,
            judge=lambda found: judge_start(start, found),
            what="starts of the artifact in fresh processes",
            command="bench",
            takes_all=True,
        )


def _of_requests(limits: MachineGates, evidence: Evidence) -> Iterator[_Question]:
    if (throughput := limits.throughput) is not None:
        yield _Question(
            kind="throughput",
            name="throughput",
            threshold=throughput.min_per_second,
            unit="/s",
            at_least=True,
            found=evidence.throughputs,
            judge=lambda found: judge_throughput(throughput, found[0]),
            what="throughputs of the artifact",
            command="bench --scenario offline",
        )
    if (cpu := limits.cpu) is not None:
        yield _Question(
            kind="cpu",
            name="cpu",
            threshold=cpu.max_ms,
            unit="ms",
            at_least=False,
            found=[one for one in evidence.latencies if one.scenario == "single"],
            judge=lambda found: judge_cpu(cpu, found[0]),
            what="latencies of the artifact under scenario single",
            command="bench",
        )


def _of_writing(limits: MachineGates, evidence: Evidence) -> Iterator[_Question]:
    gate = limits.generation
    if gate is None:
        return
    are_both = gate.min_tokens_per_second is not None and gate.max_ttft_ms is not None
    whole = _Question(
        kind="generation",
        name="generation",
        threshold=0.0,
        unit="/s",
        at_least=True,
        found=evidence.generations,
        judge=lambda found: judge_writing(gate, found[0]),
        what="times of written answers",
        command="bench --scenario generate",
    )
    if gate.min_tokens_per_second is not None:
        name = "generation.min_tokens_per_second" if are_both else "generation"
        yield replace(whole, name=name, threshold=gate.min_tokens_per_second)
    if gate.max_ttft_ms is not None:
        yield replace(
            whole,
            name="generation.max_ttft_ms" if are_both else "generation",
            threshold=gate.max_ttft_ms,
            unit="ms",
            at_least=False,
            judge=lambda found: judge_first_text(gate, found[0]),
        )


def _of_turns(limits: MachineGates, evidence: Evidence) -> Iterator[_Question]:
    if (speed := limits.speed) is not None:
        yield _Question(
            kind="speed",
            name="speed",
            threshold=speed.min_speedup,
            unit="×",
            at_least=True,
            found=evidence.duets,
            judge=lambda found: judge_speed(speed, found[0]),
            what="a comparison with the baseline",
            command="bench --against BASELINE",
        )
    if (regression := limits.regression) is not None and regression.max_slowdown is not None:
        yield _Question(
            kind="regression",
            name="regression.max_slowdown",
            threshold=regression.max_slowdown,
            unit="share",
            at_least=False,
            found=evidence.duets,
            judge=lambda found: judge_regression(regression, found[0]),
            what="a comparison with the baseline",
            command="bench --against BASELINE",
        )


def _latency_question(gate: LatencyGate, evidence: Evidence, *, is_alone: bool) -> _Question:
    at = "" if gate.rate is None else f"@{gate.rate:g}"
    name = "latency" if is_alone else f"latency.{gate.scenario}{at}.p{gate.percentile:g}"
    asked = "" if gate.rate is None else f" at {gate.rate:g} requests/s"
    if gate.scenario == "load":
        return _Question(
            kind="latency",
            name=name,
            threshold=gate.max_ms,
            unit="ms",
            at_least=False,
            found=[one for one in evidence.loads if _is_load_of(gate, one)],
            judge=lambda found: judge_load_latency(gate, found[0]),
            what=f"a load test{asked}" + (", constant or soak" if asked else ""),
            command="load URL" + (f" --rate {gate.rate:g}" if gate.rate is not None else ""),
        )
    rate = f" --rate {gate.rate:g}" if gate.rate is not None else ""
    return _Question(
        kind="latency",
        name=name,
        threshold=gate.max_ms,
        unit="ms",
        at_least=False,
        found=[one for one in evidence.latencies if one.scenario == gate.scenario and _has_rate(gate, one.rate)],
        judge=lambda found: judge_latency(gate, found[0]),
        what=f"latencies of the artifact under scenario {gate.scenario}{asked}",
        command="bench" + (f" --scenario {gate.scenario}{rate}" if gate.scenario != "single" else ""),
    )


def _is_load_of(gate: LatencyGate, load: LoadResult) -> bool:
    """Whether a load was at the gate's rate all the time: the mean of a ramp or a spike is a rate of no moment."""
    return gate.rate is None or (load.shape.name in _STEADY and _has_rate(gate, load.rate))


def _has_rate(gate: LatencyGate, rate: float | None) -> bool:
    return gate.rate is None or (rate is not None and math.isclose(rate, gate.rate, rel_tol=1e-6))
