"""File operations that survive a kill: hashing, atomic writes, atomic publication of folders."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesmith.errors import StorageError

__all__ = [
    "atomic_write",
    "copy_tree",
    "fsync_tree",
    "hold_lock",
    "publish_folder",
    "sha256_file",
    "sha256_text",
    "storage_errors",
    "temporary_sibling",
]

_CHUNK_BYTES = 1 << 20

# One entry a file state: (device, inode, size, mtime, ctime) → hash. A file is hashed once a process.
_HASHES: dict[tuple[int, int, int, int, int], str] = {}

_MENDS = {
    errno.ENOSPC: "Free disk space, or choose another place with --out and --store.",
    errno.EDQUOT: "Your quota is used up: free space, or choose another place with --out and --store.",
    errno.EACCES: "Choose a folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write to, or change its permissions.",
    errno.EROFS: "The file system is read-only: choose another place with --out and --store.",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that names `path` and the mend."""
    try:
        yield
    except OSError as error:
        # Serialisers raise OSError without an errno when a write falls short.
        message = f"{error.filename or path}: {error.strerror or error}"
        raise StorageError(message, mend=_MENDS.get(error.errno or 0, "")) from error


def sha256_file(path: Path) -> str:
    """Hash a file's content; the result is kept for as long as the file's state is unchanged.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        StorageError: the file cannot be read.
    """
    with storage_errors(path), path.open("rb") as file:
        stat = os.fstat(file.fileno())
        state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if state not in _HASHES:
            _HASHES[state] = hashlib.file_digest(file, "sha256").hexdigest()
        return _HASHES[state]


def sha256_text(*texts: str) -> str:
    """Hash texts in their order; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return digest.hexdigest()


def temporary_sibling(path: Path) -> Path:
    """Name a file or folder beside `path` that no other process will use; clear those of killed processes.

    A process is looked up by its id only where its name says that it ran in this process's own world: on a shared
    volume, an id of another host or container says nothing.
    """
    world = _process_world()
    for stale in path.parent.glob(f".{path.name}.{world}.*.tmp"):
        pid = stale.name.split(".")[-3]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{world}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@functools.cache
def _process_world() -> str:
    """Name the boot and the PID namespace that process ids are of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        boot, namespace = platform.node(), ""
    return sha256_text(boot, namespace)[:12]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: temporary file, fsync, rename, fsync of the folder.

    What is no plain file, such as /dev/stdout or a pipe, is written to as it is; of a link, the file it leads to.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_relative_to("/dev") or (path.exists() and not path.is_file()):
        with storage_errors(path), path.open("wb") as file:
            file.write(data)
        return
    path = path.resolve() if path.is_symlink() else path
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and the folder itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


@contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a folder, or on a file that is made for it; others wait.

    The lock belongs to the open file, so the system releases it when its holder is killed.

    Raises:
        StorageError: the file cannot be made or opened.
        BlockingIOError: another process holds it, and `wait` is off.
    """
    with storage_errors(path):
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def publish_folder(temporary: Path, destination: Path) -> None:
    """Move a finished folder into place in one step; a folder that was there is replaced.

    Args:
        temporary: The finished folder, on the same file system as `destination`.
        destination: Where readers look. On Linux they see the old folder or the new one at every moment. Where
            the system cannot swap two folders, a kill in the middle leaves the old one beside it, named `….old`.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    with storage_errors(destination):
        fsync_tree(temporary)
        if not destination.exists():
            temporary.rename(destination)
        elif _swap(temporary, destination):
            shutil.rmtree(temporary)
        else:
            old = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.old")
            destination.rename(old)
            temporary.rename(destination)
            shutil.rmtree(old)
        _fsync(destination.parent)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), exchange) == 0)


def copy_tree(source: Path, destination: Path) -> None:
    """Copy a folder so that `destination` appears whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_sibling(destination)
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                shutil.copytree(source, temporary)
            except shutil.Error as error:
                # copytree gathers the failures of all files in one list; the first says what is wrong.
                raise OSError(*_first_cause(error)) from error
            publish_folder(temporary, destination)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _first_cause(error: shutil.Error) -> tuple[int, str, str]:
    source, destination, reason = error.args[0][0]
    number = next((code for code in _MENDS if os.strerror(code) in str(reason)), 0)
    return number, os.strerror(number) if number else f"{source}: {reason}", str(destination)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
