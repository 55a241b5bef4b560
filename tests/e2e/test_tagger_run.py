"""A tagger through a whole recipe: vocabulary trimmed, pruned, distilled, quantized, judged by its entities."""

from __future__ import annotations

import json

import pytest
import torch

from edgesmith import api
from tests.e2e.conftest import Project
from tests.e2e.tagger_built import TAGS, make_rows, make_tagger, write_rows

pytestmark = pytest.mark.slow

RECIPE = """\
version: 1
name: tagger
task: token-classification
model: {base: base}
data: {train: train.jsonl, unlabelled: unlabelled.jsonl, eval: test.jsonl}
steps:
  - trim-vocabulary
  - prune: {num_layers: 1, layers: uniform, keep: {ffn: 0.5}}
  - distill: {hard: 0.5, relation: 0.1, hidden: 0.1, train: {epochs: 3, batch_size: 16, learning_rate: 0.002}}
targets:
  phone: {format: onnx, quantize: {method: dynamic-int8}}
measure: {seconds: 0.5}
gates:
  accuracy: {metric: entity_f1, max_drop: 0.15}
  size: {min_reduction: 4}
  speed: {min_speedup: 0.1}
"""


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("tagger")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_tagger(folder / "base")
    torch.set_num_threads(num_threads)
    write_rows(folder / "train.jsonl", make_rows(300, 1))
    write_rows(folder / "test.jsonl", make_rows(300, 2))
    write_rows(folder / "unlabelled.jsonl", [{"text": " ".join(row["tokens"])} for row in make_rows(60, 3)])
    (folder / "recipe.yaml").write_text(RECIPE)
    return Project(folder)


def test_a_tagger_is_made_smaller_and_judged_by_its_entities(tagger: Project) -> None:
    done = tagger.run()
    assert done.returncode in (0, 3), done.stderr  # a busy machine settles nothing about speed
    report = json.loads((tagger.out / "report.json").read_text())
    [target] = report["targets"]
    verdicts = {one["gate"]: one for one in target["gates"]}
    assert {name: one["verdict"] for name, one in verdicts.items() if name != "speed"} == {
        "accuracy": "PASS",
        "size.min_reduction": "PASS",
    }
    assert "speed" in verdicts
    assert verdicts["accuracy"]["unit"] == "entity_f1"
    assert "300 rows of any kind may hide" in verdicts["accuracy"]["reason"]
    sizes = {step["name"]: step["num_parameters"] for step in report["steps"]}
    assert sizes["found"] > sizes["trim-vocabulary"] > sizes["prune"] == sizes["distill"]
    [distilled] = [step for step in report["steps"] if step["name"] == "distill"]
    assert distilled["curve"]["metric"] == "entity_f1"
    assert "60 of them without labels" in distilled["summary"]
    reference = json.loads((tagger.out / "phone" / "reference.json").read_text())
    [label] = [feature for feature in reference["features"] if feature["name"] == "label"]
    assert label["labels"] == list(TAGS)
    text = "the museum 12"
    [answer] = api.predict(tagger.out / "phone", [text])
    assert [text[start:end] for start, end, _ in answer["words"]] == text.split()
