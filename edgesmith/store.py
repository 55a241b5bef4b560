"""Content-addressed store: what was made once is found again, whoever asks and whatever was killed.

An entry's key is a hash of everything that its content depends on: the step, its options, the digests of all
inputs, the versions of the libraries that did the work and the code of the step. Entries appear whole or not at
all: they are built in a folder of their own, flushed, and renamed into place under a lock per key. A lock belongs to
an open file, so the system releases it when its holder is killed.

    ROOT/entries/KEY/     an artifact
    ROOT/work/KEY/        being built by the holder of the lock, or left by a killed one
    ROOT/locks/KEY        held while KEY is built
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from edgesmith.artifact import Artifact, canonical_json, read_artifact, tool_versions
from edgesmith.errors import ArtifactError, StorageError
from edgesmith.files import hold_lock, publish_folder, storage_errors

__all__ = ["StepKey", "Store", "code_digest", "default_store_root"]

_PACKAGES = frozenset({"edgesmith", "compress", "export", "serve", "bench"})


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """Everything that the result of a step depends on."""

    step: str
    """Name of the step, such as `merge`."""
    module: str
    """Import name of the module that does the work; its code and all it imports of ours are hashed."""
    options: Mapping[str, JsonValue]
    """The step's options, complete."""
    inputs: Mapping[str, str]
    """Role → digest of each input, data files included."""
    libraries: tuple[str, ...]
    """Distributions whose versions can change the result."""

    @property
    def digest(self) -> str:
        """The key as 64 hexadecimal digits."""
        fields = {
            "step": self.step,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
            "tools": tool_versions(*self.libraries),
            "code": code_digest(self.module),
        }
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


class Store:
    """A folder of finished artifacts by key. Any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Use `root`; it is made when first written to."""
        self.root = root

    def find(self, key: StepKey) -> Artifact | None:
        """Open a finished entry; one that is damaged counts as missing.

        Raises:
            StorageError: the store cannot be read.
        """
        folder = self._folder("entries", key)
        try:
            found = read_artifact(folder) if folder.is_dir() else None
        except ArtifactError:
            return None
        return found if found is None or found.manifest.step == key.step else None

    def forget(self, key: StepKey) -> None:
        """Remove an entry, so that it is made again.

        Raises:
            StorageError: the store cannot be written.
        """
        with self._lock(key), storage_errors(self.root):
            shutil.rmtree(self._folder("entries", key), ignore_errors=True)

    def build(self, key: StepKey, make: Callable[[Path], Artifact]) -> Artifact:
        """Give the entry of `key`, making it first where it is missing or damaged.

        Two processes that ask for one key at once do the work once: the second waits.

        Args:
            key: What the entry depends on.
            make: Called with an empty folder; fills it and writes its manifest. Whatever it raises passes
                through, and nothing stays behind.

        Returns:
            The finished entry, inside the store. Do not write to it.

        Raises:
            StorageError: the disk is full or the store cannot be written.
        """
        if (found := self.find(key)) is not None:
            return found
        self._sweep()
        with self._lock(key):
            if (found := self.find(key)) is not None:  # another process made it while this one waited
                return found
            entry, work = self._folder("entries", key), self._folder("work", key)
            with storage_errors(work):
                shutil.rmtree(work, ignore_errors=True)  # of a killed process: its lock is gone, ours is held
                work.mkdir(parents=True)
                entry.parent.mkdir(parents=True, exist_ok=True)
            try:
                with storage_errors(work):
                    made = make(work)
                assert made.manifest.step == key.step
                publish_folder(work, entry)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return read_artifact(entry)

    def _sweep(self) -> None:
        """Remove what killed processes left half-built: folders whose lock nobody holds."""
        for left in self.root.glob("work/*"):
            key = left.name.lstrip(".").partition(".")[0]
            lock = self.root / "locks" / key
            with suppress(BlockingIOError, StorageError), hold_lock(lock, wait=False):
                shutil.rmtree(left, ignore_errors=True)

    def _folder(self, area: str, key: StepKey) -> Path:
        return self.root / area / key.digest

    @contextmanager
    def _lock(self, key: StepKey) -> Iterator[None]:
        path = self._folder("locks", key)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path):
            yield


def default_store_root() -> Path:
    """`$EDGESMITH_STORE`, or `edgesmith/store` in the user's cache folder."""
    if root := os.environ.get("EDGESMITH_STORE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesmith" / "store"


def code_digest(module: str) -> str:
    """Hash a module's source together with every module of this project that it imports, however deep.

    Returns:
        SHA-256 as 64 hexadecimal digits. It changes when any line that could change the module's work does.
    """
    sources = _closure(module)
    return hashlib.sha256(canonical_json(sources).encode()).hexdigest()


def _closure(module: str) -> dict[str, str]:
    """Module → source hash, for a module and all it imports of ours (also inside functions)."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources or (read := _read_module(name)) is None:
            continue
        sources[name], imported = read
        parent, _, _ = name.rpartition(".")
        waiting.extend([parent] if parent else [])  # importing a.b runs a
        waiting.extend(imported)
    return sources


@functools.cache
def _read_module(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Hash of a module's source and the modules of ours that it names; None if it is not one of ours."""
    source = _source(name)
    if source is None:
        return None
    return hashlib.sha256(source).hexdigest(), tuple(_imports(ast.parse(source)))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from a import b`: b may be a module or a name in a.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # a module imported lazily by its name
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in _PACKAGES and name.isascii())


def _source(name: str) -> bytes | None:
    """Find a module's source by its path alone: asking the import system would import its parents, torch and all."""
    package, *rest = name.split(".")
    folder = _package_folder(package)
    if folder is None or not all(part.isidentifier() for part in rest):
        return None
    module = folder.joinpath(*rest)
    for path in (module / "__init__.py", module.with_suffix(".py")):
        if path.is_file():
            return path.read_bytes()
    return None


@functools.cache
def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
