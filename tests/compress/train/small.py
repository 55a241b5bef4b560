"""A tiny seeded classifier and rows that it can learn from, for tests and for the processes that tests start."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification, PreTrainedModel

from compress.train.run import Loss, Trained, train
from edgesmith.recipe.steps import TrainOptions
from tests.compress.merge_models import VOCAB, bert_config

SEED = 5


def small_model(*, dropout: float = 0.1) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = bert_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_labels=2)
        return BertForSequenceClassification(config).eval()


def small_rows(num: int = 61, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 4 to 19 tokens, whose label says whether token 7 is among them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num):
        length = int(torch.randint(4, 20, (), generator=generator))
        ids = torch.randint(8, VOCAB, (length,), generator=generator)
        if index % 2:
            ids[::3] = 7
        rows.append({"input_ids": ids.tolist(), "label": index % 2})
    return rows


def collate(rows: list[Any]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


class Labels:
    """Learns the labels; with a projection of its own, if asked for."""

    def __init__(self, *, is_projected: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.projection = nn.Linear(2, 2) if is_projected else None

    def loss(self, model: PreTrainedModel, batch: Any) -> Loss:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logits = logits if self.projection is None else self.projection(logits)
        total = cross_entropy(logits, batch["labels"], reduction="sum")
        return Loss(total, len(batch["labels"]), {"hard": total.detach()})

    def modules(self) -> nn.ModuleDict | None:
        return None if self.projection is None else nn.ModuleDict({"projection": self.projection})


def accuracy(model: PreTrainedModel) -> float:
    batch = collate(small_rows(40, seed=1))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return float(logits.argmax(1).eq(batch["labels"]).float().mean())


def train_small(model: PreTrainedModel, workplace: Path, **changes: Any) -> Trained:
    """Train with everything at its usual value, but for `changes` of the options and the arguments of `train`."""
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "patience": 9}
    arguments: dict[str, Any] = {"evaluate": accuracy, "metric_name": "accuracy", "higher_is_better": True}
    arguments |= {"seed": SEED, "workplace": workplace, "save_seconds": 1e9}
    for name, value in changes.items():
        (options if name in TrainOptions.model_fields else arguments)[name] = value
    objective, rows = arguments.pop("objective", Labels()), arguments.pop("rows", small_rows())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what one thread does alone, several would mostly wait for each other at
    try:
        return train(model, objective, rows, arguments.pop("collate", collate), TrainOptions(**options), **arguments)
    finally:
        torch.set_num_threads(threads)


def die_at_batch(number: int) -> Any:
    """Collate, and be killed at the given call: no handler runs, nothing is flushed."""
    calls = 0

    def collate_or_die(rows: list[Any]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return collate(rows)

    return collate_or_die


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
