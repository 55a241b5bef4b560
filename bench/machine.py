"""What a machine is and how busy it was: recorded beside every measurement."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Machine", "describe_machine"]

_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine at one moment. What it does not say is None."""

    cpu: str
    architecture: str
    num_cpus: int
    """Logical processors that this process may use."""
    flags: tuple[str, ...]
    """Instruction sets that decide the speed and the rounding of integer models."""
    memory_mb: int | None
    governor: str | None
    """Frequency policy; `powersave` makes the first requests slow."""
    load_1min: float | None
    cpu_pressure_10s: float | None
    """Share of time, in per cent, in which a task waited for a processor."""
    system: str

    @property
    def name(self) -> str:
        """What tells it from another machine, in a few words."""
        return f"{self.cpu}, {self.num_cpus} {'CPU' if self.num_cpus == 1 else 'CPUs'}"

    @property
    def summary(self) -> str:
        """One line for a report's head."""
        flags = ", ".join(flag for flag in self.flags if flag not in ("fma", "avx512f"))
        return f"{self.name} ({flags or 'no vector flags known'}), {self.system}"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """Read what `to_json` gave."""
        return cls(**(dict(value) | {"flags": tuple(value["flags"])}))


def describe_machine() -> Machine:
    """Read the machine's description from the kernel."""
    cpuinfo = _read(Path("/proc/cpuinfo")) or ""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    memory = re.search(r"MemTotal:\s+(\d+) kB", _read(Path("/proc/meminfo")) or "")
    pressure = re.search(r"some avg10=([\d.]+)", _read(Path("/proc/pressure/cpu")) or "")
    return Machine(
        cpu=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        num_cpus=_num_cpus(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        memory_mb=int(memory[1]) * 1024 // 1_000_000 if memory else None,
        governor=(_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "").strip() or None,
        load_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        cpu_pressure_10s=float(pressure[1]) if pressure else None,
        system=f"{platform.system()} {platform.release()}",
    )


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _field(cpuinfo: str, name: str) -> str | None:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
