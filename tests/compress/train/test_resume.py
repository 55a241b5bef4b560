from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.train.checkpoints import Checkpoints
from compress.train.run import Trained
from edgesmith.errors import StorageError
from tests.compress.train.small import (
    Labels,
    die_at_batch,
    is_same,
    small_model,
    train_small,
    weights,
)

ROOT = Path(__file__).parents[3]
DIE = """
import sys
from pathlib import Path
from tests.compress.train.small import *
train_small(small_model(), Path(sys.argv[1]), save_seconds=0, objective=Labels(is_projected=True),
            collate=die_at_batch(7), micro_batch_size=4, epochs=1.5)
"""


class StoppedError(Exception):
    pass


def interrupt(workplace: Path, *, after: int, **changes: Any) -> None:
    """Leave a training with its state of update `after` saved."""
    calls = 0

    def stop(model: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == after:
            raise StoppedError
        return float(calls)

    with pytest.raises(StoppedError):
        train_small(small_model(), workplace, save_seconds=0, evaluate=stop, **changes)


def kept(workplace: Path) -> set[str]:
    return {path.name for path in (workplace / "training").iterdir()} - {"tensorboard"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, dict[str, torch.Tensor]]:
    model = small_model()
    trained = train_small(
        model,
        tmp_path_factory.mktemp("whole"),
        objective=Labels(is_projected=True),
        micro_batch_size=4,
        epochs=1.5,
    )
    return trained, weights(model)


def test_a_killed_training_goes_on_to_the_very_same_weights(tmp_path: Path, uninterrupted: Any) -> None:
    killed = subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert json.loads((tmp_path / "training" / "last" / "training_state.json").read_text())["update"] == 3
    model = small_model()
    trained = train_small(
        model, tmp_path, objective=Labels(is_projected=True), micro_batch_size=4, epochs=1.5, save_seconds=0
    )
    assert is_same(weights(model), uninterrupted[1])
    assert trained.facts() == uninterrupted[0].facts()
    assert kept(tmp_path) == {f"best-{trained.best_update}.safetensors", "finished.json"}


def test_a_damaged_checkpoint_is_not_trusted(tmp_path: Path, uninterrupted: Any) -> None:
    interrupt(tmp_path, after=3, objective=Labels(is_projected=True), micro_batch_size=4, epochs=1.5)
    file = tmp_path / "training" / "last" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])
    model = small_model()
    trained = train_small(model, tmp_path, objective=Labels(is_projected=True), micro_batch_size=4, epochs=1.5)
    assert is_same(weights(model), uninterrupted[1])
    assert trained.facts() == uninterrupted[0].facts()


def test_a_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    interrupt(tmp_path / "other", after=3, learning_rate=5e-4)
    found, expected = small_model(), small_model()
    train_small(found, tmp_path / "other")
    train_small(expected, tmp_path / "new")
    assert is_same(weights(found), weights(expected))


def test_what_else_lies_in_the_workplace_stays(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    train_small(small_model(), tmp_path, epochs=0.2, evaluate=None)
    assert (tmp_path / "cache").is_dir()


def test_only_the_last_state_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    interrupt(tmp_path, after=6)
    assert kept(tmp_path) == {"best-11.safetensors", "last"}


def test_time_of_interrupted_parts_counts(tmp_path: Path) -> None:
    interrupt(tmp_path, after=3, max_minutes=60)
    path = tmp_path / "training" / "last" / "training_state.json"
    state = json.loads(path.read_text())
    assert state["seconds"] > 0
    path.write_text(json.dumps({**state, "seconds": 3601.0}))
    trained = train_small(small_model(), tmp_path, max_minutes=60)
    assert trained.num_updates == state["update"] + 1
    assert trained.stopped_because == f"the time is up after {trained.num_updates} of 16 updates"
    assert trained.seconds > 3601


def test_a_full_disk_names_the_place_and_loses_nothing(tmp_path: Path) -> None:
    interrupt(tmp_path, after=3)
    before = (tmp_path / "training" / "last" / "training_state.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(
            StorageError, match=r"a training checkpoint of .* \(\d+ bytes\) cannot be written"
        ) as caught:
            train_small(small_model(), tmp_path, save_seconds=0, evaluate=lambda _: 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in caught.value.message
    assert (tmp_path / "training" / "last" / "training_state.json").read_bytes() == before
    assert not list((tmp_path / "training").glob(".*"))
    assert train_small(small_model(), tmp_path).num_updates == 16


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path: Path) -> None:
    class Huge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(10**15, device="meta"))

    with pytest.raises(StorageError, match=r"needs 32000000\.00 GB \(\d+ bytes\) for its checkpoints, and .* are free"):
        Checkpoints(tmp_path).check_space(Huge())


def test_die_at_batch_is_what_kills(tmp_path: Path) -> None:
    assert die_at_batch(2)([{"input_ids": [8], "label": 0}])["labels"].tolist() == [0]
