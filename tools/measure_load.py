"""Load a small server on this machine and print what the load generator costs and how late it sends.

    python tools/measure_load.py --rate 500 --seconds 8

prints a Markdown table. `--realtime` gives generator and server real-time priority, as root: it tells what the
generator does on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from bench.load import LoadPlan, LoadResult, constant, run_load
from bench.machine.machine import describe_machine

SERVER = Path(__file__).parents[1] / "tests" / "bench" / "load" / "server.py"
CASES = {
    "JSON, answers at once": {"delay_ms": 0},
    "JSON, answers after 5 ms": {"delay_ms": 5},
    "binary tensors": {"binary": True},
}


def measure(switches: dict[str, object], rate: float, seconds: float) -> LoadResult:
    """Load one server, of a process of its own."""
    server = subprocess.Popen([sys.executable, str(SERVER), json.dumps(switches)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v2/models/intent"
        return run_load(LoadPlan(url=url, shape=constant(rate, seconds)))
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Measure every case, print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--realtime", action="store_true")
    given = parser.parse_args()
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    print(f"{describe_machine().summary}; one worker, {given.rate:g} requests/s for {given.seconds:g} s\n")
    print("| server | CPU a request | sending lag p50 | p99 | p99.9 | failed | other processes' share of the CPUs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, switches in CASES.items():
        result = measure(switches, given.rate, given.seconds)
        lags = " | ".join(f"{result.lag_histogram.percentile(p) / 1e6:.2f} ms" for p in (50, 99, 99.9))
        conditions = result.conditions
        others = conditions.others_share if conditions else None
        shown = "—" if others is None else f"{others:.0%}"
        print(f"| {name} | {result.client_cpu_us:.0f} µs | {lags} | {result.num_failed} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
