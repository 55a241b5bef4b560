"""The kernels, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax
from scipy.stats import entropy

from export.divergence import cosine, kl_divergence, max_abs_difference, same_top_label

logits = arrays(np.float32, (4, 3), elements=st.floats(-50, 50, width=32))


@given(logits, logits)
def test_divergence_is_scipys(reference: np.ndarray, candidate: np.ndarray) -> None:
    p, q = softmax(reference.astype(np.float64), axis=1), softmax(candidate.astype(np.float64), axis=1)
    np.testing.assert_allclose(kl_divergence(reference, candidate), entropy(p, q, axis=1), rtol=1e-9, atol=1e-12)


@given(logits)
def test_nothing_differs_from_itself(values: np.ndarray) -> None:
    assert (kl_divergence(values, values) == 0).all()
    assert same_top_label(values, values).all()
    assert (max_abs_difference(values, values) == 0).all()
    np.testing.assert_allclose(cosine(values, values), 1.0, atol=1e-12)


@given(logits, st.floats(-40, 40))
def test_divergence_ignores_a_shift_of_all_logits(values: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(kl_divergence(values.astype(np.float64), values + shift), 0.0, atol=1e-9)


def test_huge_logits_do_not_overflow() -> None:
    assert np.isfinite(kl_divergence(np.array([[1e30, -1e30]]), np.array([[-1e30, 1e30]]))).all()


def test_cosine_of_opposite_and_of_empty_rows() -> None:
    first, second = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), np.array([[-2.0, -4.0], [0.0, 0.0], [1.0, 0.0]])
    assert cosine(first, second).tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_a_tie_is_one_of_probability_not_of_logits() -> None:
    reference, candidate = np.array([[0.0, -0.3]]), np.array([[-1.0, 1.0]])
    assert not same_top_label(reference, candidate, tie=0.1)[0], "57 % and 43 %"
    assert same_top_label(reference, candidate, tie=0.15)[0]
