from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve.errors import MalformedError
from serve.protocols.oip.tensors import (
    DATATYPES,
    array_from_bytes,
    array_from_list,
    bytes_of_array,
    check_shape,
    check_size,
    datatype_of,
    dtype_of,
    json_of_array,
)

NUMBERS = [name for name in DATATYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    if datatype != "BYTES":
        dtype = DATATYPES[datatype]
        elements: Any = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
        return hnp.arrays(dtype, SHAPES, elements=elements)
    texts = st.text(st.characters(codec="utf-8"), max_size=8)
    return SHAPES.flatmap(lambda shape: hnp.arrays(np.object_, shape, elements=texts))


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(max_examples=40)
@given(st.data())
def test_bytes_come_back_as_they_went_wherever_they_lie(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    begin = data.draw(st.integers(0, 9))
    packed = bytes(bytes_of_array(array))
    body = b"x" * begin + packed + b"rest"
    found = array_from_bytes("a", datatype, list(array.shape), body, begin, len(packed))
    assert found.flags.aligned
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("is_flat", [True, False])
@settings(max_examples=40)
@given(st.data())
def test_json_comes_back_as_it_went_flat_and_nested(datatype: str, is_flat: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    written = json.loads(json_of_array(array))
    assert len(written) == array.size
    nested = written if is_flat or array.ndim == 0 else np.array(written, np.object_).reshape(array.shape).tolist()
    found = array_from_list("a", datatype, list(array.shape), array.size, nested)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_bytes_that_lie_well_are_not_copied() -> None:
    body = np.arange(8, dtype=np.int64).tobytes()
    found = array_from_bytes("a", "INT64", [2, 2], body, 16, 32)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    array = np.arange(600.0).reshape(2, 300)
    assert np.shares_memory(np.frombuffer(bytes_of_array(array), np.uint8), array)


@pytest.mark.parametrize(
    ("datatype", "values", "message"),
    [
        ("INT64", [1.5], "INT64 and holds fractions"),
        ("INT64", [True], "INT64 and holds true or false"),
        ("INT64", ["1"], "INT64 and holds texts"),
        ("INT64", [None], "INT64 and holds null"),
        ("INT64", [2**63], "out of INT64's range"),
        ("UINT8", [256], "out of UINT8's range"),
        ("UINT64", [-1], "out of UINT64's range"),
        ("FP32", ["1"], "FP32 and holds texts"),
        ("FP32", [None], "FP32 and holds null"),
        ("FP32", [1e39], "out of FP32's range"),
        ("FP16", [70000.0], "out of FP16's range"),
        ("BOOL", [2], "numbers other than 0 and 1"),
        ("BOOL", [1.0], "BOOL and holds fractions"),
        ("BYTES", [1], "BYTES and holds int"),
        ("BYTES", [{}], "BYTES and holds objects"),
    ],
)
def test_values_of_another_type_or_range_are_refused(datatype: str, values: list[Any], message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        array_from_list("a", datatype, [1], 1, values)


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2, 3], [4]],
        [[1, 2], 3, 4],
        [1, [2, 3], 4],
        [[1, 2], [3, 4], [5, 6]],
        [[1], [2], [3], [4]],
        [[[1], [2]], [[3], [4]]],
        [[1, 2], "34"],
        [1, 2, 3],
        [],
        {},
        None,
        "1234",
    ],
)
def test_data_that_are_not_shaped_as_said_are_refused(data: Any) -> None:
    with pytest.raises(MalformedError, match="'a'"):
        array_from_list("a", "INT64", [2, 2], 4, data)


@pytest.mark.parametrize("shape", [None, "12", [0], [-1, 2], [1.0], [True], [None], [1] * 33, {}])
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    with pytest.raises(MalformedError, match="'a'"):
        check_shape("a", shape, 8)


@given(st.binary(max_size=40), st.integers(1, 4), st.sampled_from(sorted(DATATYPES)))
def test_any_bytes_are_a_tensor_or_refused(data: bytes, count: int, datatype: str) -> None:
    try:
        if datatype != "BYTES":
            check_size("a", datatype, [count], len(data))
        found = array_from_bytes("a", datatype, [count], data, 0, len(data))
    except MalformedError:
        return
    assert found.shape == (count,)
    assert bytes(bytes_of_array(found)) == data


def test_bfloat16_is_refused_with_the_reason() -> None:
    with pytest.raises(MalformedError, match="BF16, which NumPy has not"):
        dtype_of("a", "BF16")
    with pytest.raises(MalformedError, match="'float'"):
        dtype_of("a", "float")
    with pytest.raises(MalformedError, match="None"):
        dtype_of("a", None)


def test_every_dtype_has_its_name() -> None:
    assert {name: datatype_of(dtype.name) for name, dtype in DATATYPES.items()} == {name: name for name in DATATYPES}
    assert datatype_of("string") == "BYTES"
    assert math.prod([]) == check_shape("a", [], 8)
