"""Data files that Debian packages carry, pinned by SHA-256 one by one.

A package is downloaded by apt, which checks its signature, and unpacked with dpkg as data: nothing is installed
and nothing of it runs, so no rights are needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packages import cache_folder
from stamp import sha256_file

__all__ = ["DebianFiles", "fetch_debian_files"]


@dataclass(frozen=True, kw_only=True)
class DebianFiles:
    """Files of one folder of a Debian package."""

    package: str
    folder: str
    """Where the installed package has them."""
    sha256: Mapping[str, str]
    """Name of the file → its hash, in hexadecimal."""


def fetch_debian_files(wanted: DebianFiles) -> Path:
    """Return a folder that holds the files: the installed package's, or a copy downloaded the first time.

    Raises:
        SystemExit: There is no apt, the download failed, or a file is not the pinned one.
    """
    installed, cached = Path(wanted.folder), cache_folder() / f"debian-{wanted.package}"
    for folder in (installed, cached):
        if not _faults(wanted, folder):
            return folder
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".fetch-") as temporary:
        folder = _unpack(_download(wanted.package, Path(temporary)), Path(temporary, "unpacked"))
        found = folder / installed.relative_to("/")
        if faults := _faults(wanted, found):
            raise SystemExit(f"the package {wanted.package} is not the expected one: {', '.join(faults)}: refused")
        shutil.rmtree(cached, ignore_errors=True)  # what was there was damaged
        found.rename(cached)
    return cached


def _faults(wanted: DebianFiles, folder: Path) -> list[str]:
    """The files that are missing from a folder, or are others."""
    return [
        name
        for name, expected in wanted.sha256.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != expected
    ]


def _download(package: str, folder: Path) -> Path:
    print(f"downloading the Debian package {package} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        reason = "this machine has no apt-get"
    else:
        packages = list(folder.glob("*.deb"))
        if done.returncode == 0 and len(packages) == 1:
            return packages[0]
        reason = (done.stderr.strip().splitlines() or ["apt-get wrote no package"])[-1]
    raise SystemExit(
        f"cannot download the Debian package {package}: {reason}\n"
        f"  → on Debian or Ubuntu: sudo apt-get update && sudo apt-get install {package}"
    )


def _unpack(package: Path, folder: Path) -> Path:
    done = subprocess.run(
        ["dpkg-deb", "--extract", str(package), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{package.name} cannot be unpacked: {done.stderr.strip()}")
    return folder
