from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.progress import Progress
from tests.compress.train.small import small_model, train_small


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_curves_lie_where_the_user_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional and not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    notes = Notes()
    trained = train_small(small_model(), tmp_path, epochs=1, progress=notes)
    folder = tmp_path / "training" / "tensorboard"
    assert notes.said[0] == f"curves: tensorboard --logdir {folder}"
    read = EventAccumulator(str(folder)).Reload()
    drawn = {event.step: event.value for event in read.Scalars("loss")}
    assert drawn == pytest.approx({entry["update"]: entry["loss"] for entry in trained.history[1:]})
    assert read.Scalars("metric")[0].step == 0


def test_training_ends_with_what_it_came_to(tmp_path: Path) -> None:
    notes = Notes()
    train_small(small_model(), tmp_path, epochs=0.2, evaluate=None, progress=notes)
    assert notes.said[-1] == "train: all 2 updates are done; the weights are those after update 2"
