"""What this machine can do, and what is missing, in one table."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from edgesmith.store import default_store_root

__all__ = ["diagnose"]

_STAGES = ("compress", "export", "gguf", "genai", "serve", "bench")
_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+).*; *extra *== *["'](\w+)["']""")
_MIN_FREE_BYTES = 5_000_000_000


def diagnose() -> list[dict[str, Any]]:
    """Look at interpreter, extras, processor, memory and store; imports none of the extras' libraries.

    Returns:
        One fact each: `name`, `state` (`ok`, `missing` or `warning`) and `detail`, which names the mend.
    """
    return list(_facts())


def _facts() -> Iterator[dict[str, Any]]:
    yield _fact("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield _fact("edgesmith", "ok", metadata.version("edgesmith"))
    for extra in _STAGES:
        names = _brought_by(extra)
        found = {name: _version(name) for name in names}
        missing = [name for name, version in found.items() if version is None]
        if missing:
            yield _fact(extra, "missing", f"{', '.join(missing)}: pip install 'edgesmith[{extra}]'")
        else:
            yield _fact(extra, "ok", ", ".join(f"{name} {version}" for name, version in found.items()))
    yield _processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield _fact("memory", "ok" if memory > 4e9 else "warning", f"{memory / 1e9:.1f} GB")
    root = default_store_root()
    there = next(parent for parent in (root, *root.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    detail = f"{root}: {free / 1e9:.1f} GB free" + ("" if writable else "; not writable: set EDGESMITH_STORE")
    yield _fact("store", "ok" if writable and free > _MIN_FREE_BYTES else "warning", detail)


def _processor() -> dict[str, Any]:
    from bench.machine.machine import describe_machine

    machine = describe_machine()
    slow = machine.architecture == "x86_64" and not {"avx512_vnni", "avx_vnni"} & set(machine.flags)
    detail = machine.summary
    if slow:
        detail += "; no VNNI: 8-bit products saturate here, use reduce_range and compare with `edgesmith verify`"
    return _fact("processor", "warning" if slow else "ok", detail)


def _brought_by(extra: str) -> list[str]:
    """Distributions that an extra installs, from the package's own metadata."""
    found = [_REQUIREMENT.match(line) for line in metadata.requires("edgesmith") or []]
    return [match[1] for match in found if match and match[2] == extra]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _fact(name: str, state: str, detail: str) -> dict[str, Any]:
    return {"name": name, "state": state, "detail": detail}
