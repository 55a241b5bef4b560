"""Unpacking bundles that came from anywhere: streamed, bounded, and every byte as its index says."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, BinaryIO, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesmith.archive import BUNDLE, import_zstandard
from edgesmith.artifact import MANIFEST, FileEntry, Manifest, read_manifest
from edgesmith.errors import ArtifactError, StorageError, UsageError
from edgesmith.files import publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress

__all__ = ["Unpacked", "unpack_bundle"]

_MAX_INDEX_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
# What a tar may spend on headers between two files; ours take 512 bytes, and 1,536 where a path is long.
_HEADER_BYTES = 64 << 10
_READ_BYTES = 64 << 10  # tarfile reads so far ahead
_MEND = "Copy the bundle again from where it was made, and compare its sha256."


class _Listed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: str
    version: str
    path: str
    digest: str


class _Index(BaseModel):
    """What `bundle.json` says."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    schema_version: Literal[1]
    models: Annotated[tuple[_Listed, ...], Field(strict=False)]
    files: Annotated[tuple[FileEntry, ...], Field(strict=False)]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What was unpacked.

    Attributes:
        path: The folder.
        archive_bytes: Of the archive.
        unpacked_bytes: Of the files.
        num_files: How many there are.
        models: `name:version` of each model.
    """

    path: Path
    archive_bytes: int
    unpacked_bytes: int
    num_files: int
    models: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-able form."""
        return {**asdict(self), "path": str(self.path)}


def unpack_bundle(path: Path, out: Path, *, progress: Progress = SILENT) -> Unpacked:
    """Unpack a bundle into a folder that appears whole or not at all.

    The index, which comes first, says what may follow: a path that it does not name, a byte too many or too few, and
    another hash end it. So nothing is written beside the folder, and never more than the index says.

    Args:
        path: Archive, zstd or gzip or neither, whatever it is called.
        out: Folder to write; one that holds a bundle is replaced.
        progress: Shows the bytes done.

    Raises:
        UsageError: There is no such archive, or something else is at `out`.
        ArtifactError: The archive is damaged, cut short or hostile.
        MissingExtraError: It needs `zstandard`, which is not installed.
        StorageError: The disk has no room for what the index says, or a file cannot be read or written.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}", mend="Name an archive.")
    if out.exists() and not (out / BUNDLE).is_file():
        raise UsageError(f"{out}: is there already and is no bundle", mend="Choose another name.")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(out)
        try:
            temporary.mkdir()
            index = _unpack(path, temporary, progress)
            _check_models(path, temporary, index)
            publish_folder(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Unpacked(
        path=out,
        archive_bytes=path.stat().st_size,
        unpacked_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        num_files=len(index.files) + 1,
        models=tuple(f"{one.name}:{one.version}" for one in index.models),
    )


def _unpack(path: Path, folder: Path, progress: Progress) -> _Index:
    with storage_errors(path), _archive_errors(path), path.open("rb") as file, _expanded(file) as stream:
        bounded = _Bounded(stream, path)
        with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|", bufsize=_READ_BYTES) as archive:
            members = _members(archive, bounded, path)
            name, member = next(members, ("", None))
            if name != BUNDLE or member is None:
                raise ArtifactError(f"{path}: is no bundle: it begins with {name!r}, not with {BUNDLE}")
            if member.size > _MAX_INDEX_BYTES:
                raise ArtifactError(f"{path}: {BUNDLE} has {member.size:,} bytes; an index has at most 16 MiB")
            bounded.allow(member.size)
            content = _content_of(archive, member).read()
            index = _read_index(path, content)
            _check_room(path, folder, index)
            (folder / BUNDLE).write_bytes(content)
            awaited = {entry.path: entry for entry in index.files}
            with progress.bar("unpack", total=sum(entry.size_bytes for entry in index.files)) as advance:
                for name, member in members:
                    if (entry := awaited.pop(name, None)) is None:
                        raise ArtifactError(f"{path}: holds {name!r}, which its index does not name, or twice")
                    if member.size != entry.size_bytes:
                        raise ArtifactError(
                            f"{path}: {name} has {member.size:,} bytes, but the index says {entry.size_bytes:,}"
                        )
                    bounded.allow(member.size)
                    _write_checked(_content_of(archive, member), folder / name, entry, path)
                    advance(entry.size_bytes)
    if awaited:
        raise ArtifactError(
            f"{path}: is cut short: {next(iter(awaited))} is missing, with {len(awaited)} of {len(index.files)} files",
            mend=_MEND,
        )
    return index


def _members(archive: tarfile.TarFile, bounded: _Bounded, path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular files with their paths inside the root folder; everything else is refused."""
    root = None
    while True:
        member = archive.next()
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header that it has seen
        if member is None:
            return
        pure = PurePosixPath(member.name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in member.name or "\0" in member.name:
            raise ArtifactError(f"{path}: holds the path {member.name!r}, which leads out of its folder")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
            raise ArtifactError(f"{path}: {member.name!r} is a link, a device or no plain file")
        if member.isdir():
            continue
        root = pure.parts[0] if root is None else root
        if len(pure.parts) < 2 or pure.parts[0] != root:
            raise ArtifactError(f"{path}: {member.name!r} is not inside the folder {root!r}")
        yield "/".join(pure.parts[1:]), member
        bounded.begin_header()  # folders between two files share what is left to headers


def _content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # of a regular file there is one
    return content


def _read_index(path: Path, content: bytes) -> _Index:
    try:
        index = _Index.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its start"
        raise ArtifactError(f"{path}: {BUNDLE} is damaged at {where}: {first['msg']}", mend=_MEND) from error
    names = {entry.path for entry in index.files}
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    if len(names) < len(index.files) or names & (folders | {BUNDLE}):
        twice = sorted(names & (folders | {BUNDLE})) or [BUNDLE]
        raise ArtifactError(f"{path}: {BUNDLE} names a path twice, or as a file and a folder, near {twice[0]!r}")
    return index


def _check_room(path: Path, folder: Path, index: _Index) -> None:
    """Refuse before the disk is full."""
    needed, free = sum(entry.size_bytes for entry in index.files), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{path}: unpacks to {needed:,} bytes, and {free:,} are free", mend="Free disk space, or choose another -o."
        )


