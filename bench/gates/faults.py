"""What excuses an artifact, or leaves a measurement open: a machine that others used, and times that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError

if TYPE_CHECKING:
    from bench.machine.conditions import Conditions
    from bench.scenarios.latency import Latency

__all__ = [
    "MAX_DRIFT",
    "MAX_WAITING",
    "UNSETTLED",
    "busy_machine",
    "count_threads",
    "drifting",
    "refuse_not_positive",
]

UNSETTLED = "the engine never ran at one speed during warm-up (three windows within 5 %): the machine is too busy"
MAX_DRIFT = 0.1
"""How much the CPU time of a request may change while it is timed, as a share."""
MAX_WAITING = 0.1
"""Share of the time without a processor, from which on slow requests may be the machine's fault."""


def busy_machine(conditions: Conditions | None) -> str:
    """Say why times may be long for reasons that are not the artifact's; empty if none is known."""
    if conditions is None:
        return ""
    if conditions.steal_share is not None and conditions.steal_share > MAX_WAITING:
        return f"the hypervisor gave {conditions.steal_share:.0%} of the processor time to other guests"
    if conditions.num_throttled:
        return f"the CPU quota was used up {conditions.num_throttled:,} times"
    if conditions.own_wait_share is not None:  # pressure counts the others' waiting too, which excuses nothing
        if conditions.own_wait_share > MAX_WAITING:
            return f"the measurement itself waited for a processor {conditions.own_wait_share:.0%} of the time"
    elif conditions.cpu_pressure_share is not None and conditions.cpu_pressure_share > MAX_WAITING:
        return f"tasks waited for a processor {conditions.cpu_pressure_share:.0%} of the time"
    return ""


def drifting(latency: Latency) -> str:
    """Say so where the engine did not run at one speed while it was timed; empty if it did, or nothing is known."""
    if latency.drift is None or abs(latency.drift) <= MAX_DRIFT:
        return ""
    return (
        f"the CPU time of a request changed by {latency.drift:+.0%} from the first to the last third of the run: "
        f"the engine or the machine had not settled, and {MAX_DRIFT:.0%} is allowed"
    )


def count_threads(threads: int) -> str:
    """Write how many threads an engine had."""
    return f"{threads} thread{'s' if threads != 1 else ''}"


def refuse_not_positive(times: NDArray[np.number], what: str) -> None:
    """Raise an `ArtifactError` unless every time is a finite number above 0."""
    broken = np.flatnonzero(~(np.isfinite(times) & (np.asarray(times) > 0)))
    if len(broken):
        raise ArtifactError(
            f"{what}: sample {broken[0] + 1:,} of {len(times):,} is {times[broken[0]]}, which is no time",
            mend="Measure again: `edgesmith bench`.",
        )
