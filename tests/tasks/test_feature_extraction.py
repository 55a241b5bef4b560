from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError, UnsupportedError
from edgesmith.tasks import Example, FeatureExtraction, load_task
from tests.tasks.conftest import write_json


@pytest.fixture
def task(encoder_folder: Path) -> FeatureExtraction:
    return FeatureExtraction.load(encoder_folder)


def _row(**values: Any) -> Row:
    return Row(Path("rows.jsonl"), 7, values)


def _hidden(arrays: dict[str, np.ndarray], width: int = 4) -> np.ndarray:
    """States that depend on the token, with garbage at the padding."""
    states = np.sin(arrays["input_ids"][:, :, None] * np.arange(1, width + 1)).astype(np.float32)
    states[arrays["attention_mask"] == 0] = 1e6
    return states


def test_sentence_transformers_settings_are_read(task: FeatureExtraction) -> None:
    assert (task.pooling, task.normalize, task.max_length) == ("mean", True, 256)


def test_plain_checkpoint_pools_by_the_mean_and_leaves_the_length(encoder_folder: Path) -> None:
    (encoder_folder / "modules.json").unlink()
    shutil.rmtree(encoder_folder / "1_Pooling")
    task = FeatureExtraction.load(encoder_folder)
    assert (task.pooling, task.normalize) == ("mean", False)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"word_embedding_dimension": 384}, "mean"),
    ],
)
def test_pooling_is_read_in_both_spellings(encoder_folder: Path, config: dict[str, Any], pooling: str) -> None:
    write_json(encoder_folder / "1_Pooling" / "config.json", config)
    assert FeatureExtraction.load(encoder_folder).pooling == pooling


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "pools by weightedmean_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"pools by cls \+ mean"),
    ],
)
def test_unknown_pooling_is_refused(encoder_folder: Path, config: dict[str, Any], message: str) -> None:
    write_json(encoder_folder / "1_Pooling" / "config.json", config)
    with pytest.raises(UnsupportedError, match=message):
        FeatureExtraction.load(encoder_folder)


def test_further_layer_and_prompt_are_refused(encoder_folder: Path) -> None:
    modules = json.loads((encoder_folder / "modules.json").read_text())
    write_json(encoder_folder / "modules.json", [*modules, {"type": "sentence_transformers.models.Dense", "path": "3"}])
    with pytest.raises(UnsupportedError, match="has a module Dense"):
        FeatureExtraction.load(encoder_folder)
    write_json(encoder_folder / "config_sentence_transformers.json", {"default_prompt_name": "query"})
    with pytest.raises(UnsupportedError, match="prompt 'query'"):
        FeatureExtraction.load(encoder_folder)


@pytest.mark.parametrize("modules", [{}, [1], [{"type": "x.Pooling", "path": "../../etc"}]])
def test_broken_module_list_is_a_typed_error(encoder_folder: Path, modules: Any) -> None:
    write_json(encoder_folder / "modules.json", modules)
    with pytest.raises(ArtifactError, match=r"modules\.json"):
        FeatureExtraction.load(encoder_folder)


def _expected(pooling: str, states: np.ndarray, normalize: bool) -> np.ndarray:
    """One row of real tokens, float64."""
    rows = {"mean": states.mean(axis=0), "max": states.max(axis=0), "cls": states[0], "lasttoken": states[-1]}
    row = rows[pooling].astype(np.float64)
    return row / np.linalg.norm(row) if normalize else row


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "lasttoken"])
def test_pooling_ignores_padding_on_either_side(encoder_folder: Path, pooling: str, normalize: bool, side: str) -> None:
    config = FeatureExtraction.load(encoder_folder).runtime_config()
    config |= {"pooling": pooling, "normalize": normalize}
    config["text"]["padding_side"] = side
    write_json(encoder_folder / "task.json", config)
    task = load_task(encoder_folder)
    texts = ["one", "a rather longer sentence than the other", ""]
    arrays = task.encode(texts)
    vectors = task.vectors({"last_hidden_state": _hidden(arrays)}, arrays)
    assert vectors.dtype == np.float32
    for row, text in enumerate(texts):
        alone = task.encode([text])
        np.testing.assert_allclose(vectors[row], _expected(pooling, _hidden(alone)[0], normalize), atol=1e-6)


