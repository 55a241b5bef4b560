from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_hook

from compress.distill.objective import ANSWERS, Insight, RowObjective
from compress.distill.pupil import prepare_pupil
from compress.distill.readout import Readout
from compress.distill.rows import NumberedRows, RowData
from compress.distill.run import Work
from compress.distill.run_rows import distill_rows
from compress.load import load_model
from compress.train.run import train
from edgesmith.data import Row
from edgesmith.errors import DataError, StorageError, UnsupportedError, UsageError
from edgesmith.progress import Progress
from edgesmith.tasks import Example, load_task, sample_texts
from tests.compress.distill.conftest import options, row_data, save_bert, training, weights, work


def distill(teacher: Path, out: Path, *, data: RowData | None = None, student: Path | None = None, **given: Any) -> Any:
    place = given.pop("place", None) or work(out.parent)
    out.mkdir()
    found = data or row_data(teacher, student)
    count = given.pop("num_from_file", len(found.examples))
    return distill_rows(
        teacher, out, student=student, data=found, num_from_file=count, options=options(**given), work=place
    )


@contextmanager
def counted_runs(num_layers: int) -> Iterator[list[int]]:
    """Count how often a classifier of so many layers is run."""
    runs: list[int] = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        del inputs, output
        if type(module).__name__ == "BertForSequenceClassification" and len(module.bert.encoder.layer) == num_layers:
            runs.append(1)

    handle = register_module_forward_hook(count)
    try:
        yield runs
    finally:
        handle.remove()


def test_a_student_learns_and_is_an_ordinary_checkpoint(classifier: Path, tmp_path: Path) -> None:
    result = distill(classifier, tmp_path / "out", num_layers=1, train={"epochs": 6})
    losses = [entry["soft"] for entry in result.history if "soft" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metric == "agreement"
    assert result.best_metric > result.first_metric
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.num_hidden_layers, config.architectures) == (1, ["BertForSequenceClassification"])
    kept = row_data(tmp_path / "out")
    model = load_model(tmp_path / "out", kept.task)
    theirs = row_data(classifier).answers(load_model(classifier, kept.task), range(48), of_teacher=True)
    ours = kept.answers(model, range(48), of_teacher=False)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.8
    assert training(tmp_path / "out") == result.facts


def test_a_student_that_is_its_teacher_has_nothing_to_learn(classifier: Path, encoder: Path) -> None:
    for folder in (classifier, encoder):
        data = row_data(folder)
        chosen = options(hidden=1, relation=1)
        batches = [data.collate([{"row": row} for row in range(5)])]
        pupil = prepare_pupil(folder, None, data.task, chosen, seed=0, batches=[])
        insight = Insight(
            pupil.present_teacher, pupil.student, sample=batches[0], readouts=data.readouts, options=chosen,
            causal=False, seed=0,
        )  # fmt: skip
        objective = RowObjective(
            options=chosen, readout=data.readouts[1], cache=AskedAnew(data, folder), insight=insight
        )
        loss = objective.loss(pupil.student, batches[0])
        assert set(loss.parts) == {"soft", "hidden", "relation"}
        assert loss.num_items == 5
        assert loss.total.abs() < 1e-4
        assert objective.modules() is None


