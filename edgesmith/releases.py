"""A release on disk: what `run` leaves beside the artifacts, so that they can be judged and reported again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.artifact import MANIFEST
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.gates import Gates

__all__ = [
    "EVIDENCE",
    "RELEASE",
    "Ancestor",
    "LearningCurve",
    "ModelStep",
    "ReleaseIndex",
    "ReleasedTargetIndex",
    "locate_target",
    "read_index",
]

FolderName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
RELEASE = "release.json"
EVIDENCE = "evidence"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ancestor(_Part):
    """An artifact, or what one was made from."""

    role: str
    digest: str
    step: str = ""
    detail: str = ""
    summary: str = ""
    """What the step did, in a line."""
    parents: tuple[str, ...] = ()


class LearningCurve(_Part):
    """How a training went, by update."""

    metric: str
    """What the weights were chosen by, on rows that were not trained on."""
    higher_is_better: bool
    best_update: int
    """Whose weights were kept; 0 is before training."""
    teacher_metric: float | None = None
    updates: tuple[int, ...] = ()
    """Of the losses."""
    losses: dict[str, tuple[float, ...]] = {}
    """`loss`, then its parts; each an item's mean over the updates since the point before."""
    metric_updates: tuple[int, ...] = ()
    metric_values: tuple[float, ...] = ()


class ModelStep(_Part):
    """A step on the checkpoint: what it did, and how large it left the model."""

    name: str
    digest: str
    summary: str = ""
    num_parameters: int
    weights_bytes: int
    """Of the checkpoint as it is stored, before any target's format."""
    macs: int | None = None
    """Multiply-accumulates of one row, where they were counted."""
    macs_of: str = ""
    """The row that they were counted for, such as `128 tokens`."""
    notes: tuple[str, ...] = ()
    curve: LearningCurve | None = None


class ReleasedTargetIndex(_Part):
    """What a report says of a target that neither its artifact nor its evidence holds."""

    parts: tuple[FolderName, ...] = ()
    """Folders of evidence that `run` wrote; others are the user's."""

    gates: Gates = Gates()
    lineage: tuple[Ancestor, ...] = ()
    notes: tuple[str, ...] = ()


class ReleaseIndex(_Part):
    """Content of `release.json`."""

    schema_version: Annotated[int, Field(ge=2, le=2)] = 2
    name: str
    command: str
    """What made the release."""
    versions: dict[str, str] = {}
    steps: tuple[ModelStep, ...] = ()
    """On the checkpoint, in the order they were done."""
    targets: dict[FolderName, ReleasedTargetIndex]

    def save(self, folder: Path) -> None:
        """Write `release.json` into a folder.

        Raises:
            StorageError: the folder cannot be written.
        """
        atomic_write(folder / RELEASE, self.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def read_index(folder: Path) -> ReleaseIndex:
    """Read what `ReleaseIndex.save` wrote.

    Raises:
        UsageError: the folder holds no release.
        ArtifactError: `release.json` is damaged.
    """
    path = folder / RELEASE
    if not path.is_file():
        raise UsageError(
            f"{folder}: holds no {RELEASE}, so it is no release", mend="`edgesmith run RECIPE -o DIR` makes one."
        )
    with storage_errors(path):
        text = path.read_bytes()
    try:
        return ReleaseIndex.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: is damaged: {where}: {first['msg']}", mend="Make the release again.") from error


def locate_target(path: Path, name: str) -> Path:
    """Find the artifact that a path means: itself, or a release's target.

    Args:
        path: An artifact, or the folder of a release.
        name: Target to take from a release; one with a single target gives that.

    Raises:
        UsageError: the release has no such target.
        ArtifactError: its index is damaged.
    """
    if not (path / RELEASE).is_file() or (path / MANIFEST).is_file():
        return path
    targets = sorted(read_index(path).targets)
    if name in targets:
        return path / name
    if len(targets) == 1:
        return path / targets[0]
    raise UsageError(
        f"{path}: is a release with the targets {', '.join(targets)}, none of which is {name!r}",
        mend=f"Name the artifact itself, such as {path / targets[0]}.",
    )
