from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from edgesmith.api.distill import distill
from edgesmith.artifact import open_artifact
from edgesmith.cli.distill import distill as command
from edgesmith.errors import DataError
from edgesmith.progress import SILENT
from edgesmith.recipe import DistillOptions
from edgesmith.stages.distill import DistillStage
from edgesmith.store import _read_module as read_module
from edgesmith.tasks import TokenClassification, load_task, sample_texts
from tests.compress.distill.conftest import LABELS, save_bert
from tests.export.generators import save_generator

OPTIONS = DistillOptions.model_validate({"num_layers": 1, "train": {"epochs": 1, "batch_size": 8}})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("teacher"))


def write_rows(path: Path, *, num: int = 40, labelled: bool = True) -> Path:
    rows: list[dict[str, str]] = [{"text": text} for text in sample_texts()[:num]]
    if labelled:
        rows = [{**row, "label": LABELS[index % 3]} for index, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_result_is_the_same_checkpoint_every_time_and_nothing_is_left_but_the_teachers_words(
    teacher: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    made = [
        distill(teacher, data=data, out=tmp_path / name, options=OPTIONS, workplace=tmp_path / f"work-{name}")
        for name in ("one", "two")
    ]
    assert made[0][0].digest == made[1][0].digest
    assert made[0][0].kind == "checkpoint"
    facts = made[0][1]
    assert (facts["metric"], facts["num_trained"], facts["num_validated"]) == ("accuracy", 36, 4)
    assert not {"seconds", "peak_memory_bytes"} & facts.keys()
    assert [path.name[:8] for path in (tmp_path / "work-one").iterdir()] == ["teacher-"]


def test_rows_without_labels_are_held_against_the_teacher(teacher: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", labelled=False)
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join(sample_texts()[40:48]))
    made, facts = distill(
        teacher, data=data, unlabelled=more, out=tmp_path / "out", options=OPTIONS, workplace=tmp_path / "work"
    )
    assert (facts["metric"], facts["num_unlabelled"], facts["num_trained"]) == ("agreement", 8, 44)
    assert {parent.role for parent in made.manifest.parents} == {"teacher", "data", "unlabelled"}


def test_a_student_without_a_head_gets_one_for_its_teachers_tags(tmp_path: Path) -> None:
    tags = dict(enumerate(("O", "B-FIRST", "I-FIRST")))
    teacher = save_bert(tmp_path / "teacher", model_class="BertForTokenClassification", id2label=tags)
    student = save_bert(tmp_path / "student", model_class="BertModel", num_hidden_layers=1)
    rows = [text.split() for text in sample_texts()[:40]]
    labelled = [{"tokens": words, "labels": ["B-FIRST", *("O" for _ in words[1:])]} for words in rows]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    options = OPTIONS.model_copy(update={"num_layers": None, "student": str(student), "soft": 0.0, "hard": 1.0})
    made, facts = distill(teacher, data=data, out=tmp_path / "out", options=options, workplace=tmp_path / "work")
    assert facts["metric"] == "entity_f1"
    task = load_task(made.folder)
    assert isinstance(task, TokenClassification)
    assert task.tags == tuple(tags.values())


def test_the_key_knows_the_options_and_the_data_but_not_the_workplace(teacher: Path, tmp_path: Path) -> None:
    def key(data: Path, seed: int = 0, place: str = "a", **changes: Any) -> str:
        options = OPTIONS.model_copy(update=changes)
        opened = open_artifact(teacher, kinds=("checkpoint",))
        return DistillStage(
            workplace=tmp_path / place, teacher=opened, data=data, distill=options, seed=seed
        ).key.digest

    rows, fewer = write_rows(tmp_path / "rows.jsonl"), write_rows(tmp_path / "fewer.jsonl", num=30)
    assert key(rows) == key(rows, place="b")
    assert len({key(rows), key(fewer), key(rows, seed=1), key(rows, soft=0.5)}) == 4


def test_kept_words_of_a_teacher_are_those_of_the_code_that_reads_and_keeps_them(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(folder: Path, changed: str) -> str:
        def read(name: str) -> tuple[str, tuple[str, ...]] | None:
            found = read_module(name)
            return (f"another {found[0]}", found[1]) if found and name == changed else found

        with monkeypatch.context() as patch:
            patch.setattr("edgesmith.store._read_module", read)
            opened = open_artifact(folder, kinds=("checkpoint",))
            stage = DistillStage(workplace=tmp_path, teacher=opened, data=rows, distill=OPTIONS)
            return stage._work(tmp_path, SILENT).identity

    rows = write_rows(tmp_path / "rows.jsonl")
    writer = save_generator(tmp_path / "writer")
    for name in ("compress.distill.predictions", "compress.distill.generation", "edgesmith.stages.texts"):
        assert identity(writer, name) != identity(writer, "")
    assert identity(teacher, "compress.distill.readout") != identity(teacher, "")
    assert identity(teacher, "compress.distill.generation") == identity(teacher, "")


def test_a_language_model_is_distilled_on_a_text(tmp_path: Path) -> None:
    teacher = save_generator(tmp_path / "teacher")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sample_texts()[:20]))
    options = DistillOptions.model_validate(
        {"num_layers": 1, "train": {"epochs": 1, "batch_size": 8, "max_length": 32}}
    )
    made, facts = distill(teacher, data=text, out=tmp_path / "out", options=options, workplace=tmp_path / "work")
    assert facts["metric"] == "perplexity"
    assert facts["best_metric"] <= facts["first_metric"]
    assert (made.path / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()


def test_a_faulty_row_is_named_before_anything_is_trained(teacher: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    data.write_text(data.read_text() + '{"text": "one more", "label": "awful"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:41: the label 'awful' is unknown"):
        distill(teacher, data=data, out=tmp_path / "out", options=OPTIONS, workplace=tmp_path / "work")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_curve_or_one_object(teacher: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    given = [str(teacher), "--data", str(write_rows(tmp_path / "rows.jsonl")), "--workplace", str(tmp_path / "work")]
    given += ["--num-layers", "1", "--epochs", "1", "--batch-size", "8", "-o", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, given, catch_exceptions=False)
    assert "layers 0 of the teacher's 3" in shown.stdout
    assert "accuracy by evaluation" in shown.stdout
    printed = json.loads(CliRunner().invoke(app, [*given, "--json"], catch_exceptions=False).stdout)
    assert printed["training"]["num_layers"] == 1
    assert printed["path"] == str(tmp_path / "out")
