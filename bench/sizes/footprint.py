"""What an artifact takes: on the disk, and on the way to a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.raw import damage_errors, pretty_json, read_json
from bench.strict import check_numbers
from edgesmith.archive import COMPRESSION, download_bytes
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact

__all__ = ["FOOTPRINT", "Footprint", "measure_footprint"]

FOOTPRINT = "footprint.json"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Sizes in bytes."""

    artifact_digest: str
    model_bytes: int
    """Files that hold graph and weights."""
    total_bytes: int
    """All files of the artifact."""
    download_bytes: int
    """The bundle of it alone, `.tar.zst`, which is what goes over the air."""
    compression: str
    """Such as `zstd -9`."""

    def __post_init__(self) -> None:
        sizes = (self.model_bytes, self.total_bytes, self.download_bytes)
        if min(sizes) < 0 or self.model_bytes > self.total_bytes:
            raise ValueError(f"sizes of {sizes}")

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write `footprint.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / FOOTPRINT, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Footprint:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / FOOTPRINT, mend="Make one with `edgesmith bench`.")
        with damage_errors(folder / FOOTPRINT):
            check_numbers(value, ("model_bytes", "total_bytes", "download_bytes"))
            return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def measure_footprint(artifact: Artifact, *, progress: Progress = SILENT) -> Footprint:
    """Add up an artifact's files, and pack them as a bundle does, to the byte.

    Memory stays small whatever the artifact's size: files are read and compressed piece by piece, and what comes
    out is counted, not kept.

    Args:
        artifact: Opened; its files are read once more.
        progress: Shows the bytes done.

    Raises:
        MissingExtraError: `zstandard` is not installed.
        StorageError: A file cannot be read.
    """
    return Footprint(
        artifact_digest=artifact.digest,
        model_bytes=artifact.model_bytes,
        total_bytes=artifact.size_bytes,
        download_bytes=download_bytes(artifact, progress),
        compression=COMPRESSION,
    )
