"""What a stage is, and how one runs: into the store, or straight into a folder of the user's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UsageError
from edgesmith.files import publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.store import StepKey

__all__ = ["Stage", "check_replaceable", "make_into"]

T = TypeVar("T")


class Stage(Protocol):
    """One piece of work, with everything that it depends on."""

    @property
    def key(self) -> StepKey:
        """What its result depends on."""

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Do the work: fill an empty folder and write its manifest last."""


def make_into(
    stage: Stage, out: Path, prove: Callable[[Artifact], T], progress: Progress = SILENT
) -> tuple[Artifact, T]:
    """Run a stage into a folder of the user's; it appears whole and proven, or not at all.

    Args:
        stage: What to do.
        out: Folder to write. An artifact that is there is replaced; anything else is left alone.
        prove: Called with the finished artifact before it appears; raises where it is not good enough.
        progress: Shows how far it is.

    Returns:
        The artifact, and what `prove` said of it.

    Raises:
        UsageError: `out` holds something that edgesmith did not make.
        StorageError: `out` cannot be written.
    """
    check_replaceable(out)
    work = temporary_sibling(out.absolute())
    try:
        with storage_errors(work):
            work.mkdir(parents=True)
            made = stage.make(work, progress)
        proof = prove(made)
        publish_folder(work, out.absolute())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_artifact(out), proof


def check_replaceable(out: Path) -> None:
    """Refuse to overwrite a file, or a folder that is no artifact.

    Raises:
        UsageError: naming what is there.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / "manifest.json").is_file()):
        return
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"{out}: is there already and is no artifact, so it is not replaced",
            mend="Choose another folder with -o/--out, or move this one away.",
        )
