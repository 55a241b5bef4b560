from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.quant_utils import compute_scale_zp, quantize_nparray

from compress.quantize.kernels import (
    activation_scale,
    dequantize,
    quantize_symmetric,
    relative_error,
)
from tests.compress.fake_quantize import fake_quantize

MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@given(MATRICES, st.sampled_from([0, 1, -1]), st.booleans(), st.booleans())
def test_error_is_at_most_half_a_step(weight, axis, reduce_range, unsigned):
    array = quantize_symmetric(weight, axis, reduce_range=reduce_range, unsigned=unsigned)
    step = np.expand_dims(array.scale, 1 - axis % 2)
    # A float32 quotient is half an ulp off, and so is the product: up to a millionth of the weight more.
    assert (np.abs(weight - dequantize(array)) <= step * 0.5 + np.abs(weight) * 1e-6 + 1e-37).all()


@given(MATRICES)
def test_quantizing_what_codes_stand_for_changes_nothing(weight):
    once = quantize_symmetric(weight, axis=1)
    np.testing.assert_allclose(dequantize(quantize_symmetric(dequantize(once), axis=1)), dequantize(once), rtol=1e-6)


@given(MATRICES)
def test_unsigned_codes_are_the_signed_ones_plus_128(weight):
    signed, unsigned = (quantize_symmetric(weight, axis=1, unsigned=choice) for choice in (False, True))
    np.testing.assert_array_equal(unsigned.codes.astype(int), signed.codes.astype(int) + 128)
    np.testing.assert_array_equal(dequantize(unsigned), dequantize(signed))


@given(MATRICES)
def test_two_products_of_a_reduced_code_and_a_uint8_fit_in_16_bits(weight):
    codes = quantize_symmetric(weight, axis=1, reduce_range=True).codes
    assert 2 * 255 * int(np.abs(codes.astype(int)).max()) < 2**15


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_codes_and_scales_are_those_of_onnxruntime_bit_for_bit(axis, reduce_range):
    weight = np.random.default_rng(0).normal(0, 0.05, (96, 64)).astype(np.float32)
    array = quantize_symmetric(weight, axis, reduce_range=reduce_range)
    limit = np.array(64 if reduce_range else 127, np.int8)
    for channel in range(weight.shape[axis]):
        values = weight.take(channel, axis)
        zero, scale = compute_scale_zp(values.min(), values.max(), -limit, limit, symmetric=True)
        codes = quantize_nparray(onnx.TensorProto.INT8, values, scale.astype(np.float32), zero, -int(limit), int(limit))
        assert array.scale[channel] == scale
        np.testing.assert_array_equal(array.codes.take(channel, axis), codes)
    assert QuantType.QInt8.tensor_type == onnx.TensorProto.INT8


@pytest.mark.parametrize("unsigned", [False, True])
def test_values_are_those_of_the_standard_dequantize_linear_bit_for_bit(unsigned):
    weight = np.random.default_rng(1).normal(0, 3, (32, 16)).astype(np.float32)
    array = quantize_symmetric(weight, axis=1, unsigned=unsigned)
    kind = onnx.TensorProto.UINT8 if unsigned else onnx.TensorProto.INT8
    node = onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["values"], axis=1)
    infos = [onnx.helper.make_tensor_value_info(n, t, None) for n, t in (("codes", kind), ("scale", 1), ("zero", kind))]
    values = [onnx.helper.make_tensor_value_info("values", 1, None)]
    graph = onnx.helper.make_graph([node], "g", infos, values)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    zeros = np.full(array.scale.shape, array.zero_point, array.codes.dtype)
    feed = {"codes": array.codes, "scale": array.scale, "zero": zeros}
    [expected] = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_array_equal(dequantize(array), expected)


def test_an_all_zero_channel_has_finite_scale_and_zero_codes():
    array = quantize_symmetric(np.zeros((3, 2), np.float32), axis=1)
    np.testing.assert_array_equal(array.scale, 1)
    np.testing.assert_array_equal(array.codes, 0)
    assert relative_error(np.zeros((3, 2), np.float32), array) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        quantize_symmetric(np.array([[1.0, bad]], np.float32), axis=0)


@given(st.floats(-1e4, 1e4, width=32), st.floats(0, 1e4, width=32), st.booleans())
def test_zero_is_represented_exactly(low, width, signed):
    parameters = activation_scale(low, low + width, signed=signed)
    assert fake_quantize(np.zeros(1, np.float32), parameters)[0] == 0


@given(hnp.arrays(np.float32, 50, elements=st.floats(-1e3, 1e3, width=32)), st.booleans())
def test_values_in_range_are_at_most_a_step_off(values, signed):
    parameters = activation_scale(float(values.min()), float(values.max()), signed=signed)
    error = np.abs(fake_quantize(values, parameters) - values)
    # Half a step for rounding, and at the ends of the range up to as much again for rounding the zero point.
    assert (error <= parameters.scale * 1.001 + 1e-6).all()


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match="no range"):
        activation_scale(low, high, signed=False)
