"""The news classifier: int8 alone, then trimmed, pruned and distilled to several sizes, through its gates."""

from __future__ import annotations

from pathlib import Path

from compress_bench.part import Part, script
from compress_bench.release import COLUMNS, Measured, run_recipe

MAX_TRAINING_S = 15 * 60
MIN_REDUCTION, MIN_SPEEDUP, MIN_TEXTS = 10.0, 6.0, 1300
SMALL = "examples/news/small.yaml"
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "int8 alone": ("examples/news/recipe.yaml", {}),
    "small.yaml": (SMALL, {}),
    "small.yaml, 32 shared codes": (SMALL, {"targets.phone.quantize.clusters": "32"}),
}


def measure_news(work: Path) -> Part:
    """Run the recipes."""
    script("examples/news/prepare.py")
    script("examples/news/finetune.py")
    part = Part("News: MiniLM-L6 with LoRA, 5 classes, 1×128 tokens", ["recipe", *COLUMNS, "1 point"])
    for number, (name, (recipe, settings)) in enumerate(VARIANTS.items()):
        found = run_recipe(recipe, work / str(number), settings)
        part.rows.append([name, *found.cells, found.gates["accuracy"]["verdict"]])
        if name == "small.yaml":
            _judge(part, found)
    return part


def _judge(part: Part, found: Measured) -> None:
    """Hold the recipe against what must be reached."""
    reduction, lower = found.reduction, found.speedup["lower"]
    part.limit(f"≥ {MIN_REDUCTION:g}× smaller than the fp32 model", f"{reduction:.2f}×", reduction >= MIN_REDUCTION)
    part.limit(f"≥ {MIN_SPEEDUP:g}× less CPU time a text", f"at least {lower:.2f}×", lower >= MIN_SPEEDUP)
    verdict = found.gates["accuracy"]["verdict"]
    part.limit(
        f"at most 1 point lost, shown on ≥ {MIN_TEXTS:,} texts",
        f"{found.num_examples:,} texts: {found.gates['accuracy']['reason']}",
        None if verdict == "INCONCLUSIVE" else verdict == "PASS" and found.num_examples >= MIN_TEXTS,
    )
    seconds = found.training_s
    part.limit(
        "trained in ≤ 15 minutes",
        "found in the store" if seconds is None else f"{seconds / 60:.1f} minutes",
        None if seconds is None else seconds <= MAX_TRAINING_S,
    )
