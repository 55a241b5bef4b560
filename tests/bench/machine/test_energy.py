"""Folders laid out as the kernel shows its power zones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.machine.energy import EnergyMeter


def zone(root: Path, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 500)
    core = zone(tmp_path, "intel-rapl:0:0", 50)
    (tmp_path / "intel-rapl").mkdir()  # the controller itself has no counter
    with EnergyMeter(tmp_path) as meter:
        first.write_text("300100\n")
        second.write_text("200500\n")
        core.write_text("90000\n")
    assert meter.joules == pytest.approx(0.5)
    assert meter.per_request_mj(100) == pytest.approx(5.0)


def test_a_counter_that_starts_again_is_put_right(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 900_000, range_uj=1_000_000)
    with EnergyMeter(tmp_path) as meter:
        counter.write_text("150000\n")
    assert meter.joules == pytest.approx(0.25)


def test_a_machine_without_counters_says_nothing(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path / "nowhere") as meter:
        pass
    assert meter.joules is None
    assert meter.per_request_mj(10) is None


def test_a_counter_that_vanishes_or_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 10)
    with EnergyMeter(tmp_path) as meter:
        counter.unlink()
    assert meter.joules is None
    counter.write_text("no number")
    with EnergyMeter(tmp_path) as meter:
        counter.write_text("20")
    assert meter.joules is None
