"""Bundles: artifacts, the thin runtime and a lock file as one folder or archive to copy to an edge box.

On the box two commands suffice: install the lock file, then `python -m serve`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from edgesmith.archive import (
    ARCHIVES,
    BUNDLE,
    Content,
    bundle_entries,
    content_bytes,
    import_zstandard,
    pack,
)
from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.files import publish_folder, sha256_file, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from edgesmith.thin_runtime import normal_name, runtime_files, runtime_libraries

__all__ = ["ARCHIVES", "Bundle", "write_bundle"]

_LOCK = "requirements.lock"
_RUNTIME = ("serve/", "edgesmith/")
_SERVED_KINDS = ("onnx", "gguf", "genai")
_READ_ME = """This folder serves {names}.

    python3 -m venv venv
    venv/bin/pip install --no-deps {install}
    venv/bin/python -m serve

It listens on http://127.0.0.1:8000, where a page lets one try it; `venv/bin/python -m serve --help` lists the flags.
Made by edgesmith {version} for Python {python}{platform}. --no-deps: the lock file is complete, and leaves out what the
libraries require for work that is not done here.
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        path: Folder or archive.
        size_bytes: Of all that is copied to the box: of an archive, what goes over the air.
        unpacked_bytes: Of the files on the box's disk.
        models: Names and versions.
        libraries: What is to be installed, `name==version`.
        model_bytes: Of the artifacts.
        runtime_bytes: Of the runtime's own code.
        wheel_bytes: Of the libraries, where they are inside.
        sha256: Of an archive, to be compared on the box; None of a folder.
        memory_bytes: Model → what a process that opens it and answers takes at its peak, mapped files included; of
            those that were measured.
    """

    path: Path
    size_bytes: int
    unpacked_bytes: int
    models: tuple[str, ...]
    libraries: tuple[str, ...]
    model_bytes: int
    runtime_bytes: int
    wheel_bytes: int
    sha256: str | None
    memory_bytes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """JSON-able form."""
        return {**asdict(self), "path": str(self.path)}


def write_bundle(
    models: Mapping[str, Path],
    out: Path,
    *,
    with_runtime: bool = True,
    with_wheels: bool = False,
    platform: str | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Write a bundle.

    Args:
        models: `name` or `name:version` → artifact.
        out: Folder, or an archive by its ending (`ARCHIVES`); `.tar.zst` is the smallest and the quickest to unpack.
        with_runtime: Put the runtime's code and a lock file in.
        with_wheels: Put the libraries in too, with their hashes in the lock file, so that the box needs no network.
        platform: The box's, as pip names it, such as `manylinux_2_28_aarch64`; this machine's if left out.
        progress: Shows how far it is.

    Raises:
        UsageError: No model, or there is something else at `out`.
        UnsupportedError: An artifact that the runtime does not serve, or wheels that do not exist for the platform.
        MissingExtraError: A library is not installed here.
        StorageError: The disk is full, or a file cannot be read or written.
    """
    if not models:
        raise UsageError("no model is given", mend="Give NAME=PATH, such as news=release/server.")
    if (with_wheels or platform) and not with_runtime:
        raise UsageError("wheels belong to the runtime, and that is left out", mend="Add --runtime.")
    is_archive = out.name.endswith(ARCHIVES)
    if out.exists() and not (is_archive and out.is_file()) and not (out / BUNDLE).is_file():
        raise UsageError(f"{out}: is there already and is no bundle", mend="Choose another name.")
    opened = {label: open_artifact(path) for label, path in models.items()}
    for label, artifact in opened.items():
        if artifact.kind not in _SERVED_KINDS:
            raise UnsupportedError(
                f"{label}: {artifact.path} is of kind {artifact.kind!r}; bundles hold {', '.join(_SERVED_KINDS)}"
            )
    if out.name.endswith(".tar.zst"):
        import_zstandard()
    runtime: dict[str, Content] = {}
    libraries: tuple[str, ...] = ()
    with TemporaryDirectory() as workplace, storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if with_runtime:
            wheels = Path(workplace, "wheels")
            runtime, libraries = _runtime_entries(opened, with_wheels, platform, wheels, progress)
        entries = bundle_entries(opened, runtime)
        unpacked_bytes = sum(map(content_bytes, entries.values()))
        runtime_bytes = sum(content_bytes(one) for name, one in runtime.items() if name.startswith(_RUNTIME))
        wheel_bytes = sum(content_bytes(one) for name, one in entries.items() if name.startswith("wheels/"))
        size_bytes = _write(entries, out, progress)
    return Bundle(
        path=out,
        size_bytes=size_bytes,
        models=tuple(opened),
        libraries=libraries,
        unpacked_bytes=unpacked_bytes,
        model_bytes=sum(artifact.size_bytes for artifact in opened.values()),
        runtime_bytes=runtime_bytes,
        wheel_bytes=wheel_bytes,
        sha256=sha256_file(out) if is_archive else None,
    )


