"""An engine in a process of its own, called in a loop: what a server's figures are compared with.

    python engine_child.py MODEL THREADS

reads lines of JSON `{"arrays": FILE.npz, "calls": N}` or `{"arrays": …, "seconds": S}`, and answers each with one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from edgesmith.artifact import open_artifact
from serve.runtime import EngineOptions, open_engine


def main() -> None:
    """Open the engine, then run as told."""
    engine = open_engine(open_artifact(Path(sys.argv[1])), EngineOptions(threads=int(sys.argv[2])))
    run = getattr(engine, "run_checked", engine.run)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        with np.load(told["arrays"]) as file:
            arrays = {name: file[name] for name in file.files}
        calls, end = 0, time.perf_counter() + told.get("seconds", 1e9)
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        while calls < told.get("calls", 1 << 60) and time.perf_counter() < end:
            run(arrays)
            calls += 1
        spent = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        print(json.dumps({"calls": calls, "cpu_ns": spent[0], "wall_ns": spent[1]}), flush=True)


if __name__ == "__main__":
    main()
