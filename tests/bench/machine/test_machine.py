from __future__ import annotations

from pathlib import Path

import pytest

from bench.machine.machine import Machine, control_groups, describe_machine

CPUINFO = "processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: fpu fma avx2 {}\n"


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_reads_back() -> None:
    machine = describe_machine()
    assert machine.num_cpus >= 1
    assert machine.cpu in machine.summary
    assert Machine.from_json(machine.to_json()) == machine


def test_what_makes_figures_differ_is_named(tmp_path: Path) -> None:
    root = files(
        tmp_path,
        {
            "proc/cpuinfo": CPUINFO.format("hypervisor"),
            "proc/meminfo": "MemTotal:        1000000 kB\n",
            "proc/pressure/cpu": "some avg10=12.50 avg60=0 avg300=0 total=9\n",
            "proc/self/cgroup": "0::/box/job\n",
            "sys/fs/cgroup/box/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
            "sys/devices/system/cpu/smt/active": "1\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3400000\n",
            "sys/class/dmi/id/sys_vendor": "QEMU\n",
        },
    )
    machine = describe_machine(root)
    assert machine.cpu == "Test CPU"
    assert machine.flags == ("avx2", "fma")
    assert machine.memory_mb == 1024
    assert machine.cpu_pressure_10s == 12.5
    assert machine.setup == "governor powersave, SMT, turbo, at most 3,400 MHz, guest of QEMU, quota of 1.5 CPUs"
    assert Machine.from_json(machine.to_json()) == machine


def test_a_machine_that_says_nothing_is_described_all_the_same(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.setup == ""
    assert (machine.is_smt, machine.is_turbo, machine.hypervisor, machine.quota_cpus) == (None, None, None, None)


def test_switches_are_told_from_their_absence(tmp_path: Path) -> None:
    root = files(tmp_path, {"sys/devices/system/cpu/smt/active": "0\n", "sys/devices/system/cpu/cpufreq/boost": "0\n"})
    assert describe_machine(root).setup == "no SMT, no turbo"


@pytest.mark.parametrize(
    ("texts", "quota"),
    [
        ({"cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.cfs_quota_us": "50000\n"}, None),
        ({"cpu.max": "garbage\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
    ],
)
def test_quotas_of_both_kinds_of_control_groups(texts: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    root = files(tmp_path, {"proc/self/cgroup": "2:cpu,cpuacct:/docker/abc\n"})
    files(root / "sys/fs/cgroup/cpu,cpuacct", texts)
    assert describe_machine(root).quota_cpus == quota


def test_control_groups_are_listed_from_the_inner_one_to_the_top(tmp_path: Path) -> None:
    root = files(tmp_path, {"proc/self/cgroup": "3:cpuset:/x\n0::/a/b\n"})
    top = root / "sys/fs/cgroup"
    assert control_groups(root) == [top / "a" / "b", top / "a", top]


def test_a_description_by_an_older_version_reads() -> None:
    old = describe_machine().to_json()
    for name in ("is_smt", "hypervisor", "is_turbo", "max_mhz", "quota_cpus"):
        del old[name]
    assert Machine.from_json(old).is_smt is None
