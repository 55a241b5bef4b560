from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.artifact import Signature, TensorSpec
from edgesmith.errors import UsageError
from serve.models.batching import read_layout
from serve.models.validation import Validator
from serve.runtime.arrays import check_inputs

Shape = tuple[int | str, ...]


def make(*shapes: Shape, dtype: str = "int64") -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=f"x{at}", dtype=dtype, shape=shape) for at, shape in enumerate(shapes)),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(shapes[0][0], 5) if shapes[0] else ()),),
    )


SIGNATURES = [
    make(("n", "s"), ("n", "s")),
    make(("n", 3, 2)),
    make(("n", "s"), ("n", 3)),
    make(("n", "n")),
    make(("n", 4), dtype="string"),
    make(()),
]
ARRAYS = st.dictionaries(
    st.sampled_from(["x0", "x1", "x2"]),
    st.builds(
        lambda shape, dtype: np.zeros(shape, dtype),
        st.lists(st.integers(0, 4), max_size=3).map(tuple) | st.sampled_from([(2, 3), (2, 3, 2), (2, 4)]),
        st.sampled_from([np.int64, np.int64, np.int32, object]),
    ),
    max_size=3,
)


def outcome(check: Any, *arguments: Any) -> str:
    try:
        check(*arguments)
    except UsageError as error:
        return str(error)
    return "fits"


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
@given(arrays=ARRAYS)
def test_it_says_what_the_engines_own_check_says(signature: Signature, arrays: dict[str, NDArray[Any]]) -> None:
    validator = Validator(signature, read_layout(signature))
    assert outcome(validator.check, arrays) == outcome(check_inputs, signature.inputs, arrays)


@pytest.mark.parametrize("signature", [make(("n", "s"), ("n", "s")), make(("n", "s"), ("n", 3))], ids=str)
def test_it_gives_the_rows(signature: Signature) -> None:
    arrays = {"x0": np.zeros((2, 3), np.int64), "x1": np.zeros((2, 3), np.int64)}
    assert Validator(signature, read_layout(signature)).check(arrays) == 2


def test_a_batch_axis_of_one_takes_any_number_of_rows() -> None:
    signature = make((1, 3), (1, 2))
    validator = Validator(signature, read_layout(signature))
    assert validator.check({"x0": np.zeros((4, 3), np.int64), "x1": np.zeros((4, 2), np.int64)}) == 4
    with pytest.raises(UsageError, match="rows"):
        validator.check({"x0": np.zeros((4, 3), np.int64), "x1": np.zeros((3, 2), np.int64)})
