from __future__ import annotations

import numpy as np

from bench.scenarios.inputs import encode_inputs, num_tokens
from tests.bench.conftest import News


def test_rows_of_a_batch_have_no_padding_where_a_length_is_given(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples, num_inputs=3, length=64, batch_size=4)
    assert [arrays["input_ids"].shape for arrays in inputs.arrays] == [(4, 64)] * 3
    assert all(arrays["attention_mask"].all() for arrays in inputs.arrays)
    assert len({row.tobytes() for arrays in inputs.arrays for row in arrays["input_ids"]}) == 12
    assert inputs.description == "4×64 tokens of real text"


def test_short_texts_are_joined_until_there_are_enough_tokens(news: News) -> None:
    short = [example for example in news.examples if num_tokens(news.task.encode([example])) < 500][:40]
    inputs = encode_inputs(news.task, short, num_inputs=2, length=512)
    assert [arrays["input_ids"].shape for arrays in inputs.arrays] == [(1, 512)] * 2


def test_a_natural_batch_is_padded_to_its_longest_text(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples, num_inputs=5, batch_size=4)
    assert len(inputs.arrays) == 5
    for arrays in inputs.arrays:
        assert arrays["input_ids"].shape[0] == 4
        assert arrays["attention_mask"].sum(axis=1).max() == num_tokens(arrays)


def test_too_few_examples_are_used_again_to_fill_a_batch(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples[:3], batch_size=8)
    ids = inputs.arrays[0]["input_ids"]
    assert ids.shape[0] == 8
    assert len(np.unique(ids, axis=0)) == 3
