"""What a stage is, and how one runs: into the store, or straight into a folder of the user's."""

from __future__ import annotations

import platform
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind, Parent, Signature, read_artifact, tool_versions, write_artifact
from edgesmith.errors import UsageError
from edgesmith.files import publish_folder, sha256_text, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.store import StepKey

__all__ = ["Stage", "check_replaceable", "make_into"]

T = TypeVar("T")


class Stage(ABC):
    """One piece of work, with everything that its result depends on.

    Attributes:
        step: Name in manifests and keys.
        libraries: Distributions whose versions can change the result.
        is_of_this_machine: Whether the result belongs to this kind of processor: outputs, rounded as it rounds.
        is_timed: Whether the result holds times, which belong to this very machine.
    """

    step: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]
    is_of_this_machine: ClassVar[bool] = False
    is_timed: ClassVar[bool] = False

    @property
    @abstractmethod
    def options(self) -> dict[str, JsonValue]:
        """The step's options, complete."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Role → digest of each input, data files included."""

    @abstractmethod
    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Do the work: fill an empty folder and `seal` it."""

    @property
    def key(self) -> StepKey:
        """Where the result lies in a store."""
        machine = {"machine": machine_id()} if self.is_of_this_machine or self.is_timed else {}
        if self.is_timed:
            machine["host"] = platform.node()
        return StepKey(
            step=self.step,
            module=type(self).__module__,
            options=self.options,
            inputs={**self.inputs, **machine},
            libraries=self.libraries,
        )

    def is_final(self, made: Artifact) -> bool:
        """Whether a stored result may stand; times taken before an engine settled are taken anew."""
        del made
        return True

    def seal(
        self,
        folder: Path,
        *,
        kind: Kind = "evidence",
        task: str | None = None,
        precision: str | None = None,
        signature: Signature | None = None,
    ) -> Artifact:
        """Write the manifest of a filled folder."""
        return write_artifact(
            folder,
            kind=kind,
            step=self.step,
            options=self.options,
            parents=[Parent(role=role, digest=digest) for role, digest in self.inputs.items()],
            task=task,
            precision=precision,
            signature=signature,
            tools=tool_versions(*self.libraries),
        )


def machine_id() -> str:
    """Name this kind of machine: processor, instruction sets and number of CPUs, not its load."""
    from bench.machine import describe_machine

    fields = asdict(describe_machine())
    return sha256_text(*(str(fields[name]) for name in ("cpu", "architecture", "num_cpus", "flags")))


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
    return read_artifact(out), proof


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
