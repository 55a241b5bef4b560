"""Artifacts: folders whose `manifest.json` names every file's hash and where it came from.

The manifest holds only what the same inputs always give, so it is the same to the byte on every run.
Measurements differ from run to run: they are artifacts of kind `evidence` whose parents name what was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.files import atomic_write, sha256_file, storage_errors

__all__ = [
    "MANIFEST",
    "SIDE_FILES",
    "Artifact",
    "FileEntry",
    "Kind",
    "Manifest",
    "Parent",
    "Signature",
    "TensorSpec",
    "open_artifact",
    "read_artifact",
    "read_manifest",
    "tool_versions",
    "write_artifact",
]

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 << 20
# The folders of a found checkpoint that belong to it: sentence-transformers' modules, and chat templates.
_CHECKPOINT_FOLDERS = re.compile(r"(\d+_\w+/|additional_chat_templates/)?[^/]+$")
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "task.json",
)
"""What a runtime reads beside a graph, and so what travels with it."""

Kind = Literal["checkpoint", "onnx", "genai", "gguf", "gguf-adapter", "tensorrt", "ort", "executorch", "evidence"]


def _inside(path: str) -> str:
    """Accept a relative POSIX path that cannot leave its folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or str(pure) != path or path == ".":
        raise ValueError(f"{path!r} is not a plain path inside the artifact")
    return path


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Strict):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_inside)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TensorSpec(_Strict):
    """A tensor on the wire; a free axis is a name, so that equal names are equal lengths."""

    name: str
    dtype: str
    shape: Annotated[tuple[int | str, ...], Field(strict=False)]


class Signature(_Strict):
    """What an engine takes and gives."""

    inputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)]


class Parent(_Strict):
    """Something this artifact was made from."""

    role: str
    digest: str


