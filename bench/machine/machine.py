"""What a machine is and how busy it was: recorded beside every measurement."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Machine", "control_groups", "describe_machine", "read_governor", "read_text"]

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
    is_smt: bool | None = None
    """Whether processors share cores: a neighbour then takes a third of the speed without taking the processor."""
    hypervisor: str | None = None
    """What the machine is a guest of; None where nothing says that it is one."""
    is_turbo: bool | None = None
    """Whether the clock may rise while it is cool: the first minute is then the fastest."""
    max_mhz: int | None = None
    """Highest clock that the frequency policy allows."""
    quota_cpus: float | None = None
    """Processors' time that the control groups allow, such as 1.5; None without a quota."""

    @property
    def name(self) -> str:
        """What tells it from another machine, in a few words."""
        return f"{self.cpu}, {self.num_cpus} {'CPU' if self.num_cpus == 1 else 'CPUs'}"

    @property
    def summary(self) -> str:
        """One line for a report's head."""
        flags = ", ".join(flag for flag in self.flags if flag not in ("fma", "avx512f"))
        return f"{self.name} ({flags or 'no vector flags known'}), {self.system}"

    @property
    def setup(self) -> str:
        """What can make figures of equal machines differ, as far as it is known: `governor performance, no SMT`."""
        parts = [
            f"governor {self.governor}" if self.governor else "",
            "" if self.is_smt is None else "SMT" if self.is_smt else "no SMT",
            "" if self.is_turbo is None else "turbo" if self.is_turbo else "no turbo",
            f"at most {self.max_mhz:,} MHz" if self.max_mhz else "",
            f"guest of {self.hypervisor}" if self.hypervisor else "",
            f"quota of {self.quota_cpus:g} CPUs" if self.quota_cpus else "",
        ]
        return ", ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Machine:
        """Read what `to_json` gave."""
        return cls(**(dict(value) | {"flags": tuple(value["flags"])}))


def describe_machine(root: Path = Path("/")) -> Machine:
    """Read the machine's description from the kernel.

    Args:
        root: Folder in which `proc` and `sys` are.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    memory = re.search(r"MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "")
    pressure = re.search(r"some avg10=([\d.]+)", read_text(root / "proc/pressure/cpu") or "")
    return Machine(
        cpu=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        num_cpus=_num_cpus(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        memory_mb=int(memory[1]) * 1024 // 1_000_000 if memory else None,
        governor=read_governor(root),
        load_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        cpu_pressure_10s=float(pressure[1]) if pressure else None,
        system=f"{platform.system()} {platform.release()}",
        is_smt=_is_on(root / "sys/devices/system/cpu/smt/active"),
        hypervisor=_hypervisor(root, is_guest="hypervisor" in flags),
        is_turbo=_is_turbo(root / "sys/devices/system/cpu"),
        max_mhz=_max_mhz(root / "sys/devices/system/cpu"),
        quota_cpus=_quota_cpus(root),
    )


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _field(cpuinfo: str, name: str) -> str | None:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else None


def read_governor(root: Path = Path("/")) -> str | None:
    """Read the frequency policy of all processors; several are joined by commas, none is None."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({(read_text(file) or "").strip() for file in files} - {""})) or None


def control_groups(root: Path = Path("/")) -> list[Path]:
    """Folders of the control groups that share out processors to this process, its own and those above it.

    In a container that sees another tree than the kernel names, those that it sees.

    Source: cgroups(7), `/proc/[pid]/cgroup`.
    """
    folders: list[Path] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) < 3 or (parts[1] and "cpu" not in parts[1].split(",")):
            continue
        top = root / "sys/fs/cgroup" / parts[1]
        group = top / parts[2].strip("/")
        for folder in (group, *group.parents):
            folders.append(folder)
            if folder == top:
                break
    return folders


def _quota_cpus(root: Path) -> float | None:
    quotas = []
    for folder in control_groups(root):
        old = (read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        text = read_text(folder / "cpu.max") or " ".join(value or "" for value in old)
        match = re.match(r"(\d+)\s+([1-9]\d*)\s*$", text)  # "max 100000" and "-1 100000" are no quota
        if match:
            quotas.append(round(int(match[1]) / int(match[2]), 3))
    return min(quotas, default=None)


def _hypervisor(root: Path, *, is_guest: bool) -> str | None:
    kind = (read_text(root / "sys/hypervisor/type") or "").strip()
    tree = (read_text(root / "proc/device-tree/hypervisor/compatible") or "").strip("\0\n ").removeprefix("linux,")
    vendor = (read_text(root / "sys/class/dmi/id/sys_vendor") or "").strip()
    return kind or tree or ((vendor or "an unnamed hypervisor") if is_guest else None)


def _is_turbo(cpus: Path) -> bool | None:
    no_turbo = _is_on(cpus / "intel_pstate/no_turbo")
    return _is_on(cpus / "cpufreq/boost") if no_turbo is None else not no_turbo


def _max_mhz(cpus: Path) -> int | None:
    texts = [read_text(file) or "" for file in cpus.glob("cpu[0-9]*/cpufreq/scaling_max_freq")]
    return max((int(text) // 1000 for text in texts if text.strip().isdecimal()), default=None)


def _is_on(file: Path) -> bool | None:
    return {"0": False, "1": True}.get((read_text(file) or "").strip())


def read_text(path: Path) -> str | None:
    """Read a file of the kernel; None when it has none, or none that this process may read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
