from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.errors import StorageError, UsageError
from edgesmith.files import hold_lock
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import make_into
from edgesmith.stages.trained import TrainedStage
from edgesmith.store import Store
from edgesmith.walkers import Runner


@dataclass(frozen=True, kw_only=True)
class CountingStage(TrainedStage):
    """Counts in its workplace how often it was begun."""

    step: ClassVar[str] = "count"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    then: Callable[[Path], None] = lambda _: None

    @property
    def options(self) -> dict[str, JsonValue]:
        return {}

    @property
    def inputs(self) -> dict[str, str]:
        return {}

    def make_trained(self, folder: Path, workplace: Path, progress: Progress) -> Artifact:
        with (workplace / "begun").open("a") as file:
            file.write("x")
        self.then(workplace)
        (folder / "begun").write_text((workplace / "begun").read_text())
        return self.seal(folder)


def stage(root: Path, then: Callable[[Path], None] = lambda _: None) -> CountingStage:
    return CountingStage(workplace=root / "work", then=then)


def stop(place: Path) -> None:
    raise KeyboardInterrupt(place)


def out(root: Path) -> Path:
    folder = root / "out"
    folder.mkdir()
    return folder


def test_an_interrupted_run_finds_its_workplace_again_and_a_published_one_leaves_none(tmp_path: Path) -> None:
    def refuse(made: Artifact) -> None:
        raise ZeroDivisionError(made)

    with pytest.raises(KeyboardInterrupt):
        make_into(stage(tmp_path, stop), tmp_path / "out", lambda _: None)
    with pytest.raises(ZeroDivisionError):  # between the training and the moment when its result is in place
        make_into(stage(tmp_path), tmp_path / "out", refuse)
    made, _ = make_into(stage(tmp_path), tmp_path / "out", lambda _: None)
    assert made.file("begun").read_text() == "xxx"
    assert not list((tmp_path / "work").iterdir())


def test_a_store_keeps_the_workplace_until_the_result_is_in_it_and_finding_it_removes_what_a_kill_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "work" / stage(tmp_path).key.digest
    runner = Runner(store=Store(tmp_path / "store"), progress=SILENT)

    def full(*paths: Path) -> None:
        raise StorageError(f"{paths[0]}: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("edgesmith.store.publish_folder", full)
        with pytest.raises(StorageError):
            runner.step("count", "counts", (), lambda: stage(tmp_path))
    assert (place / "begun").exists()
    made = runner.step("count", "counts", (), lambda: stage(tmp_path))
    assert made is not None
    assert made.file("begun").read_text() == "xx"
    assert not place.exists()
    place.mkdir()
    runner.step("count", "counts", (), lambda: stage(tmp_path))
    assert runner.steps[-1].was_cached
    assert not place.exists()


def test_workplace_is_no_part_of_the_key(tmp_path: Path) -> None:
    assert stage(tmp_path).key.digest == stage(tmp_path / "other").key.digest


def test_two_processes_are_not_at_one_training(tmp_path: Path) -> None:
    place = tmp_path / "work" / stage(tmp_path).key.digest
    place.mkdir(parents=True)
    with hold_lock(place), pytest.raises(UsageError, match="another process is at this very training"):
        stage(tmp_path).make(tmp_path, SILENT)


def test_a_helping_process_ends_well_and_keeps_the_workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "work" / stage(tmp_path).key.digest
    place.mkdir(parents=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with hold_lock(place), pytest.raises(SystemExit) as ended:
        stage(tmp_path).make(out(tmp_path), SILENT)
    assert ended.value.code == 0
    assert (place / "begun").exists()


def test_what_nobody_went_on_with_for_two_weeks_goes(tmp_path: Path) -> None:
    old, new, held = (tmp_path / "work" / name for name in ("old", "new", "held"))
    for folder, days in ((old, 15), (new, 13), (held, 15)):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - days * 86400,) * 2)
    with hold_lock(held):
        make_into(stage(tmp_path), tmp_path / "out", lambda _: None)
    assert sorted((tmp_path / "work").iterdir()) == [held, new]