class Manifest(_Strict):
    """All that is known of an artifact from the way it was made."""

    schema_version: Literal[1] = 1
    kind: Kind
    task: str | None = None
    precision: str | None = None
    step: str
    options: dict[str, JsonValue] = {}
    tools: dict[str, str] = {}
    parents: Annotated[tuple[Parent, ...], Field(strict=False)] = ()
    signature: Signature | None = None
    files: Annotated[tuple[FileEntry, ...], Field(strict=False)]

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical manifest: equal digests are equal files made in the same way."""
        return "sha256:" + hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An opened artifact: its folder (or single file) and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def kind(self) -> Kind:
        """What runs it."""
        return self.manifest.kind

    @property
    def folder(self) -> Path:
        """The folder that its files are in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files together."""
        return sum(entry.size_bytes for entry in self.manifest.files)

    @property
    def model_bytes(self) -> int:
        """Bytes of the files that hold graph and weights, without tokenizer, golden vectors and texts."""
        suffixes = (".onnx", ".onnx.data", ".safetensors", ".gguf", ".ort", ".pte", ".tflite", ".engine")
        return sum(
            entry.size_bytes
            for entry in self.manifest.files
            if entry.path.endswith(suffixes) and not entry.path.startswith("golden/")
        )

    def file(self, relative: str) -> Path:
        """Path of one of its files.

        Raises:
            ArtifactError: the manifest names no such file.
        """
        if not any(entry.path == relative for entry in self.manifest.files):
            names = ", ".join(entry.path for entry in self.manifest.files)
            raise ArtifactError(f"{self.path}: has no file {relative!r}; it has {names}")
        return self.folder / relative


def canonical_json(value: Any) -> str:
    """Write JSON in the one way that is hashed: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def tool_versions(*distributions: str) -> dict[str, str]:
    """Versions of edgesmith and the named distributions; what is not installed did no work and is left out."""
    found = {}
    for name in sorted({"edgesmith", *distributions}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_artifact(
    folder: Path,
    *,
    kind: Kind,
    step: str,
    options: Mapping[str, JsonValue] | None = None,
    parents: Iterable[Parent] = (),
    task: str | None = None,
    precision: str | None = None,
    signature: Signature | None = None,
    tools: Mapping[str, str] | None = None,
) -> Artifact:
    """Hash a finished folder's files and write its manifest, last of all.

    Args:
        folder: Holds every file of the artifact and nothing else.
        kind: What runs it.
        step: The command that made it.
        options: The step's options, complete, so that equal options are equal work.
        parents: What it was made from.
        task: Name of the task, where it has one.
        precision: Of the weights and arithmetic (`fp32`, `int8`, …).
        signature: What its engine takes and gives.
        tools: Versions of the libraries that did the work.

    Returns:
        The opened artifact.

    Raises:
        StorageError: a file cannot be read or written.
    """
    manifest = Manifest(
        kind=kind,
        task=task,
        precision=precision,
        step=step,
        options=dict(options or {}),
        tools=dict(tools or {}),
        parents=tuple(parents),
        signature=signature,
        files=_list_files(folder),
    )
    atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return Artifact(path=folder, manifest=manifest)


def open_artifact(path: Path, *, kinds: tuple[Kind, ...] = get_args(Kind)) -> Artifact:
    """Open an artifact and check every file against its hash.

    A Hugging Face folder, a folder of onnxruntime-genai, or a bare `.onnx` or `.gguf` file made by someone else is
    accepted too: its manifest is derived from what is there.

    Args:
        path: The artifact's folder, a Hugging Face folder or a model file.
        kinds: What the caller can use.

    Returns:
        The artifact, with all of its files as its manifest says.

    Raises:
        UsageError: there is nothing at `path`, or it is no artifact.
        ArtifactError: a file is missing, was added or was altered, or the manifest is damaged.
        UnsupportedError: it is of a kind that the caller cannot use.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    artifact = read_artifact(path) if (path / MANIFEST).is_file() else _derive(path)
    if artifact.kind not in kinds:
        raise UnsupportedError(
            f"{path}: is of kind {artifact.kind!r}, but this needs {' or '.join(repr(kind) for kind in kinds)}"
        )
    return artifact


def read_artifact(folder: Path) -> Artifact:
    """Open an artifact of ours, which has a manifest, and check every file against its hash.

    Raises:
        ArtifactError: there is no manifest, or it is damaged, or a file is missing, was added or was altered.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return Artifact(path=folder, manifest=manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest alone; its files are not looked at.

    Raises:
        ArtifactError: there is no manifest, or it is damaged.
    """
    source = folder / MANIFEST
    if not source.is_file():
        raise ArtifactError(f"{source}: is missing", mend="Get the artifact again from where it was made.")
    with storage_errors(source):
        if source.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{source}: is {source.stat().st_size:,} bytes; a manifest has at most 16 MiB")
        text = source.read_bytes()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{source}: is damaged at {where or 'its start'}: {first['msg']}",
            mend="Get the artifact again from where it was made.",
        ) from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare a folder with its manifest.

    Raises:
        ArtifactError: naming the first file that is missing, added, a link, or altered.
    """
    mend = "Get the artifact again from where it was made, or make it again with `edgesmith run`."
    expected = {entry.path: entry for entry in manifest.files}
    found = {name for name in _walk(folder) if name != MANIFEST}
    for name in sorted(expected.keys() - found):
        raise ArtifactError(f"{folder / name}: is missing, but the manifest names it", mend=mend)
    for name in sorted(found - expected.keys()):
        raise ArtifactError(f"{folder / name}: was added; the manifest does not name it", mend=mend)
    for name, entry in sorted(expected.items()):
        path = folder / name
        with storage_errors(path):
            size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise ArtifactError(
                f"{path}: has {size_bytes:,} bytes, but the manifest says {entry.size_bytes:,}", mend=mend
            )
        if (actual := sha256_file(path)) != entry.sha256:
            raise ArtifactError(
                f"{path}: was altered: its SHA-256 is {actual[:16]}…, the manifest says {entry.sha256[:16]}…",
                mend=mend,
            )


def _derive(path: Path) -> Artifact:
    """Make a manifest for files that came without one."""
    if path.is_file() and path.suffix in (".onnx", ".gguf"):
        names = [path.name, f"{path.name}.data", *SIDE_FILES] if path.suffix == ".onnx" else [path.name]
        files = tuple(_entry(path.with_name(name), name) for name in names if path.with_name(name).is_file())
        kind: Kind = "onnx" if path.suffix == ".onnx" else "gguf"
        return Artifact(path=path, manifest=Manifest(kind=kind, step="found", files=files))
    if path.is_dir() and any((path / name).exists() for name in ("task.json", "golden", "model.onnx")):
        raise ArtifactError(
            f"{path}: looks like an artifact, but its {MANIFEST} is missing, so nothing in it can be trusted",
            mend="Get the artifact again from where it was made; or name the bare .onnx file.",
        )
    if path.is_dir() and (path / "genai_config.json").is_file():
        return Artifact(
            path=path, manifest=Manifest(kind="genai", step="found", files=_list_files(path, top_level=True))
        )
    if path.is_dir() and (path / "config.json").is_file():
        return Artifact(
            path=path, manifest=Manifest(kind="checkpoint", step="found", files=_list_files(path, top_level=True))
        )
    raise UsageError(
        f"{path}: is no artifact (no {MANIFEST}), no Hugging Face folder (no config.json), no folder of "
        "onnxruntime-genai (no genai_config.json), no .onnx or .gguf file"
    )


def _list_files(folder: Path, *, top_level: bool = False) -> tuple[FileEntry, ...]:
    with storage_errors(folder):
        names = [name for name in _walk(folder) if name != MANIFEST]
    if top_level:  # of a found checkpoint: not its .git, logs or other formats' folders
        names = [name for name in names if not name.startswith(".") and _CHECKPOINT_FOLDERS.match(name)]
    return tuple(_entry(folder / name, name) for name in sorted(names))


def _entry(path: Path, name: str) -> FileEntry:
    with storage_errors(path):
        return FileEntry(path=name, size_bytes=path.stat().st_size, sha256=sha256_file(path))


def _walk(folder: Path) -> list[str]:
    """All files below a folder as POSIX paths; a link out of it is refused."""
    names: list[str] = []
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            leaves = path.is_symlink() and not path.resolve().is_relative_to(root)
            # A hub cache links the files of a snapshot to blobs elsewhere: found checkpoints may look like that.
            if leaves and ((folder / MANIFEST).exists() or not path.resolve().is_file()):
                raise ArtifactError(f"{path}: is a link to {path.resolve()}, outside the artifact")
        names.extend(Path(parent, name).relative_to(folder).as_posix() for name in files)
    return names
