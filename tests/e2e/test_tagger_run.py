"""A tagger through a whole recipe: vocabulary trimmed, pruned, distilled, quantized, judged by its entities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgesmith import api
from edgesmith.tasks import load_task
from tests.e2e.conftest import Project
from tests.e2e.tagger_built import make_rows, make_tagger, write_rows

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
    done = tagger.run("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "PASS"
    gates = json.loads(Path(tagger.out / "evidence" / "phone" / "verdicts.json").read_text())
    print(gates)
