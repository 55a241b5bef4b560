"""What a stage is, and how one runs: into the store, or straight into a folder of the user's."""

from __future__ import annotations

import functools
import platform
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import JsonValue

from edgesmith.artifact import (
    MANIFEST,
    Artifact,
    Kind,
    Parent,
    Signature,
    read_artifact,
    read_manifest,
    tool_versions,
    write_artifact,
)
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import publish_folder, sha256_text, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.store import StepKey

__all__ = ["Stage", "check_replaceable", "make_into"]

T = TypeVar("T")


class Stage(ABC):
    """One piece of work, with everything that its result depends on.

    Attributes:
        step: Name in manifests and keys.
        kind: Of the artifact that it makes.
        libraries: Distributions whose versions can change the result.
        is_of_this_machine: Whether the result belongs to this kind of processor: outputs, rounded as it rounds.
        is_timed: Whether the result holds times, which belong to this very machine.
    """

    step: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]
    kind: ClassVar[Kind] = "evidence"
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

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files and folders that it reads, which its result must not replace."""
        artifacts = [getattr(self, name).path for name in self.__dict__ if isinstance(getattr(self, name), Artifact)]
        return tuple(artifacts)

    @abstractmethod
    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Do the work: fill an empty folder and `seal` it."""

    def published(self) -> None:  # noqa: B027  # most stages leave nothing to tidy
        """Tidy up, now that the result lies where it is looked for; called again where a kill may have been sooner."""

    @property
    def key(self) -> StepKey:
        """Where the result lies in a store."""
        machine = {"machine": machine_id()} if self.is_of_this_machine or self.is_timed else {}
        if self.is_timed:
            machine["host"] = host_id()
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
        task: str | None = None,
        precision: str | None = None,
        signature: Signature | None = None,
    ) -> Artifact:
        """Write the manifest of a filled folder."""
        return write_artifact(
            folder,
            kind=self.kind,
            step=self.step,
            options=self.options,
            parents=[Parent(role=role, digest=digest) for role, digest in self.inputs.items()],
            task=task,
            precision=precision,
            signature=signature,
            tools=tool_versions(*self.libraries),
        )


@functools.cache
def host_id() -> str:
    """Name this very machine: containers of several may share a host name, but not a boot of the kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return sha256_text(platform.node(), boot.read_text() if boot.is_file() else "")


def machine_id() -> str:
    """Name this kind of machine: processor, instruction sets and number of CPUs, not its load."""
    from bench.machine.machine import describe_machine

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
    check_replaceable(out, stage.kind, stage.paths)
    work = temporary_sibling(out.absolute())
    try:
        with storage_errors(work):
            work.mkdir(parents=True)
            made = stage.make(work, progress)
        proof = prove(made)
        publish_folder(work, out.absolute())
        stage.published()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_artifact(out), proof


def check_replaceable(out: Path, kind: Kind, inputs: Iterable[Path] = ()) -> None:
    """Refuse to overwrite anything but an older artifact of the same kind.

    Args:
        out: Where a folder is to be written.
        kind: Of what is to be written.
        inputs: What it is made from, none of which may be replaced by it.

    Raises:
        UsageError: naming what is in the way.
    """
    mend = "Choose another folder with -o/--out, or move this one away."
    place = out.resolve()
    for path in inputs:
        source = path.resolve()
        if place == source or place.is_relative_to(source) or source.is_relative_to(place):
            raise UsageError(f"{out}: would overwrite {path}, which is read", mend=mend)
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        manifest = read_manifest(out)
    except ArtifactError:
        raise UsageError(f"{out}: is there already and is no artifact, so it is not replaced", mend=mend) from None
    named = {entry.path for entry in manifest.files} | {MANIFEST}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    if manifest.kind != kind or found - named:
        other = f"an artifact of kind {manifest.kind!r}" if manifest.kind != kind else "an artifact with other files"
        raise UsageError(f"{out}: is {other}, so it is not replaced", mend=mend)
