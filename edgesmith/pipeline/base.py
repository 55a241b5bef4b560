"""What every recipe's walk has in common: the checkpoint, the merge, then each target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.artifact import Artifact, Kind, open_artifact
from edgesmith.data import data_digest
from edgesmith.errors import UsageError
from edgesmith.gates import Gates
from edgesmith.hub import locate_checkpoint
from edgesmith.pipeline.checkpoints import Checkpoints, walk_checkpoints
from edgesmith.pipeline.needs import needed
from edgesmith.recipe import Recipe
from edgesmith.releases import locate_target
from edgesmith.stages.footprint import FootprintStage
from edgesmith.stages.load import ServedLoadStage
from edgesmith.stages.rows import Rows
from edgesmith.walkers import Walker

if TYPE_CHECKING:
    from bench.load import LoadPlan

__all__ = ["Made", "TargetResult", "Walk"]

_LOAD_S = 20.0


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What a walk made for one target; None where a planner could not know it yet."""

    name: str
    artifact: Artifact | None
    unquantized: Artifact | None
    """The export that it was made from."""
    baseline: Artifact | None
    previous: Artifact | None
    """What regressions are judged against, where it is not the baseline."""
    evidence: Mapping[str, Artifact | None]
    """Folder below the target's evidence → what was measured."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """Everything that a walk made."""

    checkpoints: Checkpoints
    targets: tuple[TargetResult, ...]


@dataclass(frozen=True, kw_only=True)
class Walk(ABC):
    """Checkpoint first, then every target from it."""

    recipe: Recipe
    folder: Path
    walker: Walker
    against: Path | None

    def go(self) -> Made:
        """Do all of it."""
        base = open_artifact(
            locate_checkpoint(self.recipe.model.base, self.folder, self.recipe.model.revision), kinds=("checkpoint",)
        )
        self.check_files()
        self._check_training_files()
        self.check_base(base)
        checkpoints = walk_checkpoints(self, base)
        return Made(checkpoints=checkpoints, targets=self.targets(checkpoints))

    @abstractmethod
    def check_files(self) -> None:
        """Find before any work what would stop it at the end."""

    def check_base(self, base: Artifact) -> None:  # noqa: B027 - a walk needs one of the two
        """Hold the data against what the base says already, before the merge."""

    def check_data(self, checkpoint: Artifact) -> None:  # noqa: B027
        """Hold all data against the merged checkpoint before the long steps, so that a bad row is found at once."""

    @abstractmethod
    def targets(self, checkpoints: Checkpoints) -> tuple[TargetResult, ...]:
        """Make and measure every target."""

    def check_gates(self, target: str) -> None:
        """Refuse a target's gates that its task cannot be judged by, or that nothing will be measured for."""
        from bench.gates.judge import check_gates

        gates = self.recipe.gates_of(target)
        check_gates(gates, self.recipe.task)
        if ("load", None) in gates.scenarios:
            raise UsageError(
                "gates.latency: scenario load needs a rate: how many requests arrive in a second",
                mend="Set `rate`. Without one, judge a load test of your own: `edgesmith load`, `edgesmith gate`.",
            )

    def loads(self, name: str, artifact: Artifact | None) -> dict[str, Artifact | None]:
        """Load-test the artifact behind our server, at every rate that its gates ask for."""
        gates, measure = self.recipe.gates_of(name), self.recipe.measure
        rates = sorted(rate for scenario, rate in gates.scenarios if scenario == "load" and rate is not None)
        return {
            f"load-{rate:g}": self.walker.step(
                f"{name}: load {rate:g}",
                f"{rate:g} requests a second over HTTP, {measure.threads} thread(s)",
                [("artifact", artifact)],
                lambda rate=rate: ServedLoadStage(  # type: ignore[misc]
                    artifact=needed(artifact), plan=self._load_plan(gates, rate), threads=measure.threads
                ),
            )
            for rate in rates
        }

    def _load_plan(self, gates: Gates, rate: float) -> LoadPlan:
        """A load long enough to judge the gates' percentiles."""
        from bench.gates.latency import requests_to_plan
        from bench.load import LoadPlan, constant

        asked = [gate for gate in gates.latencies if (gate.scenario, gate.rate) == ("load", rate)]
        seconds = max(_LOAD_S, *(requests_to_plan(gate) / rate for gate in asked))
        prompts = self.recipe.data.prompts
        path, key = (prompts, "data.prompts") if prompts else (self.recipe.data.eval, "data.eval")
        return LoadPlan(
            url="",
            shape=constant(rate, seconds),
            data=self.data_file(path, key),
            columns=self.recipe.data.columns,
            max_tokens=self.recipe.measure.max_tokens,
            seed=self.recipe.seed,
            limit_ms=min((gate.max_ms for gate in asked), default=None),
            limit_percentile=max((gate.percentile for gate in asked), default=99.0),
        )

    def rows(self, path: str, num: int | None, key: str) -> Rows:
        """Rows of a file that the recipe names at `key`."""
        return Rows(path=self.data_file(path, key), num=num, seed=self.recipe.seed, columns=self.recipe.data.columns)

    def data_file(self, path: str, key: str) -> Path:
        """A file that the recipe names at `key`.

        Raises:
            UsageError: it is not there.
        """
        found = self.folder / path
        if not found.is_file():
            raise UsageError(f"{found}: no such data file", mend=f"{key} is relative to the recipe.")
        return found

    def previous(self, name: str, kinds: tuple[Kind, ...]) -> Artifact | None:
        """The artifact that the user named to compare with."""
        return open_artifact(locate_target(self.against, name), kinds=kinds) if self.against else None

    def _check_training_files(self) -> None:
        """Find missing files, and a training file that is the held-out one, before any work."""
        data = self.recipe.data
        held_out = self.data_file(data.eval, "data.eval")
        for key, path in (("data.train", data.train), ("data.unlabelled", data.unlabelled)):
            if path is not None and data_digest(self.data_file(path, key)) == data_digest(held_out):
                raise UsageError(
                    f"{self.folder / path}: holds the held-out rows; gates would be judged on what it was trained on",
                    mend=f"Give other rows as {key}.",
                )

    def footprint(self, name: str, artifact: Artifact | None) -> Artifact | None:
        """Count an artifact's bytes."""
        does = "files, compressed download, bytes by kind of tensor"
        return self.walker.step(name, does, [("artifact", artifact)], lambda: FootprintStage(artifact=needed(artifact)))
