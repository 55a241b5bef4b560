"""Single weights of SmolLM2 set to zero, every way: perplexity on held-out text, exact counts, peak of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress_bench.book import TRAIN, perplexity, smollm2
from compress_bench.part import Part, edgesmith

METHODS = ("magnitude", "wanda", "sparsegpt")
NUM_CALIBRATED, NUM_MEASURED = 16, 16
TARGETS = ({"sparsity": "0.5"}, {"pattern": "2:4"})


def measure_weights(work: Path) -> Part:
    """Prune by every method to both targets; the process that prunes tells its own peak."""
    checkpoint = smollm2()
    part = Part(
        f"SmolLM2-135M, single weights, calibrated on {NUM_CALIBRATED} windows of 512 tokens",
        ["method", "target", "zeros of the pruned matrices", "perplexity", "peak memory, MB", "bound, MB"],
    )
    part.rows.append(["–", "–", "–", f"{perplexity(checkpoint, num_windows=NUM_MEASURED)['value']:.2f}", "–", "–"])
    found: dict[tuple[str, str], float] = {}
    for target in TARGETS:
        [(option, size)] = target.items()
        for method in METHODS:
            out = work / f"{method}-{size.replace(':', 'of')}"
            facts = edgesmith(
                "prune",
                checkpoint,
                "--method",
                method,
                f"--{option}",
                size,
                "--data",
                TRAIN,
                "--num-samples",
                str(NUM_CALIBRATED),
                "-o",
                out,
            )["pruning"]
            found[method, size] = perplexity(out, num_windows=NUM_MEASURED)["value"]
            bound = facts["model_bytes"] + facts["block_bytes"] + facts["calibration_bytes"]
            part.rows.append(
                [
                    method,
                    size,
                    f"{facts['num_zeros']:,} of {facts['num_pruned']:,} ({facts['sparsity']:.4%})",
                    f"{found[method, size]:.2f}",
                    f"+{facts['peak_memory_added_bytes'] / 1e6:.0f}",
                    f"{bound / 1e6:.0f}",
                ]
            )
            part.limit(
                f"{method} {size}: peak ≤ model + one block + calibration",
                f"{facts['peak_memory_added_bytes'] / 1e6:.0f} of {bound / 1e6:.0f} MB",
                facts["peak_memory_added_bytes"] <= bound,
            )
            if option == "pattern":
                fullest = _fullest_group(out, facts)
                part.limit(f"{method}: 2:4 exact in every group", f"at most {fullest} of 4 are left", fullest <= 2)
            else:
                part.limit(f"{method}: half, exactly", f"{facts['sparsity']:.4%}", facts["sparsity"] == 0.5)
    for size in ("0.5", "2:4"):
        magnitude, wanda, sparsegpt = (found[method, size] for method in METHODS)
        what = f"{magnitude:.2f} > {wanda:.2f} ≥ {sparsegpt:.2f}"
        part.limit(f"{size}: magnitude > Wanda ≥ SparseGPT", what, magnitude > wanda >= sparsegpt)
    return part


def _fullest_group(checkpoint: Path, facts: dict[str, Any]) -> int:
    """The most weights that are not zero in any four in a row, over all pruned matrices."""
    from safetensors import safe_open

    names = [matrix["name"] for matrix in facts["matrices"]]
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        return max(int((file.get_tensor(name).reshape(-1, 4) != 0).sum(1).max()) for name in names)
