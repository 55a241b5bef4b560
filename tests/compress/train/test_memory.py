from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

from compress.train.out_of_memory import is_out_of_memory, memory_error
from compress.train.run import Loss
from compress.train.start import what_differs
from edgesmith.progress import Progress
from tests.compress.merge_models import llama_config
from tests.compress.train.small import Labels, small_model, small_rows, train_small

ROOT = Path(__file__).parents[3]
SHORT = """
import json, resource, sys
from pathlib import Path
from edgesmith.errors import TrainingError
from edgesmith.progress import Progress
from tests.compress.train.small import *

class Greedy(Labels):
    # Every row takes 200 MB of activations.
    def loss(self, model, batch):
        with_memory = torch.ones(len(batch["labels"]), 25_000_000, requires_grad=True) * 2
        found = super().loss(model, batch)
        return Loss(found.total + 0 * with_memory[0, 0], found.num_items)

class Notes(Progress):
    def __init__(self):
        self.said = []
    def note(self, text):
        self.said.append(text)

notes = Notes()
torch.set_num_threads(1)
arguments = dict(rows=small_rows(16), epochs=1, evaluate=None, objective=Greedy(), progress=notes)
train_small(small_model(dropout=0), Path(sys.argv[1], "warm"), epochs=0.5, rows=small_rows(16), evaluate=None)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 750_000_000, -1))
trained = train_small(small_model(dropout=0), Path(sys.argv[1], "halved"), **arguments)
resource.setrlimit(resource.RLIMIT_AS, (size + 150_000_000, -1))
try:
    train_small(small_model(dropout=0), Path(sys.argv[1], "refused"), **arguments)
except TrainingError as error:
    refusal = [error.message, error.mend]
print(json.dumps({"history": trained.history, "said": notes.said, "refusal": refusal}))
"""


def test_short_memory_halves_the_micro_batch_or_names_the_mends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHORT, str(tmp_path)]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # further arenas would reserve addresses, not memory
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    result = json.loads(run.stdout)
    expected = train_small(small_model(dropout=0), tmp_path / "whole", rows=small_rows(16), epochs=1, evaluate=None)
    assert [text for text in result["said"] if text.startswith("memory is short")][:2] == [
        "memory is short: going on with 4 rows at once instead of 8; the result is the same",
        "memory is short: going on with 2 rows at once instead of 4; the result is the same",
    ]
    for entry, exact in zip(result["history"], expected.history, strict=True):
        assert entry["loss"] == pytest.approx(exact["loss"], abs=1e-6)
    message, mend = result["refusal"]
    assert "does not fit into memory: 1 row of up to" in message
    assert "AdamW's moments alone take 3" in message
    assert mend == "Try train.gradient_checkpointing: true (the same result), or a smaller train.max_length."


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Large(Labels):
    """Takes five rows at once until the third update, and three afterwards."""

    calls = 0

    def loss(self, model: Any, batch: Any) -> Loss:
        self.calls += 1
        if len(batch["labels"]) > (5 if self.calls < 6 else 3):
            raise MemoryError
        return super().loss(model, batch)


def test_halving_says_what_differs_and_the_result_says_how_many_rows_were_computed_at_once(tmp_path: Path) -> None:
    notes = Notes()
    trained = train_small(
        small_model(), tmp_path, rows=small_rows(32), epochs=1, evaluate=None, objective=Large(), progress=notes
    )
    assert next(text for text in notes.said if text.startswith("memory")) == (
        "memory is short: going on with 4 rows at once instead of 8; "
        "not quite the same result: dropout is drawn otherwise"
    )
    assert trained.facts()["micro_batches"] == [{"from_update": 1, "rows": 4}, {"from_update": 3, "rows": 2}]
    assert trained.facts()["num_processes"] == 1


def test_dropout_batch_norm_and_compared_rows_are_what_micro_batches_change() -> None:
    pictures = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    assert what_differs(small_model(dropout=0), compares_rows=False) == ""
    assert what_differs(small_model(), compares_rows=False) == "dropout is drawn otherwise"
    assert what_differs(pictures, compares_rows=False) == "batch norm's statistics are of fewer rows"
    assert what_differs(small_model(), compares_rows=True).endswith(", and rows are compared with fewer others")
    with torch.random.fork_rng():
        attention = LlamaForCausalLM(llama_config(attention_dropout=0.1))  # no layer of its own draws it
    assert what_differs(attention, compares_rows=False) == "dropout is drawn otherwise"


def test_mends_say_which_of_them_change_the_result() -> None:
    error = memory_error(
        MemoryError(), num_rows=8, longest=None, state_bytes=1, is_checkpointed=False, differing="rows are compared",
        has_batch_norm=True,
    )  # fmt: skip
    assert error.mend == (
        "Try train.micro_batch_size below 8 (not quite the same result: rows are compared), or "
        "train.gradient_checkpointing: true (not quite the same result: batch norm's statistics are taken twice)."
    )


def test_what_says_that_memory_is_short() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyError("out of memory"))


def test_without_a_batch_the_state_itself_is_too_large() -> None:
    error = memory_error(MemoryError(), num_rows=None, longest=None, state_bytes=16 * 10**9, is_checkpointed=False)
    assert "AdamW's moments alone take 16.00 GB" in error.message
    assert error.mend == "Train a smaller model, or use a machine with more memory."
