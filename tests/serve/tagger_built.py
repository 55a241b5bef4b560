"""A tagger that is a table: each token has its tag, whatever stands around it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper
from tokenizers import Tokenizer

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.tasks import load_task
from serve.drift import make_reference, write_reference
from serve.runtime import open_engine
from tests.serve.models_built import AXES, FLOAT, INT64, save, write

__all__ = ["TAGS", "tagger_folder"]

TAGS = ("O", "B-LOC", "I-LOC", "B-NUM")
_KNOWN = {"paris": 1, "new": 1, "york": 2, **{str(number): 3 for number in range(100)}}


def tagger_folder(folder: Path, minilm: Path, reference: list[str] | None = None) -> Artifact:
    """Write the artifact of a tagger with MiniLM's tokenizer that knows Paris, New York and numbers below 100.

    Args:
        folder: New.
        minilm: Whose tokenizer it has.
        reference: Texts that its reference for drift is made of, where it is to have one.
    """
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(minilm / name, folder / name)
    config = json.loads((minilm / "config.json").read_text())
    config |= {
        "architectures": ["BertForTokenClassification"],
        "id2label": {str(index): tag for index, tag in enumerate(TAGS)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = np.zeros((config["vocab_size"], len(TAGS)), np.float32)
    table[:, 0] = np.linspace(1, 3, len(table))  # surer of some tokens than of others
    for word, tag in _KNOWN.items():
        table[vocabulary.token_to_id(word)] = np.eye(len(TAGS), dtype=np.float32)[tag] * 4
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["tagged"]),
            helper.make_node("Add", ["attention_mask", "token_type_ids"], ["rest"]),
            helper.make_node("Cast", ["rest"], ["numbers"], to=FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "two"], ["each"]),
            helper.make_node("Add", ["tagged", "each"], ["logits"]),  # moves all tags of a token alike
        ],
        "tagger",
        [helper.make_tensor_value_info(name, INT64, AXES) for name in names],
        [helper.make_tensor_value_info("logits", FLOAT, [*AXES, len(TAGS)])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2], np.int64), "two")],
    )
    save(graph, folder / "model.onnx")
    task = load_task(folder)
    (folder / "task.json").write_text(json.dumps(task.runtime_config()))
    if reference is not None:
        engine = open_engine(open_artifact(folder / "model.onnx"))
        write_reference(folder, make_reference(engine, task, reference))
        engine.close()
    return write(folder, task=task.name)