def _write_checked(content: IO[bytes], place: Path, entry: FileEntry, path: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    digest, num_bytes = hashlib.sha256(), 0
    with place.open("xb") as file:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            file.write(chunk)
    if num_bytes != entry.size_bytes:
        raise ArtifactError(f"{path}: is cut short inside {entry.path}", mend=_MEND)
    if digest.hexdigest() != entry.sha256:
        raise ArtifactError(
            f"{path}: {entry.path} was altered: its SHA-256 is {digest.hexdigest()[:16]}…, the index says "
            f"{entry.sha256[:16]}…",
            mend=_MEND,
        )


def _check_models(path: Path, folder: Path, index: _Index) -> None:
    """Hold the index against the artifacts' own manifests: both must tell of the same files."""
    listed = {entry.path: entry for entry in index.files}
    for model in index.models:
        place = f"models/{model.name}/{model.version}"
        if f"{place}/{MANIFEST}" not in listed:
            if model.path not in listed and not any(name.startswith(f"{place}/") for name in listed):
                raise ArtifactError(f"{path}: has nothing of {model.name}:{model.version}", mend=_MEND)
            continue
        manifest = read_manifest(folder / place)
        if manifest.digest != model.digest or _differs(manifest, place, listed):
            raise ArtifactError(f"{path}: {place} is not the {model.name}:{model.version} that was packed", mend=_MEND)


def _differs(manifest: Manifest, place: str, listed: Mapping[str, FileEntry]) -> bool:
    own = {f"{place}/{entry.path}": (entry.size_bytes, entry.sha256) for entry in manifest.files}
    packed = {
        name: (entry.size_bytes, entry.sha256)
        for name, entry in listed.items()
        if name.startswith(f"{place}/") and name != f"{place}/{MANIFEST}"
    }
    return own != packed


@contextlib.contextmanager
def _expanded(file: BinaryIO) -> Iterator[BinaryIO]:
    """Decompress by what the file begins with, a bounded piece at a time."""
    start = file.read(4)
    file.seek(0)
    if start == b"\x28\xb5\x2f\xfd":
        zstandard = import_zstandard()
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        with decompressor.stream_reader(file, read_across_frames=True, closefd=False) as stream:
            yield stream
    elif start[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
            yield cast(BinaryIO, unzipped)
    else:
        yield file


@contextlib.contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    """Turn what the decoders raise on damaged input into one error that names the archive."""
    damages: tuple[type[Exception], ...] = (
        tarfile.TarError,
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        UnicodeError,
        *_zstd_errors(),
    )
    try:
        yield
    except damages as error:
        reason = str(error).strip() or type(error).__name__
        raise ArtifactError(f"{path}: is no bundle, or is damaged or cut short: {reason}", mend=_MEND) from error


def _zstd_errors() -> tuple[type[Exception], ...]:
    try:
        import zstandard
    except ModuleNotFoundError:
        return ()
    return (zstandard.ZstdError,)


class _Bounded:
    """Gives out no more bytes than were allowed, so that a header cannot claim what the index does not know of."""

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream = stream
        self._path = path
        self.begin_header()  # of the first file

    def begin_header(self) -> None:
        """Let the headers of the next file through."""
        self._left = _HEADER_BYTES + _READ_BYTES

    def allow(self, num_bytes: int) -> None:
        """Let so many more bytes through, and the padding after them."""
        self._left += num_bytes + tarfile.BLOCKSIZE

    def read(self, size: int) -> bytes:
        """Read on."""
        data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArtifactError(f"{self._path}: holds more than its index says", mend=_MEND)
        return data
