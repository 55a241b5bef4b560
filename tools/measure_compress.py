"""Measure what trimming, pruning, distilling and clustering save, and what they cost, on real models and data.

    python tools/measure_compress.py [--only news fashion weights layers vocabulary] [--out out/bench-compress]

Every part runs the commands that a user would run, in processes of their own; prints a Markdown table and the limits
that must be kept; and ends with 1 if one is not, with 3 if the evidence is too little to say. What was measured is
kept in `--out`, by part, so that parts can be run on different days and shown together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from compress_bench.fashion import measure_fashion
from compress_bench.layers import measure_layers
from compress_bench.news import measure_news
from compress_bench.part import Part
from compress_bench.vocabulary import measure_vocabulary
from compress_bench.weights import measure_weights

from bench.machine.machine import describe_machine

PARTS: Mapping[str, Callable[[Path], Part]] = {
    "news": measure_news,
    "fashion": measure_fashion,
    "weights": measure_weights,
    "layers": measure_layers,
    "vocabulary": measure_vocabulary,
}
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("out/bench-compress"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        print(f"== {name}", file=sys.stderr, flush=True)
        part = PARTS[name](given.out / name)
        (given.out / f"{name}.json").write_text(json.dumps(asdict(part), indent=1) + "\n", encoding="utf-8")
    machine = describe_machine()
    print(f"On {machine.cpu}, {machine.num_cpus} CPUs ({machine.architecture}):")
    outcomes = []
    for name in PARTS:
        path = given.out / f"{name}.json"
        if path.is_file():
            part = Part(**json.loads(path.read_text(encoding="utf-8")))
            print(part.markdown())
            outcomes += [limit["outcome"] for limit in part.limits]
    return max((EXIT_CODES[outcome] for outcome in outcomes), default=0, key=lambda code: (code == 1, code))


if __name__ == "__main__":
    sys.exit(main())
