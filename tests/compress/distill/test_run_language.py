from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.distill.generation import continue_prompts, labels_of_continuations
from compress.distill.language import LanguageObjective
from compress.distill.losses import DIVERGENCES
from compress.distill.run_language import LanguageKind, WindowData, _ask, distill_language
from compress.load import load_model
from edgesmith.errors import DataError, UnsupportedError, UsageError
from edgesmith.progress import Progress
from tests.compress.distill.conftest import options, weights, work
from tests.export.generators import NUM_TOKENS


def distill(teacher: Path, out: Path, windows: list[list[int]], place: Any = None, **given: Any) -> Any:
    out.mkdir()
    return distill_language(
        teacher, out, student=None, windows=windows, options=options(**given), work=place or work(out.parent)
    )


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_keeping_the_whole_vocabulary_gives_the_whole_divergence(
    kind: str, language_model: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    teacher = load_model(language_model, LanguageKind())
    torch.manual_seed(1)
    student = type(teacher)(teacher.config).eval()
    tokens = np.array(windows, np.int64)
    data = WindowData(tokens=tokens, labels=tokens)
    batch = data.collate(data.rows([3, 1, 8]))
    losses = {}
    for top_k in (0, 4, NUM_TOKENS):
        chosen = options(divergence=kind, cache_top_k=top_k)
        cache = _ask(teacher, data, chosen, 1.5, work(tmp_path / str(top_k))) if top_k else None
        objective = LanguageObjective(options=chosen, teacher=teacher, cache=cache, temperature=1.5)
        loss = objective.loss(student, batch)
        assert loss.num_items == 3 * 15
        losses[top_k] = float(loss.total.detach()) / loss.num_items
    assert losses[NUM_TOKENS] == pytest.approx(losses[0], abs=1e-5)
    assert 0 < losses[4] < losses[0]


@pytest.mark.parametrize("wishes", [{}, {"hard": 0.5, "hidden": 1.0, "relation": 1.0}, {"divergence": "reverse-kl"}])
def test_a_student_of_fewer_layers_learns(
    language_model: Path, windows: list[list[int]], tmp_path: Path, wishes: dict[str, Any]
) -> None:
    result = distill(language_model, tmp_path / "out", windows, num_layers=1, train={"epochs": 4}, **wishes)
    losses = [entry["soft"] for entry in result.history if "soft" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert result.metric == "perplexity"
    assert load_model(tmp_path / "out", LanguageKind()).config.num_hidden_layers == 1


def test_what_the_student_writes_is_the_same_every_time(
    language_model: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    results = [
        distill(
            language_model, tmp_path / name, windows, num_layers=1, on_policy=0.5, divergence="jsd",
            place=work(tmp_path / f"place-{name}"),
        )
        for name in ("one", "two")
    ]  # fmt: skip
    assert results[0].history == results[1].history
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    with pytest.raises(UsageError, match=r"on_policy.*soft is 0"):
        distill(language_model, tmp_path / "three", windows, on_policy=0.5, soft=0, hard=1)


def test_a_student_can_learn_from_what_its_teacher_writes(
    language_model: Path, windows: list[list[int]], tmp_path: Path
) -> None:
    place = work(tmp_path)
    result = distill(language_model, tmp_path / "out", windows, place, num_layers=1, sequence_level=True, hard=1.0)
    assert result.teacher_cache_bytes > 0
    assert {"soft", "hard"} <= result.history[-1].keys()
    cached = sorted(path.name for path in (tmp_path / "cache").glob("teacher-*/*.bin"))
    assert cached == ["ids.bin", "log_probs.bin", "tokens.bin"]


class Told(Progress):
    """Remembers all that is said and shown."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Any]:
        del total
        self.said.append(description)
        yield lambda amount, text="": None

    def note(self, text: str) -> None:
        self.said.append(text)


def test_windows_are_computed_at_once_as_far_as_their_logits_are_not_too_large(
    language_model: Path, windows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = {"num_layers": 1, "train": {"epochs": 1}}
    whole = distill(language_model, tmp_path / "whole", windows, work(tmp_path / "a"), **wishes)
    monkeypatch.setattr("compress.distill.run_language._LOGITS_BYTES", 3 * 4 * 16 * NUM_TOKENS + 5)
    place = work(tmp_path / "b", progress=(told := Told()))
    cut = distill(language_model, tmp_path / "cut", windows, place, **wishes)
    assert whole.micro_batches == ({"from_update": 1, "rows": 8},)
    assert cut.micro_batches == ({"from_update": 1, "rows": 3},)
    assert [text for text in told.said if text.startswith("train: 3 windows at once, as the logits of a batch of 8")]
    for one, other in zip(whole.history, cut.history, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)


def test_a_training_that_cannot_be_is_refused_before_the_teacher_writes_or_reads(
    language_model: Path, windows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = work(tmp_path, progress=(told := Told()))
    with pytest.raises(DataError, match="22 rows to train on, fewer than one batch of 23"):
        distill(language_model, tmp_path / "few", windows, place, sequence_level=True, train={"batch_size": 23})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="each of 2 processes"):
        distill(language_model, tmp_path / "two", windows, place, on_policy=0.5)
    assert told.said == []


def test_continuations_are_drawn_from_the_models_predictions(language_model: Path) -> None:
    model = load_model(language_model, LanguageKind())
    prompts = torch.tensor([[1, 2, 3]]).expand(4000, -1)
    written = continue_prompts(model, prompts, num_tokens=1, seed=3, ends=())
    with torch.no_grad():
        probabilities = torch.softmax(model(prompts[:1]).logits[0, -1], dim=-1)
    shares = torch.bincount(written[:, 3], minlength=NUM_TOKENS) / 4000
    assert (shares - probabilities).abs().max() < 0.05
    assert written.equal(continue_prompts(model, prompts, num_tokens=1, seed=3, ends=()))
    assert not written.equal(continue_prompts(model, prompts, num_tokens=1, seed=4, ends=()))


def test_nothing_is_learnt_of_prompts_and_after_the_end() -> None:
    tokens = torch.tensor([[9, 5, 9, 7, 9, 9], [1, 2, 3, 4, 5, 6]])
    assert labels_of_continuations(tokens, 2, [9]).tolist() == [
        [-100, -100, 9, -100, -100, -100],
        [-100, -100, 3, 4, 5, 6],
    ]
