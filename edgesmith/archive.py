"""Archives of artifacts: what is copied to a device, as one stream whose bytes depend on nothing but the content.

A plain tar inside, so that `tar --zstd -xf` opens one too. Its first entry is an index with the size and the hash
of every other: whoever unpacks it knows what is to come before it comes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from edgesmith.artifact import MANIFEST, Artifact, FileEntry
from edgesmith.errors import MissingExtraError
from edgesmith.files import sha256_file, storage_errors
from edgesmith.progress import SILENT, Progress, Report

__all__ = [
    "ARCHIVES",
    "BUNDLE",
    "COMPRESSION",
    "Content",
    "bundle_entries",
    "content_bytes",
    "download_bytes",
    "import_zstandard",
    "pack",
]

ARCHIVES = (".tar.zst", ".tar.gz", ".tgz", ".tar")
"""Endings of the archives that are written."""
BUNDLE = "bundle.json"
"""The index, in the root of every bundle."""
COMPRESSION = "zstd -9 --long=27 --zstd=mml=6"
"""What `.tar.zst` and every figure of a download is."""
Content: TypeAlias = Path | bytes
"""A file on the disk, or what is to be in one."""

# Weights are noise to a search for repeats: a higher level takes 50 times as long and, on shared codes, comes out
# larger, while texts still gain from the step from 3 to 9.
_LEVEL = 9
_MIN_MATCH = 6  # shorter repeats are chance among weights, and dearer than what they replace
# The longest that decoders take without being told to. The window never is longer than the content, which bounds
# what unpacking needs on a small device; two versions of one model in a bundle share what they have in common.
_MAX_WINDOW_LOG = 27
_MIN_WINDOW_LOG = 20


def import_zstandard() -> Any:
    """Return the library `zstandard`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the library `zstandard` is not installed; it packs, unpacks and measures downloads",
            mend="Install it: pip install 'edgesmith[serve]' (or bench). Or choose an archive in .tar.gz.",
        ) from error
    return zstandard


def bundle_entries(models: Mapping[str, Artifact], beside: Mapping[str, Content] | None = None) -> dict[str, Content]:
    """What a bundle of these models holds: index, artifacts and what else is given.

    Args:
        models: `name` or `name:version` → artifact.
        beside: Path inside the bundle → content, such as the runtime.

    Returns:
        Path inside the bundle → content, the index first, then by path. Of an artifact, what its manifest names and
        the manifest; nothing that happens to lie beside a bare file.

    Raises:
        StorageError: A file cannot be read.
    """
    listed, entries, known = [], dict(beside or {}), dict[str, FileEntry]()
    for label, artifact in models.items():
        name, _, version = label.partition(":")
        place = f"models/{name}/{version or '1'}"
        path = f"{place}/{artifact.path.name}" if artifact.path.is_file() else place
        listed.append({"name": name, "version": version or "1", "path": path, "digest": artifact.digest})
        for entry in artifact.manifest.files:
            entries[f"{place}/{entry.path}"] = artifact.folder / entry.path
            known[f"{place}/{entry.path}"] = entry
        if artifact.path.is_dir() and (artifact.folder / MANIFEST).is_file():
            entries[f"{place}/{MANIFEST}"] = artifact.folder / MANIFEST
    entries = dict(sorted(entries.items()))
    files = [
        {
            "path": name,
            "size_bytes": content_bytes(content),
            "sha256": known[name].sha256 if name in known else _sha256(content),
        }
        for name, content in entries.items()
    ]
    index = {"schema_version": 1, "models": listed, "files": files}
    return {BUNDLE: (json.dumps(index, indent=1) + "\n").encode(), **entries}


def pack(entries: Mapping[str, Content], sink: BinaryIO, *, name: str, progress: Progress = SILENT) -> None:
    """Write an archive.

    Args:
        entries: Path → content, in the order in which they are written.
        sink: Where the bytes go; it is left open.
        name: Of the archive; its ending decides the compression, and what is before it is the folder inside.
        progress: Shows the bytes done.

    Raises:
        MissingExtraError: `zstandard` is not installed.
        StorageError: A file cannot be read.
    """
    ending = next(ending for ending in ARCHIVES if name.endswith(ending))
    root = name.removesuffix(ending)
    total = sum(map(content_bytes, entries.values()))
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(_compressed(sink, ending, total))
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT))
        advance = stack.enter_context(progress.bar("pack", total=total))
        for path, content in entries.items():
            entry = tarfile.TarInfo(f"{root}/{path}")  # owner, group and time are 0
            entry.size, entry.mode = content_bytes(content), 0o644
            with _opened(content) as file:
                archive.addfile(entry, cast(BinaryIO, _Told(file, advance)))


def download_bytes(artifact: Artifact, progress: Progress = SILENT) -> int:
    """Size of the archive in which an artifact travels alone, without writing one.

    Memory stays small whatever the artifact's size.

    Raises:
        MissingExtraError: `zstandard` is not installed.
        StorageError: A file cannot be read.
    """
    counter = _Counter()
    pack(bundle_entries({"model": artifact}), cast(BinaryIO, counter), name="model.tar.zst", progress=progress)
    return counter.num_bytes


@contextlib.contextmanager
def _compressed(sink: BinaryIO, ending: str, total_bytes: int) -> Iterator[BinaryIO]:
    match ending:
        case ".tar":
            yield sink
        case ".tar.zst":
            zstandard = import_zstandard()
            window_log = min(max(total_bytes.bit_length(), _MIN_WINDOW_LOG), _MAX_WINDOW_LOG)
            parameters = zstandard.ZstdCompressionParameters.from_level(
                _LEVEL, min_match=_MIN_MATCH, window_log=window_log, enable_ldm=True, write_checksum=True, threads=0
            )
            compressor = zstandard.ZstdCompressor(compression_params=parameters)
            with compressor.stream_writer(sink, closefd=False) as stream:
                yield stream
        case _:
            with gzip.GzipFile(filename="", mode="wb", fileobj=sink, compresslevel=6, mtime=0) as file:
                yield cast(BinaryIO, file)


@contextlib.contextmanager
def _opened(content: Content) -> Iterator[BinaryIO]:
    if isinstance(content, bytes):
        yield BytesIO(content)
        return
    with storage_errors(content):
        file = content.open("rb")
    with file:
        yield file


def content_bytes(content: Content) -> int:
    """Size in bytes."""
    if isinstance(content, bytes):
        return len(content)
    with storage_errors(content):
        return content.stat().st_size


def _sha256(content: Content) -> str:
    if isinstance(content, Path):
        return sha256_file(content)
    return hashlib.sha256(content).hexdigest()


class _Told:
    """A file that says how much of it was read."""

    def __init__(self, file: BinaryIO, advance: Report) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._file.read(size)
        self._advance(len(data))
        return data


class _Counter:
    """Counts what is written and keeps none of it."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        """Count."""
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing to."""
