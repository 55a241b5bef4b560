"""Stop strings, the choice of tokens, the number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serve.runtime.cores import choose_threads
from serve.runtime.generation import GREEDY, Sampling
from serve.runtime.sampling import choose_token
from serve.runtime.stop_strings import StopFilter


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_is_shown_is_the_text_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    held = StopFilter(stops)
    shown = []
    for piece in pieces:
        shown.append(held.push(piece))
        if held.found is not None:
            break
    shown.append(held.flush())
    # A stop string ends the answer with the piece that completes it.
    text = "".join(pieces[: len(shown) - 1])
    ends = [text.find(stop) for stop in stops if stop in text]
    assert "".join(shown) == (text[: min(ends)] if ends else text)
    assert (held.found is not None) == bool(ends)


def test_nothing_is_held_back_longer_than_needed() -> None:
    held = StopFilter(["stop"])
    assert [held.push(piece) for piece in ("a s", "t", "ar", "sto")] == ["a ", "", "star", ""]


def test_draws_follow_the_probabilities_of_what_is_kept() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], dtype=np.float32))
    sampling = Sampling(temperature=1.0, top_k=4, top_p=1.0, min_p=0.2)
    random = np.random.default_rng(0)
    counts = np.bincount([choose_token(logits, sampling, [], random) for _ in range(3000)], minlength=5)
    assert not counts[3:].any()
    assert stats.chisquare(counts[:3], 3000 * np.array([0.4, 0.3, 0.2]) / 0.9).pvalue > 1e-4


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, {0}), (0.41, {0, 1}), (0.95, {0, 1, 2, 3})])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], dtype=np.float32))
    sampling = Sampling(temperature=5.0, top_k=0, top_p=top_p, min_p=0.0)
    random = np.random.default_rng(0)
    assert {choose_token(logits, sampling, [], random) for _ in range(300)} == kept


def test_a_penalty_turns_to_what_was_not_said() -> None:
    logits = np.array([2.0, 1.9, -1.0], dtype=np.float32)
    random = np.random.default_rng(0)
    assert choose_token(logits, GREEDY, [0], random) == 0
    assert choose_token(logits, Sampling(repeat_penalty=1.2), [0], random) == 1
    assert choose_token(logits, Sampling(repeat_penalty=1.2), [0] + [2] * 64, random) == 0


def test_threads_are_at_least_one() -> None:
    assert choose_threads() >= 1
    assert math.isfinite(choose_threads())
