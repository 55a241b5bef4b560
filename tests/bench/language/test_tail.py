"""Probability that leaks to tokens which no draw of the reference meets, planted in distributions known in full."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.language.measure import measure_language
from bench.language.reference import Reference, record_reference
from bench.language.tail import mend_leaks
from bench.language.windows import Windows, cut_windows
from tests.bench.language.engines import KnownEngine, log_softmax

WIDTH, LENGTH = 49_152, 128
Floats = NDArray[np.float64]
Leak = Callable[[Floats], Floats]


class ZipfEngine(KnownEngine):
    """Probabilities as 1 / rank, a little of each row's own, `noise` apart, and what a leak makes of them."""

    def __init__(self, *, noise: float = 0.0, leak: Leak | None = None, windows: tuple[int, ...] = ()) -> None:
        super().__init__(noise=noise, width=WIDTH, context_length=LENGTH)
        self.leak, self.windows = leak, windows

    def logits(self, tokens, *, first=0):  # type: ignore[no-untyped-def]
        shape = (len(tokens) - first, WIDTH)
        rows = np.random.default_rng(list(tokens)).normal(0, 0.3, shape) - np.log(np.arange(1, WIDTH + 1.0))
        if self.noise:
            rows += self.noise * np.random.default_rng([7, *tokens]).normal(size=shape)
        if self.leak and (not self.windows or tokens[1] in self.windows):
            rows = np.log(self.leak(np.exp(log_softmax(rows))))
        return rows.astype(np.float32)


def to_rare(share: float) -> Leak:
    def leak(q: Floats) -> Floats:
        q = q * (1 - share)
        q[:, -100] += share
        return q

    return leak


def rest_to_rare(q: Floats) -> Floats:
    """70 % of all but the first tokens' probability, to 100 rare ones."""
    moved = 0.7 * q[:, 200:].sum(axis=1, keepdims=True)
    q[:, 200:] *= 0.3
    q[:, -200:-100] += moved / 100
    return q


@pytest.fixture(scope="module")
def text() -> Windows:
    tokens = np.arange(4 * LENGTH) % 120
    tokens[1::LENGTH] = np.arange(4)  # the window's name
    return cut_windows(tokens.tolist(), LENGTH)


@pytest.fixture(scope="module")
def reference(text: Windows) -> Reference:
    return record_reference(ZipfEngine(), text)


@pytest.fixture(scope="module")
def expected_logs(text: Windows) -> Floats:
    return logs_of(ZipfEngine(), text)


def logs_of(engine: ZipfEngine, text: Windows) -> Floats:
    rows = [engine.logits(text.input_of(window), first=text.first)[:-1] for window in range(text.num_windows)]
    return np.stack([log_softmax(one) for one in rows])


def figures(engine: ZipfEngine, reference: Reference, p: Floats) -> tuple[float, float]:
    """The mean divergence as it is reported, and as all logits give it."""
    expected = float((np.exp(p) * (p - logs_of(engine, reference.windows))).sum(axis=2).mean())
    found = measure_language(engine, reference)
    assert found.kld is not None
    assert float(found.kld.min()) >= 0
    return found.mean_kld().value, expected


LEAKS = {"2 %": to_rare(0.02), "8 %": to_rare(0.08), "20 %": to_rare(0.2), "70 % of the rest": rest_to_rare}


@pytest.mark.parametrize("noise", [0.0, 0.25])
@pytest.mark.parametrize("name", LEAKS)
def test_probability_that_leaks_to_rare_tokens_is_counted(
    name: str, noise: float, reference: Reference, expected_logs: Floats
) -> None:
    found, expected = figures(ZipfEngine(noise=noise, leak=LEAKS[name]), reference, expected_logs)
    assert found == pytest.approx(expected, rel=0.1 if noise else 0.01)


@pytest.mark.parametrize("noise", [2e-3, 0.25])
def test_without_a_leak_near_models_are_told_apart(noise: float, reference: Reference, expected_logs: Floats) -> None:
    found, expected = figures(ZipfEngine(noise=noise), reference, expected_logs)
    assert found == pytest.approx(expected, rel=0.01)


def test_a_leak_in_one_window_alone_is_counted(reference: Reference, expected_logs: Floats) -> None:
    engine = ZipfEngine(noise=0.25, leak=to_rare(0.08), windows=(2,))
    found, expected = figures(engine, reference, expected_logs)
    assert found == pytest.approx(expected, rel=0.1)


def test_draws_that_balance_are_left_alone_and_small_leaks_are_seen_in_many_windows() -> None:
    rng, shape = np.random.default_rng(0), (40, 255)
    kld, rest, drawn = np.full(shape, 1e-3), np.full(shape, 0.4), rng.normal(0, 0.01, shape)
    balanced = drawn - drawn.mean(axis=1, keepdims=True)
    assert (mend_leaks(kld, balanced, rest) == kld).all()
    small = balanced + 0.001  # 1.6 standard errors of a window, 10 of all
    assert mend_leaks(kld[:1], small[:1], rest[:1]).mean() == pytest.approx(1e-3)
    assert mend_leaks(kld, small, rest).mean() == pytest.approx(2e-3)
    one = balanced.copy()
    one[7] += 0.01
    mended = mend_leaks(kld, one, rest)
    assert mended[7].mean() == pytest.approx(0.011)
    assert (np.delete(mended, 7, axis=0) == 1e-3).all()
