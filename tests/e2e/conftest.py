"""A recipe that runs in seconds: a small seeded BERT with MiniLM's own tokenizer, a LoRA adapter, real news rows."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from tests.e2e import prefork
from tests.made_once import made_once

RECIPE = """\
version: 1
name: small
task: text-classification
model: {base: base, adapter: adapter}
data:
  eval: test.jsonl
  calibration: {path: train.jsonl, num_samples: 16}
steps: [merge]
targets:
  server: {format: onnx, quantize: {method: dynamic-int8}}
measure: {seconds: 1}
gates:
  size: {min_reduction: 2}
"""
LABELS = ("business", "entertainment", "politics", "sports", "tech")


@functools.cache
def _parent() -> prefork.Parent:
    return prefork.Parent()


@pytest.fixture(scope="session", autouse=True)
def _no_parent_outlives_its_tests() -> Iterator[None]:
    yield
    if _parent.cache_info().currsize:
        _parent().close()


@dataclass(frozen=True)
class Project:
    """A folder with a recipe and all that it needs, and a store of its own."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from edgesmith.cli import main; main()", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGESMITH_STORE": str(self.store), "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}

    def edgesmith(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own."""
        given = list(map(str, arguments))
        with TemporaryFile("w+", encoding="utf-8") as stdout, TemporaryFile("w+", encoding="utf-8") as stderr:
            code = self._start(given, stdout, stderr).wait()
            for stream in (stdout, stderr):
                stream.seek(0)
            return subprocess.CompletedProcess(given, code, stdout.read(), stderr.read())

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.edgesmith("run", "recipe.yaml", "--out", "out", *arguments)

    def run_in_new_interpreter(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As a user does: with a hash seed of its own, and nothing imported before."""
        command = self.command("run", "recipe.yaml", "--out", "out", *arguments)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def start(self, *arguments: str) -> prefork.Forked:
        """Begin a command, in a process group of its own so that it can be killed with all that it started."""
        with Path(os.devnull).open("w") as nowhere:
            return self._start(arguments, nowhere, nowhere)

    def _start(self, arguments: Sequence[str], stdout: IO[str], stderr: IO[str]) -> prefork.Forked:
        return _parent().start(
            arguments,
            cwd=self.folder,
            environment=self.environment,
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
        )

    def manifests(self) -> dict[str, bytes]:
        """The bytes of every delivered artifact's manifest."""
        return {path.parent.name: path.read_bytes() for path in self.out.glob("*/manifest.json")}


def make_small(folder: Path, minilm: Path, news_rows: list[dict[str, str]]) -> None:
    """A seeded BERT, an adapter and rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        vocab_size=30522,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(minilm / name, folder / "base" / name)
    lora = LoraConfig(
        r=4,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
        init_lora_weights=False,
    )
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    rows = [{"text": row["text"][:400], "label": row["label"]} for row in news_rows[::20]]
    for name, part in (("test", rows[:60]), ("train", rows[60:100])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Base, adapter and rows; made once, copied for each test."""

    def make(folder: Path) -> None:
        make_small(folder, minilm_folder, request.getfixturevalue("news_rows"))

    return made_once(tmp_path_factory, "small", make)


@pytest.fixture
def project(tmp_path: Path, small_model: Path) -> Project:
    """A fresh copy for one test."""
    shutil.copytree(small_model, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Callable[[Path], Project]:
    """Give a copy of a project whose recipe has been run."""

    def make(folder: Path) -> None:
        shutil.copytree(small_model, folder / "project")
        done = Project(folder / "project").run_in_new_interpreter()  # others' bytes are compared with its
        assert done.returncode == 0, done.stderr

    folder = made_once(tmp_path_factory, "released", make) / "project"

    def copy(destination: Path) -> Project:
        shutil.copytree(folder, destination / "project")
        return Project(destination / "project")

    return copy
