from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from compress.train.run import Loss, Trained
from edgesmith.errors import DataError, TrainingError, UnsupportedError
from tests.compress.merge_models import llama_config
from tests.compress.train.small import (
    Labels,
    accuracy,
    is_same,
    small_model,
    small_rows,
    train_small,
    weights,
)


def losses(trained: Trained) -> list[float]:
    return [entry["loss"] for entry in trained.history if "loss" in entry]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, dict[str, torch.Tensor]]:
    """Three epochs with dropout."""
    model = small_model()
    return train_small(model, tmp_path_factory.mktemp("once"), epochs=3), weights(model)


def test_it_learns_and_leaves_the_best_weights(trained_once: Any) -> None:
    trained, found = trained_once
    metrics = {entry["update"]: entry["metric"] for entry in trained.history if "metric" in entry}
    model = small_model()
    model.load_state_dict(found)
    assert trained.best_metric == max(metrics.values()) > metrics[0]
    assert accuracy(model) == metrics[trained.best_update]
    assert trained.num_updates == 24
    assert trained.stopped_because == "all 24 updates are done"


def test_history_holds_every_update_of_a_short_training(trained_once: Any) -> None:
    trained, _ = trained_once
    assert [entry["update"] for entry in trained.history] == list(range(25))
    assert [entry["update"] for entry in trained.history if "metric" in entry] == [0, 4, 8, 12, 16, 20, 24]
    assert trained.history[8]["epoch"] == 1
    assert trained.history[3].keys() == {"update", "epoch", "learning_rate", "gradient_norm", "loss", "hard"}
    assert trained.history[3]["hard"] == trained.history[3]["loss"]
    assert "seconds" not in str(trained.facts())


def test_the_same_seed_gives_the_same_weights(trained_once: Any, tmp_path: Path) -> None:
    again, other = small_model(), small_model()
    random.seed(99)
    torch.manual_seed(99)
    assert train_small(again, tmp_path / "a", epochs=3).facts() == trained_once[0].facts()
    train_small(other, tmp_path / "b", epochs=3, seed=6)
    assert is_same(weights(again), trained_once[1])
    assert not is_same(weights(other), trained_once[1])


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = small_model(), small_model()
    trained = train_small(first, tmp_path, epochs=1)

    def never(rows: list[Any]) -> dict[str, torch.Tensor]:
        raise AssertionError(rows)

    assert train_small(second, tmp_path, epochs=1, collate=never).history == trained.history
    assert is_same(weights(first), weights(second))


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path, micro_batch_size: int) -> None:
    whole, cut = small_model(dropout=0), small_model(dropout=0)
    expected = train_small(whole, tmp_path / "whole", epochs=1)
    found = train_small(cut, tmp_path / "cut", epochs=1, micro_batch_size=micro_batch_size)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)
    assert found.history[5]["gradient_norm"] == pytest.approx(expected.history[5]["gradient_norm"], rel=1e-5)


class PerToken(Labels):
    """Sums over tokens, of which every micro-batch has another number."""

    def loss(self, model: Any, batch: Any) -> Loss:
        by_row = super().loss(model, batch)
        num_tokens = int(batch["attention_mask"].sum())
        return Loss(by_row.total * 3, num_tokens, by_row.parts)


def test_items_of_uneven_micro_batches_weigh_the_same(tmp_path: Path) -> None:
    whole, cut = small_model(dropout=0), small_model(dropout=0)
    expected = train_small(whole, tmp_path / "whole", epochs=1, objective=PerToken())
    found = train_small(cut, tmp_path / "cut", epochs=1, objective=PerToken(), micro_batch_size=3)
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)


def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path) -> None:
    plain, checkpointed = small_model(), small_model()
    train_small(plain, tmp_path / "plain", epochs=1)
    train_small(checkpointed, tmp_path / "checkpointed", epochs=1, gradient_checkpointing=True)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(checkpointed)[name], tensor)
    assert not checkpointed.is_gradient_checkpointing


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    model = small_model()
    before = weights(model)
    trained = train_small(model, tmp_path, epochs=9, patience=2, evaluate=lambda _: 0.5)
    assert (trained.num_updates, trained.best_update) == (16, 0)
    assert trained.stopped_because == "no better accuracy in 2 evaluations"
    assert is_same(weights(model), before)


def test_lower_can_be_better(tmp_path: Path) -> None:
    falling = iter([0.9, 0.5, 0.7, 0.2, 0.4, 0.6])
    trained = train_small(small_model(), tmp_path, epochs=5, evaluate=lambda _: next(falling), higher_is_better=False)
    assert (trained.best_update, trained.best_metric) == (24, 0.2)


