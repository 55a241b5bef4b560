"""Plant slowdowns and count how often the duet finds them, and how often it cries wolf.

    python tools/measure_duet.py --seconds 45 --noise

builds an MLP of 100 equal layers (about 4 ms of one thread) and others with 2, 5 and 10 more of them, compares each
with the first one many times, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.duet.duet import Duet, DuetOptions, compare
from bench.gates.speed import judge_regression
from bench.gates.verdict import Outcome
from bench.scenarios.inputs import Inputs
from edgesmith.artifact import open_artifact
from edgesmith.gates import RegressionGate
from serve.runtime import EngineOptions, open_engine

NUM_LAYERS, HIDDEN, NUM_TOKENS = 100, 192, 48
CONFIDENCE = 0.95
STRICT = RegressionGate(max_slowdown=0.0, confidence=CONFIDENCE)
USUAL = RegressionGate(max_slowdown=0.02, confidence=CONFIDENCE)
BURSTS = """
import random, sys, time
rng = random.Random(int(sys.argv[1]))
block = bytearray(4 << 20)
while True:
    end = time.perf_counter() + rng.expovariate(1 / 0.08)
    while time.perf_counter() < end:
        block[rng.randrange(len(block))] ^= sum(block[:4096]) & 255
    time.sleep(rng.expovariate(1 / 0.12))
"""


def build_mlp(path: Path, num_layers: int) -> Path:
    """Write x → relu(x · w + b), `num_layers` times, x of shape [tokens, 192]."""
    rng = np.random.default_rng(0)
    nodes, constants, state = [], [], "x"
    for layer in range(num_layers):
        weight_IO = (rng.normal(size=(HIDDEN, HIDDEN)) * np.sqrt(2 / HIDDEN)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight_IO, f"w{layer}"))
        constants.append(numpy_helper.from_array(np.zeros(HIDDEN, np.float32), f"b{layer}"))
        nodes.append(helper.make_node("MatMul", [state, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"]))
        nodes.append(helper.make_node("Relu", [f"a{layer}"], [f"h{layer}"]))
        state = f"h{layer}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [helper.make_tensor_value_info(state, TensorProto.FLOAT, ["tokens", HIDDEN])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@contextmanager
def noise(num_processes: int) -> Iterator[None]:
    """Burn CPU time in random bursts while the block runs: 40 % of `num_processes` processors."""
    processes = [subprocess.Popen([sys.executable, "-c", BURSTS, str(seed)]) for seed in range(num_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(baseline: Path, artifact: Path, inputs: Inputs, options: DuetOptions) -> Duet:
    """Compare two files at one thread."""
    threads = EngineOptions(threads=1)
    return compare(
        lambda: open_engine(open_artifact(baseline), threads),
        lambda: open_engine(open_artifact(artifact), threads),
        inputs,
        options=options,
    )


def row(planted: int, duets: Sequence[Duet]) -> str:
    """Count the verdicts of one kind of comparison."""
    bounds = [duet.slowdown(CONFIDENCE) for duet in duets]
    verdicts = [judge_regression(USUAL, duet).verdict for duet in duets]
    strict = [judge_regression(STRICT, duet).verdict for duet in duets]
    estimates = sorted(100 * bound.estimate for bound in bounds)
    pressures = [duet.conditions.cpu_pressure_share for duet in duets if duet.conditions]
    known = [100 * share for share in pressures if share is not None]
    cells = (
        "A/A" if planted == 0 else f"+{planted} %",
        len(duets),
        sum(bound.lower > 0 for bound in bounds),
        sum(bound.upper < 0 for bound in bounds),
        strict.count(Outcome.FAIL),
        *(verdicts.count(outcome) for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)),
        f"{np.median(estimates):+.2f} % ({estimates[0]:+.2f} … {estimates[-1]:+.2f})",
        f"±{np.median([50 * (bound.upper - bound.lower) for bound in bounds]):.2f} %",
        f"±{np.median([duet.noise.percent for duet in duets]):.2f} %",
        sum(duet.noise.bias_percent > 0 for duet in duets),
        sum(not duet.is_settled for duet in duets),
        f"{np.median([duet.num_sessions for duet in duets]):.0f} × {duets[0].num_pairs / duets[0].num_sessions:.0f}",
        f"{np.mean([duet.conditions.seconds for duet in duets if duet.conditions]):.0f}",
        f"{np.mean(known):.0f} %" if known else "unknown",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEAD = (
    "planted", "runs", "bound > 0", "bound < 0", "FAIL at 0 %", "FAIL at 2 %", "INCONCLUSIVE", "PASS",
    "slowdown found: median (range)", "half-width", "A/A half-width", "A/A biased", "not settled",
    "sessions × pairs", "seconds", "CPU pressure",
)  # fmt: skip


def main() -> None:
    """Run what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="of one comparison")
    parser.add_argument("--aa", type=int, default=20, help="comparisons of the model with itself")
    parser.add_argument("--runs", type=int, default=10, help="comparisons with each slower model")
    parser.add_argument("--slowdowns", type=int, nargs="*", default=[2, 5, 10], help="per cent")
    parser.add_argument("--noise", type=int, nargs="?", const=2, default=0, help="processes that burn CPU in bursts")
    parser.add_argument("--keep", type=Path, help="folder for every comparison's turns")
    arguments = parser.parse_args()
    options = DuetOptions(seconds=arguments.seconds)
    x = np.random.default_rng(1).normal(size=(16, NUM_TOKENS, HIDDEN)).astype(np.float32)
    inputs = Inputs(arrays=tuple({"x": one} for one in x), description=f"{NUM_TOKENS} rows of {HIDDEN}")
    planned = [0] * arguments.aa + [slowdown for slowdown in arguments.slowdowns for _ in range(arguments.runs)]
    planned = [int(slowdown) for slowdown in np.random.default_rng(0).permutation(planned)]
    duets: dict[int, list[Duet]] = {slowdown: [] for slowdown in sorted(set(planned))}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, noise(arguments.noise):
        files = {slowdown: build_mlp(Path(folder) / f"{slowdown}.onnx", NUM_LAYERS + slowdown) for slowdown in duets}
        files[0] = build_mlp(Path(folder) / "baseline.onnx", NUM_LAYERS)
        for index, slowdown in enumerate(planned, start=1):
            duet = run(files[0], files[slowdown], inputs, options)
            duets[slowdown].append(duet)
            if arguments.keep:
                duet.save(arguments.keep / f"{index:03d}-{slowdown}")
            bound = duet.slowdown(CONFIDENCE)
            sys.stderr.write(
                f"{index}/{len(planned)} +{slowdown} %: {100 * bound.lower:+.2f} … {100 * bound.upper:+.2f} %; "
                f"{duet.noise.summary}; {duet.conditions.summary if duet.conditions else ''}\n"
            )
    example = next(iter(duets.values()))[0]
    cpu_ms = float(np.median(example.baseline_cpu_ns)) / 1e6 / example.turn_requests
    lines = (
        f"Baseline {cpu_ms:.2f} ms of CPU time a request, turns of {example.turn_requests}; {example.machine.name}; "
        f"{arguments.noise} noise processes; {100 * CONFIDENCE:g} % bounds; {time.perf_counter() - begin:.0f} s.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
        *(row(slowdown, of_one) for slowdown, of_one in duets.items()),
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
