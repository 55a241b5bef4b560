"""Measure the server: what a request costs beyond the engine, throughput, start, overload, life cycle, and peers.

    python tools/measure_serve.py
    python tools/measure_serve.py --only overhead throughput --scale 0.2 --no-peers

prints Markdown tables and at the end what must be reached of them; it ends with 1 if something is not, with 3 if an
interval says neither. Server and client have a core each. `--scale` shortens everything; figures to publish are made
with 1, on a machine that does nothing else. The peers run in `.venv-peers`, clients in `.venv-clients`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serve_bench import clients, generation, hostile, lifecycle, overhead, overload, soak, start, throughput
from serve_bench.context import Context
from serve_bench.processes import cores
from serve_bench.report import Report

from bench.machine.machine import describe_machine

ROOT = Path(__file__).parents[1]


def parts(context: Context) -> dict[str, Callable[[], None]]:
    """Name → what measures it, in the order of a whole run."""
    peers = not context.arguments.no_peers
    return {
        "overhead": lambda: overhead.measure_overhead(context, with_peers=peers),
        "throughput": lambda: throughput.measure_throughput(context, with_peers=peers),
        "generation": lambda: generation.measure_generation(context, with_peers=peers),
        "start": lambda: start.measure_start(context),
        "overload": lambda: overload.measure_overload(context),
        "drain": lambda: lifecycle.measure_drain(context),
        "swaps": lambda: lifecycle.measure_swaps(context),
        "disconnects": lambda: lifecycle.measure_disconnects(context),
        "hostile": lambda: hostile.measure_hostile(context),
        "clients": lambda: clients.run_clients(context),
        "schemathesis": lambda: clients.run_schemathesis(context),
        "soak": lambda: soak.measure_soak(context),
    }


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", metavar="PART", help="of: overhead throughput generation start overload drain swaps …")
    add("--skip", nargs="+", default=[], metavar="PART")
    add("--scale", type=float, default=1.0, help="factor of all durations and counts (default: 1)")
    add("--lengths", type=int, nargs="+", default=[128, 64], metavar="TOKENS")
    add("--classifier", type=Path, default=ROOT / "out/news/server", help="from `make demo`")
    add("--language", type=Path, default=ROOT / "out/novel/phone", help="from `make demo-llm`")
    add("--soak-minutes", type=float, default=15.0)
    add("--max-examples", type=int, default=500, help="schemathesis' cases of an endpoint")
    add("--no-peers", action="store_true")
    add("--no-install", action="store_true", help="do not measure the size of fresh environments")
    add("--json", type=Path, metavar="FILE", help="write all figures here too")
    given = parser.parse_args()
    machine = describe_machine()
    server, client = cores()
    allowed = os.sched_getaffinity(0)
    where = f"server on CPU {server}, client on CPU {client}"
    report = Report(f"{machine.summary}; {machine.setup}; load {machine.load_1min}; {where}; scale {given.scale:g}")
    print(report.machine, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(
            report, Path(folder), given.scale, given.classifier.resolve(), given.language.resolve(), given
        )
        known = parts(context)
        if unknown := {*(given.only or ()), *given.skip} - known.keys():
            parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        for path in (given.classifier, given.language):
            if not path.exists():
                parser.error(f"{path} is not there: make it with `make demo` and `make demo-llm`, or name another")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for name, measure in known.items():
            if name in (given.only or known) and name not in given.skip:
                began = time.monotonic()
                os.sched_setaffinity(0, allowed if name in ("clients", "schemathesis") else {client})
                measure()
                context.say(f"{name}: {time.monotonic() - began:.0f} s")
                if given.json:
                    given.json.write_text(json.dumps(report.to_json(), indent=1))
    code = report.finish()
    if given.json:
        given.json.write_text(json.dumps(report.to_json(), indent=1))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
