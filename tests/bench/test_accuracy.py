from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.accuracy import EVALUATION, PREDICTIONS, Evaluation, evaluate
from edgesmith.artifact import Signature
from edgesmith.errors import ArtifactError, DataError, UsageError, VerificationError
from edgesmith.tasks import Example
from serve.runtime import Engine, open_engine
from tests.bench.conftest import News


@pytest.fixture(scope="module")
def evaluation(news: News) -> Evaluation:
    return evaluate(open_engine(news.exact), news.task, news.examples, artifact_digest=news.exact.digest)


def test_predictions_are_in_file_order_and_those_of_single_requests(news: News, evaluation: Evaluation) -> None:
    engine = open_engine(news.exact)
    for index in (0, 7, 200):
        arrays = news.task.encode([news.examples[index]])
        alone = news.task.decode(engine.run(arrays), arrays, [news.examples[index]])[0]
        assert evaluation.predictions[index]["label"] == alone["label"]
        assert evaluation.lines[index] == news.examples[index].line


def test_metrics_are_those_of_the_predictions(news: News, evaluation: Evaluation) -> None:
    right = [one["index"] == example.target for one, example in zip(evaluation.predictions, news.examples, strict=True)]
    assert evaluation.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert evaluation.scores["accuracy"].tolist() == [float(one) for one in right]
    assert evaluation.confusion is not None
    assert evaluation.confusion.trace() == sum(right)
    assert evaluation.confusion.sum() == len(news.examples)
    assert evaluation.metrics["accuracy"] > 0.85


def test_saved_evaluation_reads_back_equal_and_the_same_bytes(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path / "a")
    read = Evaluation.load(tmp_path / "a")
    assert read.summary() == evaluation.summary()
    assert read.predictions == evaluation.predictions
    assert read.targets == evaluation.targets
    assert np.array_equal(read.scores["accuracy"], evaluation.scores["accuracy"])
    read.save(tmp_path / "b")
    assert (tmp_path / "a" / PREDICTIONS).read_bytes() == (tmp_path / "b" / PREDICTIONS).read_bytes()
    first = gzip.decompress((tmp_path / "a" / PREDICTIONS).read_bytes()).splitlines()[0]
    assert json.loads(first)["scores"].keys() == {"accuracy"}


def test_batching_does_not_change_the_answers(news: News, evaluation: Evaluation) -> None:
    single = evaluate(open_engine(news.exact), news.task, news.examples[:40], batch_size=1)
    assert [one["label"] for one in single.predictions] == [one["label"] for one in evaluation.predictions[:40]]


def test_digest_depends_on_texts_targets_and_order(news: News, evaluation: Evaluation) -> None:
    engine = open_engine(news.exact)
    first, second, *rest = news.examples[:10]
    same = evaluate(engine, news.task, [first, second, *rest])
    assert evaluate(engine, news.task, [first, second, *rest], batch_size=3).data_digest == same.data_digest
    assert evaluate(engine, news.task, [second, first, *rest]).data_digest != same.data_digest
    relabelled = replace(first, target=(int(first.target or 0) + 1) % 5)
    assert evaluate(engine, news.task, [relabelled, second, *rest]).data_digest != same.data_digest


def test_a_damaged_evaluation_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path)
    content = (tmp_path / PREDICTIONS).read_bytes()
    (tmp_path / PREDICTIONS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=PREDICTIONS):
        Evaluation.load(tmp_path)
    (tmp_path / EVALUATION).write_text("{")
    with pytest.raises(ArtifactError, match=EVALUATION):
        Evaluation.load(tmp_path)
    with pytest.raises(UsageError, match=EVALUATION):
        Evaluation.load(tmp_path / "nowhere")


def test_no_examples_and_no_labels_are_refused(news: News) -> None:
    engine = open_engine(news.exact)
    with pytest.raises(DataError):
        evaluate(engine, news.task, [])
    with pytest.raises(DataError):
        evaluate(engine, news.task, [Example("a text")])


class _Broken:
    """The real engine, with one output turned into a NaN, as an overflowing kernel does."""

    name = "broken"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def signature(self) -> Signature:
        return self._engine.signature

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = {name: values.copy() for name, values in self._engine.run(arrays).items()}
        outputs["logits"][-1, 0] = np.nan
        return outputs

    def close(self) -> None:
        self._engine.close()


def test_an_output_that_is_not_finite_is_an_error_that_names_the_line(news: News) -> None:
    examples = news.examples[:1]
    with pytest.raises(VerificationError, match=f"line {examples[0].line} .*not finite"):
        evaluate(_Broken(open_engine(news.exact)), news.task, examples)
