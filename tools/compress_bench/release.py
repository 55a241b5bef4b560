"""What the table shows of a release, read back from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_bench.part import ROOT, edgesmith


@dataclass
class Measured:
    """One recipe's only target, beside the whole model."""

    model_bytes: int
    baseline_bytes: int
    download_bytes: int
    accuracy: float
    baseline_accuracy: float
    num_examples: int
    speedup: dict[str, float]
    cpu_ms: float
    gates: dict[str, dict[str, Any]]
    training_s: float | None
    """None where the training was found in the store."""

    @property
    def reduction(self) -> float:
        """How many times smaller than the whole model."""
        return self.baseline_bytes / self.model_bytes

    @property
    def cells(self) -> list[str]:
        """Of the table."""
        return [
            f"{self.model_bytes / 1e6:.2f}",
            f"{self.reduction:.1f}×",
            f"{self.download_bytes / 1e6:.2f}",
            f"{self.accuracy:.2%}",
            f"{100 * (self.baseline_accuracy - self.accuracy):+.2f}",
            f"{self.cpu_ms:.2f}",
            f"{self.speedup['estimate']:.1f}× (at least {self.speedup['lower']:.1f})",
            "–" if self.training_s is None else f"{self.training_s / 60:.1f} min",
        ]


COLUMNS = ["MB", "smaller", "download, MB", "accuracy", "points lost", "CPU ms", "less CPU", "training"]


def run_recipe(recipe: str, out: Path, settings: dict[str, str]) -> Measured:
    """Run a recipe, and read what was measured. A gate that fails is a result, not an error."""
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    release = edgesmith("run", ROOT / recipe, "--out", out, *given, allowed=(0, 1, 3))
    [target] = release["targets"]
    evidence = out / "evidence" / target["name"]

    def read(part: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((evidence / part / name).read_bytes())
        return found

    ours, theirs, footprint = (
        read("eval", "evaluation.json"),
        read("baseline-eval", "evaluation.json"),
        read("footprint", "footprint.json"),
    )
    duet = read("compare", "duet.json")
    trainings = [step for step in release["steps"] if step["name"] == "distill"]
    return Measured(
        model_bytes=footprint["model_bytes"],
        baseline_bytes=read("baseline-footprint", "footprint.json")["model_bytes"],
        download_bytes=footprint["download_bytes"],
        accuracy=ours["metrics"]["accuracy"],
        baseline_accuracy=theirs["metrics"]["accuracy"],
        num_examples=ours["num_examples"],
        speedup=duet["cpu_speedup"],
        cpu_ms=read("bench", "latency.json")["cpu_ms"]["p50"],
        gates={gate["gate"]: gate for gate in target["gates"]},
        training_s=sum(step["seconds"] for step in trainings)
        if trainings and not any(step["cached"] for step in trainings)
        else None,
    )