class AskedAnew:
    """A cache that keeps nothing: the teacher reads every piece of rows again, as it did for the cache on disk."""

    size_bytes = 0

    def __init__(self, data: RowData, teacher: Path) -> None:
        self._data, self._teacher = data, load_model(teacher, data.task)

    def read(self, rows: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        every = self._data.answers(self._teacher, range(len(self._data.examples)), of_teacher=True)
        return {ANSWERS: every[list(rows)]}


def test_training_from_the_cache_is_training_without_one_bit_by_bit(classifier: Path, tmp_path: Path) -> None:
    data, states = row_data(classifier), []
    for name in ("kept", "anew"):
        pupil = prepare_pupil(classifier, None, data.task, options(num_layers=1), seed=0, batches=[])
        cache: Any = AskedAnew(data, classifier)
        if name == "kept":
            cache = data.ask(pupil.present_teacher, tmp_path / "cache", identity="one")
        objective = RowObjective(options=options(), readout=data.readouts[1], cache=cache)
        train(
            pupil.student, objective, NumberedRows(range(24), data.lengths), data.collate, options().train,
            evaluate=None, metric_name="", higher_is_better=True, seed=0, workplace=tmp_path / name,
        )  # fmt: skip
        states.append(pupil.student.state_dict())
    assert all(states[0][name].equal(states[1][name]) for name in states[0])


def test_the_teacher_is_run_once_for_every_row_whatever_the_epochs(classifier: Path, tmp_path: Path) -> None:
    with counted_runs(3) as runs:
        distill(classifier, tmp_path / "one", num_layers=1, train={"epochs": 1})
        batches = 3  # of 16 of the 48 rows
        assert batches <= len(runs) <= batches + 2  # the check of its layers, and the width of its answers
        once = len(runs)
        distill(classifier, tmp_path / "three", num_layers=2, train={"epochs": 3}, place=work(tmp_path, seed=1))
        assert len(runs) - once <= 2


def test_students_that_read_otherwise_share_no_answers(classifier: Path, tmp_path: Path) -> None:
    examples = [Example(text) for text in sample_texts()[:48]]
    teacher_task = load_task(classifier)
    cut, whole = (
        RowData(teacher_task=teacher_task, task=load_task(classifier, max_length=length), examples=examples)
        for length in (8, 64)
    )
    assert cut.encoding != whole.encoding == row_data(classifier, examples=examples).encoding
    distill(classifier, tmp_path / "cut", data=cut, num_layers=1, train={"epochs": 0.2})
    distill(classifier, tmp_path / "whole", data=whole, num_layers=1, train={"epochs": 0.2}, place=other(tmp_path))
    assert len(list((tmp_path / "cache").glob("teacher-*"))) == 2


def other(root: Path) -> Work:
    """Another training beside the same teacher's outputs."""
    return replace(work(root), folder=root / "other")


def test_a_teacher_that_is_only_measured_reads_the_held_out_rows_alone(classifier: Path, tmp_path: Path) -> None:
    examples = [Example(text, target=index % 3) for index, text in enumerate(sample_texts()[:48])]
    with counted_runs(3) as runs:
        result = distill(
            classifier, tmp_path / "out", data=row_data(classifier, examples=examples), num_layers=1, soft=0, hard=1
        )
    assert len(runs) <= 2  # the check of its layers, and five held-out rows
    assert result.teacher_metric is not None
    assert result.teacher_cache_bytes == 0
    assert not (tmp_path / "cache").exists()


def test_a_teacher_that_runs_anyway_is_heard_as_it_would_be_read(classifier: Path, tmp_path: Path) -> None:
    data, chosen = row_data(classifier), options(num_layers=1, relation=1)
    pupil = prepare_pupil(classifier, None, data.task, chosen, seed=0, batches=[])
    batch = data.collate([{"row": row} for row in (4, 1, 9)])
    insight = Insight(
        pupil.present_teacher, pupil.student, sample=batch, readouts=data.readouts, options=chosen, causal=False, seed=0
    )
    losses = [
        RowObjective(options=chosen, readout=data.readouts[1], cache=cache, insight=insight).loss(pupil.student, batch)
        for cache in (None, data.ask(pupil.present_teacher, tmp_path / "cache", identity="one"))
    ]
    torch.testing.assert_close(losses[0].total, losses[1].total)
    assert losses[0].parts.keys() == {"soft", "relation"}


class Bars(Progress):
    """Remembers what took long."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Any]:
        del total
        self.shown.append(description)
        yield lambda amount, text="": None


def test_a_training_that_cannot_be_is_refused_before_the_teacher_reads(
    classifier: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = work(tmp_path, progress=(bars := Bars()))
    with pytest.raises(DataError, match="43 rows to train on, fewer than one batch of 64"):
        distill(classifier, tmp_path / "few", place=place, train={"batch_size": 64})
    with monkeypatch.context() as patch:
        patch.setattr("compress.train.checkpoints.shutil.disk_usage", lambda _: SimpleNamespace(free=1))
        with pytest.raises(StorageError, match="training needs"):
            distill(classifier, tmp_path / "full", place=place)
    one_label = [Example(text, target=1) for text in sample_texts()[:40]]
    with pytest.raises(DataError, match="all 40 training rows have the same label, number 1"):
        distill(classifier, tmp_path / "same", place=place, data=row_data(classifier, examples=one_label))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="compared with each other, and each of 2 processes"):
        distill(encoder, tmp_path / "two", place=place)
    assert bars.shown == []


class KilledProgress(Progress):
    """Ends the process, as far as the code can tell, after so many updates."""

    def __init__(self, updates: int) -> None:
        self._left = updates

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Any]:
        del total

        def report(amount: float, text: str = "") -> None:
            del text
            if description == "train" and amount:
                self._left -= 1
                if self._left < 0:
                    raise KeyboardInterrupt

        yield report


def test_a_killed_distillation_goes_on_to_the_same_weights(classifier: Path, tmp_path: Path) -> None:
    wishes = {"num_layers": 1, "hidden": 1.0, "relation": 0.5}
    distill(classifier, tmp_path / "whole", place=work(tmp_path / "a"), **wishes)
    place = work(tmp_path / "b", save_seconds=0.0, progress=KilledProgress(6))
    with pytest.raises(KeyboardInterrupt):
        distill(classifier, tmp_path / "killed", place=place, **wishes)
    assert not list((tmp_path / "killed").iterdir())
    distill(classifier, tmp_path / "resumed", place=work(tmp_path / "b", save_seconds=0.0), **wishes)
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert training(tmp_path / "resumed") == training(tmp_path / "whole")


def test_labels_choose_the_weights_and_can_be_learnt_from(classifier: Path, tmp_path: Path) -> None:
    examples = [Example(text, target=len(text.split()) % 2) for text in sample_texts()[:40]]
    unlabelled = [Example(text) for text in sample_texts()[40:48]]
    data = row_data(classifier, examples=[*examples, *unlabelled])
    result = distill(classifier, tmp_path / "out", data=data, num_from_file=40, num_layers=1, soft=0.5, hard=1.0)
    assert result.metric == "accuracy"
    assert result.teacher_metric is not None
    assert (result.num_trained, result.num_unlabelled, result.num_validated) == (44, 8, 4)
    last = result.history[-1]
    assert last["loss"] == pytest.approx(0.5 * last["soft"] + last["hard"], rel=1e-5)


def test_narrower_students_learn_states_through_a_projection(classifier: Path, tmp_path: Path) -> None:
    student = save_bert(tmp_path / "student", num_hidden_layers=1, hidden_size=16, num_attention_heads=2)
    result = distill(classifier, tmp_path / "out", student=student, hidden=1.0, relation=1.0, train={"epochs": 4})
    parts = [entry for entry in result.history if "hidden" in entry]
    assert parts[-1]["hidden"] < parts[0]["hidden"]
    assert parts[-1]["relation"] < parts[0]["relation"]
    assert "projections" not in " ".join(transformers.AutoModel.from_pretrained(tmp_path / "out").state_dict())


def test_embeddings_keep_the_teachers_similarities(encoder: Path, tmp_path: Path) -> None:
    result = distill(encoder, tmp_path / "out", num_layers=1, train={"epochs": 6, "validation": 0.4})
    losses = [entry["soft"] for entry in result.history if "soft" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metric == "similarity_spearman"
    assert result.best_metric >= result.first_metric > 0.5
    with pytest.raises(UsageError, match="hard: an embedding model"):
        distill(encoder, tmp_path / "hard", hard=1.0)


def test_predictions_of_tokens_are_learnt_without_those_of_padding(classifier: Path) -> None:
    data = row_data(classifier)
    batch = data.collate([{"row": 0}, {"row": 7}])
    config = transformers.AutoConfig.from_pretrained(classifier)
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(config).eval()
    readout = Readout(items="tokens", input_names=data.task.input_names)
    num_tokens = int(batch["attention_mask"].sum())
    assert num_tokens < batch["attention_mask"].numel()
    labels = torch.where(batch["attention_mask"].bool(), 1, -100)
    objective = RowObjective(options=options(soft=1, hard=1), readout=readout, cache=Constant(num_tokens))
    loss = objective.loss(model, {**batch, "labels": labels})
    logits = model(**readout.inputs(batch)).logits[batch["attention_mask"].bool()]
    logs = torch.log_softmax(logits / 2, dim=-1)
    assert loss.num_items == num_tokens
    torch.testing.assert_close(loss.parts["soft"], (4 * (np.log(1 / 3) - logs)).mean(dim=1).sum())
    torch.testing.assert_close(loss.parts["hard"], -torch.log_softmax(logits, dim=-1)[:, 1].sum())


def test_a_tagger_learns_tags_and_is_judged_by_its_entities(tmp_path: Path) -> None:
    tags = ("O", "B-X", "I-X")
    teacher = save_bert(tmp_path / "teacher", model_class="BertForTokenClassification", id2label=dict(enumerate(tags)))
    task = load_task(teacher)
    rows = [text.split() for text in sample_texts()[:48]]
    values = [{"tokens": words, "labels": ["B-X", *("O" for _ in words[1:])]} for words in rows]
    examples = [task.parse(Row(tmp_path, line, value), labelled=line < 40) for line, value in enumerate(values)]
    data = row_data(teacher, examples=examples)
    labels = data.collate([{"row": 3}, {"row": 44}])["labels"]
    assert labels[0, :3].tolist() == [-100, 1, 0]
    assert (labels[1] == -100).all()
    result = distill(
        teacher, tmp_path / "out", data=data, num_from_file=40, num_layers=1, hard=1.0, soft=0.0, train={"epochs": 6}
    )
    assert result.metric == "entity_f1"
    assert result.best_metric > 0.5 > result.first_metric


class Constant:
    """A teacher that finds three classes equally likely everywhere."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items

    def read(self, rows: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        del rows
        return {ANSWERS: np.zeros((self._num_items, 3), np.float32)}


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"soft": 0}, "all 0: nothing is learnt"),
        ({"hard": 1}, "the training rows have no labels"),
        ({"on_policy": 0.5}, "on_policy is for language models"),
        ({"divergence": "jsd"}, "divergence is for language models"),
        ({"num_layers": 9}, "9 of 3 layers"),
    ],
)
def test_contradictory_wishes_are_refused(classifier: Path, tmp_path: Path, wishes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        distill(classifier, tmp_path / "out", **wishes)


def test_too_few_rows_are_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 rows are too few"):
        distill(classifier, tmp_path / "out", data=row_data(classifier, examples=[Example("a")] * 5))
