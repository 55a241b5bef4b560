"""A small tagger, trained here by a rule, through all that a release does to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertForTokenClassification

from edgesmith import api
from edgesmith.artifact import open_artifact
from edgesmith.errors import VerificationError
from edgesmith.tasks import TokenClassification, load_task, sample_texts
from export.batches import make_batches
from export.reference import TorchEngine
from export.verify import verify_outputs
from serve.runtime import open_engine

TAGS = ("O", "B-NP", "I-NP", "B-NUM")


def tagged(text: str) -> dict[str, Any]:
    """An article and the word after it are a phrase; what holds a digit is a number."""
    words = text.split()
    labels, is_inside = [], False
    for word in words:
        if is_inside:
            labels.append("I-NP")
        else:
            labels.append("B-NUM" if any(char.isdigit() for char in word) else "O")
        is_inside = not is_inside and word.lower() in ("the", "a", "an")
        if is_inside:
            labels[-1] = "B-NP"
    return {"tokens": words, "labels": labels}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [tagged(text) for text in sample_texts()]


@pytest.fixture(scope="module")
def tagger(minilm_folder: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's first layer, trained for a few seconds."""
    folder: Path = tmp_path_factory.mktemp("tagger") / "checkpoint"
    config = AutoConfig.from_pretrained(
        minilm_folder,
        num_hidden_layers=1,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: i for i, tag in enumerate(TAGS)},
    )
    torch.manual_seed(0)
    model = BertForTokenClassification.from_pretrained(minilm_folder, config=config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm_folder / name, folder)
    task = load_task(folder)
    assert isinstance(task, TokenClassification)
    examples = [task.parse(row) for row in _as_rows(rows)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model.train()
    for step in range(25):
        batch = [examples[index % len(examples)] for index in range(step * 12, step * 12 + 12)]
        arrays = task.encode(batch)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        loss = model(**inputs, labels=torch.from_numpy(task.targets(batch, arrays))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder


def _as_rows(rows: list[dict[str, Any]]) -> Iterator[Any]:
    from edgesmith.data import Row

    return (Row(Path("rows.jsonl"), line, row) for line, row in enumerate(rows, 1))


@pytest.fixture(scope="module")
def data(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def exported(tagger: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact, proof = api.export(tagger, out=tmp_path_factory.mktemp("fp32") / "onnx", data=data)
    assert proof["verdict"] == "PASS"
    assert proof["metrics"]["top1_agreement"] == 1
    return artifact.path


def test_every_row_is_verified(exported: Path, tagger: Path, data: Path):
    task = load_task(exported)
    examples = task.read_examples(data)
    batches = make_batches(task, examples)
    found = verify_outputs(
        TorchEngine(tagger, task), open_engine(open_artifact(exported)), batches, task=task, precision="fp32"
    )
    assert found.num_rows == len(found.rows["kl"]) == sum(len(batch.texts) for batch in batches)


class Shifted:
    """An engine whose last row is wrong in one token."""

    name = "shifted"

    def __init__(self, engine: Any, position: int) -> None:
        self._engine = engine
        self._position = position

    def run(self, arrays: Any) -> Any:
        logits = self._engine.run(arrays)["logits"].copy()
        logits[-1, self._position] = np.roll(logits[-1, self._position], 1)
        return {"logits": logits}


def test_one_wrong_token_is_a_breach_that_names_its_row_and_wrong_padding_is_none(exported: Path, data: Path):
    task = load_task(exported)
    long, short = sorted(task.read_examples(data), key=lambda example: -len(example.text))[::60][:2]
    engine = open_engine(open_artifact(exported))
    batches = make_batches(task, [long, short], batch_size=2)[:1]
    if batches[0].texts[-1] == long.text:
        batches = make_batches(task, [short, long], batch_size=2)[:1]
    last = int(batches[0].arrays["attention_mask"][-1].sum())
    with pytest.raises(VerificationError, match="worst in row 1: "):
        verify_outputs(engine, Shifted(engine, 1), batches, task=task, precision="fp32")  # type: ignore[arg-type]
    if last < batches[0].shape[1]:
        verify_outputs(engine, Shifted(engine, -1), batches, task=task, precision="fp32")  # type: ignore[arg-type]


def test_a_quantized_tagger_finds_the_same_entities(exported: Path, data: Path, tmp_path: Path):
    before = api.eval(exported, data=data)["metrics"]
    assert before["entity_f1"] > 0.9
    assert before["token_accuracy"] > 0.95
    made, _ = api.quantize(exported, out=tmp_path / "int8", data=data, clusters=64)
    after = api.eval(made.path, data=data)["metrics"]
    assert after["entity_f1"] > before["entity_f1"] - 0.05
    facts = json.loads((made.path / "quantization.json").read_text())
    assert facts["bits_per_weight"] < 6 < facts["bits_per_weight_before_sharing"]
    [answer] = api.predict(made.path, ["They met the minister in spring."])
    assert ("the minister", "NP") in {(one["text"], one["label"]) for one in answer["entities"]}
