from __future__ import annotations

import random
from collections import Counter

import pytest

from edgesmith.errors import UsageError
from serve.arguments import parse_split
from serve.traffic.split import Split

KEYS = [f"user-{number}" for number in range(4000)]


def split(weights: dict[str, float], salt: str = "s", name: str = "news") -> Split:
    return Split(name, weights, salt=salt, rng=random.Random(0))


@pytest.mark.parametrize("key", [True, False])
def test_versions_get_their_shares(key: bool) -> None:
    weights = {"1": 70, "2": 25, "3": 5}
    chosen = split(weights)
    counts = Counter(chosen.choose(one if key else None) for one in KEYS)
    for version, weight in weights.items():
        assert counts[version] / len(KEYS) == pytest.approx(weight / 100, abs=0.03)


def test_a_key_stays_with_its_version() -> None:
    one, other = split({"1": 3, "2": 1}), split({"1": 3, "2": 1})
    assert [one.choose(key) for key in KEYS] == [other.choose(key) for key in KEYS]


def test_another_salt_or_model_deals_the_keys_anew() -> None:
    base = [split({"1": 1, "2": 1}).choose(key) for key in KEYS]
    for other in (split({"1": 1, "2": 1}, salt="t"), split({"1": 1, "2": 1}, name="other")):
        same = sum(one == other.choose(key) for one, key in zip(base, KEYS, strict=True))
        assert same / len(KEYS) == pytest.approx(0.5, abs=0.05)


def test_only_as_many_keys_move_as_the_change_says() -> None:
    before, after = split({"1": 80, "2": 15, "3": 5}), split({"1": 80, "2": 15, "3": 15})
    moves = Counter((before.choose(key), after.choose(key)) for key in KEYS)
    moved = {pair: count for pair, count in moves.items() if pair[0] != pair[1]}
    assert {to for _, to in moved} == {"3"}
    grown = 15 / 110 - 5 / 100
    assert sum(moved.values()) / len(KEYS) == pytest.approx(grown, abs=0.02)


def test_keys_of_a_version_that_is_taken_away_are_dealt_and_all_others_stay() -> None:
    before = split({"1": 60, "2": 30, "3": 10})
    after = before.without("3")
    for key in KEYS:
        if before.choose(key) != "3":
            assert after.choose(key) == before.choose(key)
    assert after.shares == pytest.approx({"1": 2 / 3, "2": 1 / 3})


def test_control_is_the_largest_share() -> None:
    assert split({"2": 5, "1": 95}).control == "1"
    assert split({"b": 50, "a": 50}).control == "b"


def test_a_key_may_hold_any_text() -> None:
    assert {split({"1": 1, "2": 1}).choose(key) for key in ("", "\ud800", "é" * 10_000)} <= {"1", "2"}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "5", 10**400])
def test_a_weight_that_is_no_number_of_0_or_more_is_refused(weight: object) -> None:
    with pytest.raises(UsageError, match="the weight of news:2 is"):
        split({"1": 1, "2": weight})  # type: ignore[dict-item]


def test_a_split_without_versions_is_refused() -> None:
    with pytest.raises(UsageError, match="names no version"):
        split({})


@pytest.mark.parametrize("weights", [{"1": 1e308, "2": 1e308}, {"1": 1e308, "2": 1e-300}, {"1": 0, "2": 0.0}])
def test_weights_that_make_no_shares_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"add up to|too small beside"):
        split(weights)


def test_weight_0_is_no_share_with_and_without_a_key() -> None:
    chosen = split({"1": 0, "2": 3, "3": 0})
    assert chosen.shares == {"2": 1.0}
    assert {chosen.choose(key) for key in [*KEYS[:50], None]} == {"2"}


@pytest.mark.parametrize("text", ["news=1:95,2:0", "news=1:1e308,2:1e308", "news=1:0,2:0", "news=1:-1,2:2"])
def test_the_flag_and_the_split_agree_or_the_split_is_stricter(text: str) -> None:
    try:
        name, weights = parse_split(text)
    except UsageError:
        return
    if text == "news=1:95,2:0":
        assert split(weights, name=name).shares == {"1": 1.0}
    else:
        with pytest.raises(UsageError):
            split(weights, name=name)
