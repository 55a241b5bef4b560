"""Comparisons with chosen figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.duet.duet import Duet
from bench.machine.conditions import Conditions
from bench.machine.machine import describe_machine

MACHINE = describe_machine()
CONDITIONS = Conditions(
    seconds=20.0,
    cpu_pressure_share=0.1,
    steal_share=None,
    others_share=0.2,
    governor=None,
    load_before=0.5,
    load_after=0.6,
    num_throttled=0,
)


def built(
    slowdown: float = 0.0,
    *,
    luck: float = 0.0,
    noise: float = 0.0,
    twin: float = 0.0,
    num_sessions: int = 10,
    session_pairs: int = 12,
    seed: int = 0,
) -> Duet:
    """Turns of 8 ms: `luck` is the spread between sessions, `noise` that of a turn, `twin` what the twin is slower."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(num_sessions), session_pairs)

    def times(slower: float) -> NDArray[np.int64]:
        logs = rng.normal(0, luck, num_sessions)[session] + rng.normal(0, noise, len(session))
        return np.round(8e6 * (1 + slower) * np.exp(logs)).astype(np.int64)

    baseline, second, artifact = times(0.0), times(twin), times(slowdown)
    return Duet(
        baseline_digest="sha256:fp32",
        artifact_digest="sha256:int8",
        inputs="1×128 tokens of real text",
        turn_requests=2,
        baseline_cpu_ns=baseline,
        twin_cpu_ns=second,
        artifact_cpu_ns=artifact,
        baseline_wall_ns=baseline * 2,
        twin_wall_ns=second * 2,
        artifact_wall_ns=artifact * 2,
        session=session,
        overhead_cpu_ns=120,
        overhead_wall_ns=130,
        is_settled=True,
        machine=MACHINE,
        conditions=CONDITIONS,
    )
