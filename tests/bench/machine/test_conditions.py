from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.machine.conditions import Conditions, Watch

QUIET = Conditions(
    seconds=2.0,
    cpu_pressure_share=0.018,
    steal_share=0.0,
    others_share=0.03,
    governor="performance",
    load_before=0.2,
    load_after=0.54,
    num_throttled=0,
)


def write(root: Path, **files: str) -> None:
    paths = {
        "pressure": "proc/pressure/cpu",
        "stat": "proc/stat",
        "load": "proc/loadavg",
        "cgroup": "proc/self/cgroup",
        "inner": "sys/fs/cgroup/box/job/cpu.stat",
        "outer": "sys/fs/cgroup/box/cpu.stat",
        "old": "sys/fs/cgroup/cpu,cpuacct/cpu.stat",
        "thread0": "proc/self/task/7/schedstat",
        "thread1": "proc/self/task/8/schedstat",
        "governor0": "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "governor1": "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor",
    }
    for name, text in files.items():
        path = root / paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_counters_become_shares_of_the_watched_time(tmp_path: Path) -> None:
    write(tmp_path, pressure="some avg10=1.77 avg60=1.35 avg300=0.43 total=1000000\nfull avg10=0 total=0\n")
    write(tmp_path, stat="cpu  100 0 0 1000 0 0 0 50 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", load="0.19 0.18 0.53 4/94 20595")
    with Watch(tmp_path) as watch:
        time.sleep(0.1)
        write(tmp_path, pressure="some avg10=1.77 avg60=1.35 avg300=0.43 total=1030000\nfull avg10=0 total=9\n")
        write(tmp_path, stat="cpu  16000 0 0 71000 0 0 0 5050 0 0\n", load="3.19 0.18 0.53 4/94 20595")
    seen = watch.conditions
    assert seen.cpu_pressure_share is not None
    assert seen.cpu_pressure_share == pytest.approx(0.03 / seen.seconds, rel=1e-4)
    assert seen.steal_share == pytest.approx(5000 / (15900 + 5000), abs=1e-4)
    assert seen.others_share == pytest.approx(15900 / (15900 + 70000 + 5000), abs=2e-3)  # less our own few ticks
    assert (seen.load_before, seen.load_after) == (0.19, 3.19)
    assert seen.governor is None
    assert seen.num_throttled is None


def test_the_wait_of_all_threads_of_this_process_counts(tmp_path: Path) -> None:
    write(tmp_path, thread0="1000 5000000 9\n", thread1="1000 0 9\n")
    with Watch(tmp_path) as watch:
        time.sleep(0.1)
        write(tmp_path, thread0="1000 9000000 9\n", thread1="1000 6000000 9\n")
    assert watch.conditions.own_wait_share == pytest.approx(0.01 / watch.conditions.seconds, rel=1e-3)
    assert "waited " in watch.conditions.summary


def test_conditions_of_an_older_version_read() -> None:
    old = QUIET.to_json()
    del old["own_wait_share"]
    assert Conditions.from_json(old) == QUIET


def test_throttling_of_every_control_group_above_counts(tmp_path: Path) -> None:
    write(tmp_path, cgroup="0::/box/job\n", inner="nr_periods 5\nnr_throttled 2\n", outer="nr_throttled 10\n")
    with Watch(tmp_path) as watch:
        write(tmp_path, inner="nr_periods 9\nnr_throttled 3\n", outer="nr_throttled 14\n")
    assert watch.conditions.num_throttled == 5
    assert "throttled by the CPU quota 5 times" in watch.conditions.summary


def test_a_container_that_sees_only_the_top_of_an_old_hierarchy_counts_it(tmp_path: Path) -> None:
    write(tmp_path, cgroup="3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n", old="nr_throttled 7\n")
    with Watch(tmp_path) as watch:
        write(tmp_path, old="nr_throttled 8\n")
    assert watch.conditions.num_throttled == 1


def test_counters_that_run_backwards_give_no_negative_share(tmp_path: Path) -> None:
    write(tmp_path, pressure="some avg10=0 total=1000\n", stat="cpu 100 0 0 1000 10 0 0 50 0 0\n")
    with Watch(tmp_path) as watch:
        write(tmp_path, pressure="some avg10=0 total=10\n", stat="cpu 100 0 0 1010 9 0 0 49 0 0\n")
    assert watch.conditions.cpu_pressure_share == 0
    assert watch.conditions.steal_share == 0


def test_several_governors_are_all_named(tmp_path: Path) -> None:
    write(tmp_path, governor0="powersave\n", governor1="performance\n")
    with Watch(tmp_path) as watch:
        pass
    assert watch.conditions.governor == "performance, powersave"


def test_a_system_without_these_files_says_so(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        pass
    seen = watch.conditions
    assert (seen.cpu_pressure_share, seen.steal_share, seen.others_share, seen.load_after) == (None, None, None, None)
    assert seen.summary.startswith("unknown, ")
    assert Conditions.from_json(seen.to_json()) == seen


def test_garbage_in_the_kernels_files_is_unknown_rather_than_an_error(tmp_path: Path) -> None:
    write(tmp_path, pressure="\x00\xff", stat="cpu x y", load="", cgroup=":\n::::\nnonsense\n0\n")
    with Watch(tmp_path) as watch:
        pass
    assert watch.conditions.summary.startswith("unknown, ")


def test_this_machine_is_watched_and_reads_back() -> None:
    with Watch() as watch:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    seen = watch.conditions
    assert seen.seconds >= 0.05
    if Path("/proc/stat").exists():
        assert seen.others_share is not None
        assert 0 <= seen.others_share <= 1
    assert Conditions.from_json(seen.to_json()) == seen


def test_conditions_are_kept_when_the_measurement_fails() -> None:
    watch = Watch()
    with pytest.raises(RuntimeError), watch:
        raise RuntimeError
    assert watch.conditions.seconds > 0


def test_the_summary_is_one_line_with_units() -> None:
    assert QUIET.summary == (
        "CPU pressure 1.8 %, steal 0.0 %, others used 3 % of the processors, governor performance, "
        "load 0.2 → 0.5, 2.0 s"
    )


@pytest.mark.parametrize(
    "damage",
    [{"seconds": None}, {"steal_share": 1.5}, {"steal_share": -0.1}, {"load_after": "high"}, {"governor": 3},
     {"seconds": float("nan")}, {"num_throttled": True}, {"mood": 1}],
)  # fmt: skip
def test_damaged_conditions_are_refused(damage: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Conditions.from_json(QUIET.to_json() | damage)
    with pytest.raises(TypeError):
        Conditions.from_json({"seconds": 1.0})