def test_it_stops_in_time_with_the_best_weights(tmp_path: Path) -> None:
    model = small_model()
    trained = train_small(model, tmp_path, epochs=100_000, max_minutes=0.01)
    assert 0 < trained.num_updates < 800_000
    assert trained.stopped_because == f"the time is up after {trained.num_updates} of 800000 updates"
    assert "metric" in trained.history[-1]
    model.eval()
    assert accuracy(model) == trained.best_metric


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    for schedule in ("linear", "cosine"):
        trained = train_small(
            small_model(), tmp_path / schedule, epochs=5, evaluate=None, schedule=schedule, warmup=0.25
        )
        rates = [entry["learning_rate"] for entry in trained.history]
        top = rates.index(max(rates))
        assert max(rates) == pytest.approx(1e-3, rel=0.02)
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[0] > 0
        assert rates[-1] < 0.05 * max(rates)
        assert top / len(rates) == pytest.approx(0.25, abs=0.03)


def test_without_a_metric_the_last_weights_stay(tmp_path: Path) -> None:
    model = small_model()
    trained = train_small(model, tmp_path, epochs=1, evaluate=None)
    assert (trained.best_update, trained.best_metric) == (8, None)
    assert not is_same(weights(model), weights(small_model()))


def test_modules_of_the_objective_are_trained_too(tmp_path: Path) -> None:
    objective = Labels(is_projected=True)
    assert objective.projection is not None
    before = weights(objective.projection)
    train_small(small_model(), tmp_path, epochs=1, objective=objective, evaluate=None)
    assert not is_same(weights(objective.projection), before)


def test_frozen_weights_stay_and_all_are_frozen_again(tmp_path: Path) -> None:
    model = small_model().requires_grad_(False)
    train_small(model, tmp_path / "all", epochs=1, evaluate=None)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(model.bert.embeddings.word_embeddings.weight, first_embeddings())
    frozen = small_model()
    frozen.bert.requires_grad_(False)
    train_small(frozen, tmp_path / "head", epochs=1, evaluate=None)
    assert torch.equal(frozen.bert.embeddings.word_embeddings.weight, first_embeddings())
    assert not torch.equal(frozen.classifier.weight, small_model().classifier.weight)


def first_embeddings() -> torch.Tensor:
    found: torch.Tensor = small_model().bert.embeddings.word_embeddings.weight
    return found


def test_tied_weights_are_kept_and_put_back(tmp_path: Path) -> None:
    class NextToken:
        def loss(self, model: Any, batch: Any) -> Loss:
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
            total = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="sum"
            )
            return Loss(total, logits.shape[0] * logits.shape[1])

        def modules(self) -> None:
            return None

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    before = model.lm_head.weight.clone()
    train_small(model, tmp_path, epochs=1, objective=NextToken(), evaluate=None)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before)


def test_randomness_and_logging_of_the_caller_stay_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(8)
    random.seed(8)
    expected = torch.rand(1), random.random()
    torch.manual_seed(8)
    random.seed(8)
    verbosity = transformers_logging.get_verbosity()
    train_small(small_model(), tmp_path, epochs=0.2, evaluate=None)
    assert (torch.rand(1), random.random()) == expected
    assert transformers_logging.get_verbosity() == verbosity


def test_a_loss_that_is_no_number_ends_the_training_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"(loss|norm) is (nan|inf) in update [23] of 16, at a learning rate of"
    ) as caught:
        train_small(small_model(), tmp_path, learning_rate=1e30, evaluate=None)
    assert re.search(r"after a loss of 0\.\d+ in the update before$", caught.value.message)
    assert "train.learning_rate" in caught.value.mend


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="accuracy is nan after update 0 of 16"):
        train_small(small_model(), tmp_path, evaluate=lambda _: float("nan"))


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 rows to train on, fewer than one batch of 8"):
        train_small(small_model(), tmp_path, rows=small_rows(7))
    assert not any(tmp_path.iterdir())


def test_gradient_checkpointing_of_a_model_without_it_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.supports_gradient_checkpointing = False
    with pytest.raises(UnsupportedError, match="BertForSequenceClassification has no gradient checkpointing"):
        train_small(model, tmp_path, gradient_checkpointing=True)


def test_rows_that_are_compared_are_not_shared_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compared(Labels):
        compares_rows = True

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="compared with each other, and each of 2 processes"):
        train_small(small_model(), tmp_path, objective=Compared())