def _runtime_entries(
    models: Mapping[str, Artifact], with_wheels: bool, platform: str | None, wheels: Path, progress: Progress
) -> tuple[dict[str, Content], tuple[str, ...]]:
    """The runtime's code, the lock file, its explanation and the wheels, which are fetched into a folder.

    Returns:
        Path inside the bundle → content, and the libraries.
    """
    entries: dict[str, Content] = dict(runtime_files())
    has_images = any(
        entry.path == "preprocessor_config.json" for artifact in models.values() for entry in artifact.manifest.files
    )
    kinds = [artifact.kind for artifact in models.values()]
    libraries = runtime_libraries(kinds, with_images=has_images, platform=platform)
    lines = list(libraries)
    if with_wheels:
        lines = _fetch_wheels(libraries, wheels, platform, progress)
        entries |= {f"wheels/{path.name}": path for path in wheels.iterdir()}
    entries[_LOCK] = ("\n".join(lines) + "\n").encode()
    entries["README.txt"] = _READ_ME.format(
        names=", ".join(models),
        install=f"{'--no-index --find-links wheels --require-hashes ' if with_wheels else ''}-r {_LOCK}",
        version=metadata.version("edgesmith"),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        platform=f" on {platform}" if platform else "",
    ).encode()
    return entries, libraries


def _write(entries: Mapping[str, Content], out: Path, progress: Progress) -> int:
    """Write a folder or an archive, which appears whole or not at all; its size."""
    temporary = temporary_sibling(out)
    if out.name.endswith(ARCHIVES):
        try:
            with temporary.open("wb") as file:
                pack(entries, file, name=out.name, progress=progress)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        return out.stat().st_size
    try:
        for name, content in entries.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
        size_bytes = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return size_bytes


def _fetch_wheels(libraries: Iterable[str], folder: Path, platform: str | None, progress: Progress) -> list[str]:
    """Fetch each library's wheel with pip; the lock file's lines, with hashes."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with TemporaryDirectory() as temporary:
        wanted = Path(temporary, "wanted.txt")
        wanted.write_text("\n".join(libraries) + "\n")
        if platform is None:  # also builds what has no wheel, such as llama-cpp-python
            command += ["wheel", "--no-deps", "--wheel-dir", str(folder), "-r", str(wanted)]
        else:
            command += ["download", "--no-deps", "--only-binary", ":all:", "--platform", platform]
            command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
            command += ["--dest", str(folder), "-r", str(wanted)]
        progress.note(f"fetching {len(tuple(libraries))} wheels")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr)
        raise UnsupportedError(
            f"pip could not get the wheels{f' for {platform}' if platform else ''}: {reason.strip()[-400:]}",
            mend="Leave --wheels out, and let the box fetch them; or name another platform.",
        )
    by_name = {normal_name(path.name.split("-")[0]): path for path in folder.glob("*.whl")}
    return [f"{one} --hash=sha256:{sha256_file(by_name[one.split('==')[0]])}" for one in libraries]