def test_embeddings_equal_transformers_mean_pooling(minilm_folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    task = FeatureExtraction.load(minilm_folder)
    texts = ["A cat sits on the mat.", "Stocks fell sharply on Thursday after the bank's warning."]
    tokenizer, model = AutoTokenizer.from_pretrained(minilm_folder), AutoModel.from_pretrained(minilm_folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1)
        expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    arrays = task.encode(texts)
    predictions = task.decode({"last_hidden_state": states.numpy()}, arrays, texts)
    np.testing.assert_allclose([one["embedding"] for one in predictions], expected, atol=1e-6)


def test_pair_gives_the_cosine_and_a_text_its_embedding(task: FeatureExtraction) -> None:
    examples = ["one", Example("one", "one", 5.0), ("a cat", "the stock market")]
    arrays = task.encode(examples)
    assert len(arrays["input_ids"]) == 5
    predictions = task.decode({"last_hidden_state": _hidden(arrays)}, arrays, examples)
    assert [sorted(one) for one in predictions] == [["embedding"], ["similarity"], ["similarity"]]
    assert predictions[1]["similarity"] == pytest.approx(1.0)
    assert -1 <= predictions[2]["similarity"] < 0.99
    assert json.loads(json.dumps(predictions)) == predictions


def test_states_of_another_shape_are_refused(task: FeatureExtraction) -> None:
    arrays = task.encode(["one"])
    with pytest.raises(ArtifactError, match=r"last_hidden_state of shape \[1, 384\]"):
        task.vectors({"last_hidden_state": np.zeros((1, 384), np.float32)}, arrays)


def test_evaluation_row_is_a_pair_with_a_score(task: FeatureExtraction) -> None:
    row = _row(text="a", text_pair="b", score="4.5")
    assert task.parse(row) == Example("a", "b", 4.5, 7)
    assert task.parse(_row(text="a", text_pair="b", score=3)).target == 3.0
    assert task.parse(_row(text="a"), labelled=False) == Example("a", None, None, 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "a"}, r"rows\.jsonl:7: has no column 'text_pair'\n.*pairs of texts with a human similarity score"),
        ({"text": "a", "text_pair": "b"}, "has no column 'score'"),
        ({"text": "a", "text_pair": "b", "score": "high"}, "'score' is 'high', not a finite number"),
        ({"text": "a", "text_pair": "b", "score": "nan"}, "not a finite number"),
        ({"text": "a", "text_pair": "b", "score": True}, "not a finite number"),
        ({"text": "a", "text_pair": "b", "score": 10**400}, "not a finite number"),
        ({"text_pair": "b", "score": 1}, "has no column 'text'"),
    ],
)
def test_row_that_cannot_be_scored_says_what_is_needed(
    task: FeatureExtraction, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task.parse(_row(**values))


def test_metrics_correlate_cosines_with_scores() -> None:
    predictions = [{"similarity": value} for value in (0.1, 0.4, 0.35, 0.9)]
    examples = [Example("a", "b", score) for score in (0.0, 3.0, 2.0, 5.0)]
    for name, expected in (("spearman", 1.0), ("pearson", np.corrcoef([0.1, 0.4, 0.35, 0.9], [0, 3, 2, 5])[0, 1])):
        metric = FeatureExtraction.metrics[name]
        assert metric.compute(predictions, examples) == pytest.approx(expected, abs=1e-12)
        assert metric.per_example is not None
        assert metric.per_example(predictions, examples).mean() == pytest.approx(expected, abs=1e-12)


def test_scores_that_cannot_be_correlated_are_refused() -> None:
    metric = FeatureExtraction.metric()
    with pytest.raises(DataError, match="a correlation needs two"):
        metric.compute([{"similarity": 1.0}], [Example("a", "b", 1.0)])
    with pytest.raises(DataError, match="all 2 scores are 3"):
        metric.compute([{"similarity": 1.0}, {"similarity": 0.5}], [Example("a", "b", 3.0)] * 2)
    with pytest.raises(DataError, match="no pair of texts with a score"):
        metric.compute([{"embedding": [1.0]}] * 2, [Example("a")] * 2)


def test_task_json_is_all_that_loading_needs(encoder_folder: Path) -> None:
    before = FeatureExtraction.load(encoder_folder)
    write_json(encoder_folder / "task.json", before.runtime_config())
    for name in ("config.json", "modules.json", "sentence_bert_config.json", "special_tokens_map.json"):
        (encoder_folder / name).unlink()
    shutil.rmtree(encoder_folder / "1_Pooling")
    assert load_task(encoder_folder).runtime_config() == before.runtime_config()
    write_json(encoder_folder / "task.json", before.runtime_config() | {"pooling": "median"})
    with pytest.raises(ArtifactError, match="'median'"):
        load_task(encoder_folder)


def test_texts_are_lowercased_where_sentence_transformers_says_so(encoder_folder: Path) -> None:
    write_json(encoder_folder / "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    tokenizer_config = json.loads((encoder_folder / "tokenizer_config.json").read_text())
    write_json(encoder_folder / "tokenizer_config.json", tokenizer_config | {"do_lower_case": False})
    task = FeatureExtraction.load(encoder_folder)
    upper, lower = task.encode(["LOUD"])["input_ids"], task.encode(["loud"])["input_ids"]
    np.testing.assert_array_equal(upper, lower)
