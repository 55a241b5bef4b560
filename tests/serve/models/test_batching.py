from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.artifact import Signature, TensorSpec
from serve.models.batching import BatchLimits, Layout, Waiting, choose_batch, cut, join, read_layout, split_rows
from serve.models.job import Job

Shape = tuple[int | str, ...]

TEXT = Layout(
    rows="shared",
    input_names=("input_ids", "attention_mask"),
    output_names=("states", "logits"),
    fill={"input_ids": 7, "attention_mask": 0},
    token_axes={"states": 1},
)
PLAIN = Layout(rows="shared", input_names=("x",), output_names=("y",), fill={}, token_axes={})
LEFT = Layout(
    rows="shared",
    input_names=TEXT.input_names,
    output_names=TEXT.output_names,
    fill=TEXT.fill,
    is_left=True,
    token_axes=TEXT.token_axes,
)


def waiting(layout: Layout, **arrays: NDArray[Any]) -> Waiting:
    num_rows = len(next(iter(arrays.values())))
    return Waiting(Job(arrays=arrays, done=print, num_rows=num_rows, received_ns=time.monotonic_ns()), layout)


def text(rows: int, length: int, layout: Layout = TEXT) -> Waiting:
    ids = np.random.default_rng(length).integers(10, 99, (rows, length))
    return waiting(layout, input_ids=ids, attention_mask=np.ones_like(ids))


def signature(inputs: dict[str, Shape], outputs: dict[str, Shape]) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in inputs.items()),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in outputs.items()),
    )


TEXTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 60)), min_size=1, max_size=40)
LIMITS = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 9),
    max_elements=st.none() | st.integers(1, 300),
    run_cost=st.integers(0, 30),
)


@given(TEXTS, LIMITS)
def test_a_batch_has_the_oldest_and_is_within_its_limits(sizes: list[tuple[int, int]], limits: BatchLimits) -> None:
    queue = [text(*size) for size in sizes]
    batch = choose_batch(queue, limits, TEXT)
    assert batch[0] is queue[0]
    assert {id(item) for item in queue if item.is_taken} == {id(item) for item in batch}
    if len(batch) == 1:
        return
    rows, longest = sum(item.rows for item in batch), max(item.length for item in batch)
    assert rows <= limits.max_rows
    assert limits.max_elements is None or rows * longest <= limits.max_elements
    padding = sum((longest - item.length) * item.rows for item in batch)
    assert padding <= limits.run_cost * (len(batch) - 1)  # never more than the runs that were saved


@given(TEXTS, LIMITS)
def test_each_is_served_once_and_never_after_all_that_came_later(
    sizes: list[tuple[int, int]], limits: BatchLimits
) -> None:
    queue, served = [text(*size) for size in sizes], []
    while queue:
        oldest = queue[0]
        batch = choose_batch(queue, limits, TEXT)
        assert oldest in batch
        served += batch
        queue = [item for item in queue if not item.is_taken]
    assert len(served) == len(set(map(id, served))) == len(sizes)


@given(TEXTS)
def test_equal_lengths_are_joined_whatever_padding_costs(sizes: list[tuple[int, int]]) -> None:
    queue = [text(1, 5) for _ in sizes]
    assert len(choose_batch(queue, BatchLimits(max_rows=64), TEXT)) == len(queue)


@pytest.mark.parametrize("layout", [TEXT, LEFT], ids=["right", "left"])
@given(sizes=TEXTS)
def test_what_is_joined_and_cut_is_what_was_given(layout: Layout, sizes: list[tuple[int, int]]) -> None:
    batch = [text(*size, layout) for size in sizes]
    joined = join(batch, layout)
    assert joined["attention_mask"].sum() == sum(rows * length for rows, length in sizes)
    assert set(joined["input_ids"][joined["attention_mask"] == 0]) <= {7}
    outputs = {"states": joined["input_ids"][:, :, None] * [1, 2], "logits": joined["input_ids"][:, :1]}
    for item, answer in zip(batch, cut(outputs, batch, layout), strict=True):
        ids = item.job.arrays["input_ids"]
        np.testing.assert_array_equal(answer["states"], ids[:, :, None] * [1, 2])
        assert answer["logits"].shape == (item.rows, 1)


def test_a_single_request_is_not_copied() -> None:
    item = text(2, 5)
    assert join([item], TEXT) is item.job.arrays


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([(2,), (3,), (2, 2)])), min_size=1, max_size=20))
def test_only_equal_shapes_share_a_run(sizes: list[tuple[int, tuple[int, ...]]]) -> None:
    queue = [waiting(PLAIN, x=np.ones((rows, *shape))) for rows, shape in sizes]
    batch = choose_batch(queue, BatchLimits(max_rows=6), PLAIN)
    assert {item.job.arrays["x"].shape[1:] for item in batch} == {sizes[0][1]}
    assert [queue.index(item) for item in batch] == sorted(queue.index(item) for item in batch)
    assert sum(item.rows for item in batch) <= 6
    left = [item for item in queue if not item.is_taken and item.shape == queue[0].shape]
    assert all(sum(one.rows for one in batch) + item.rows > 6 for item in left)  # greedy: none that fits is left


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows"),
    [
        ({"x": ("n", 4)}, {"y": ("n", 3)}, "shared"),
        ({"x": ("n", 4), "z": ("n", "m")}, {"y": ("n",), "w": ("n", "m")}, "shared"),
        ({"x": (1, 4)}, {"y": (1, 3)}, "single"),
        ({"x": (1, 4)}, {"y": (4,)}, "none"),
        ({"x": (8, 4)}, {"y": (8, 3)}, "none"),
        ({"x": ("n", 4)}, {"y": ("m", 3)}, "none"),
        ({"x": ("n", 4), "scale": ()}, {"y": ("n", 3)}, "none"),
        ({"x": ("n", 4)}, {"y": ("n", "n")}, "none"),  # each row's answer is about the others
    ],
)
def test_rows_are_found_by_the_names_of_axes(inputs: dict[str, Shape], outputs: dict[str, Shape], rows: str) -> None:
    layout = read_layout(signature(inputs, outputs))
    assert layout.rows == rows
    assert not layout.fill


@given(st.integers(1, 20), st.integers(1, 7))
def test_pieces_make_the_whole(rows: int, size: int) -> None:
    x = np.arange(rows * 2).reshape(rows, 2)
    pieces = [piece["x"] for piece in split_rows({"x": x}, rows, size)]
    np.testing.assert_array_equal(np.concatenate(pieces), x)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= size
