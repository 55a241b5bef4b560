from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gates.verdict import Outcome
from bench.report.blocks import Noted
from bench.report.data import Ancestor
from bench.report.figures import count, show_percentiles, show_significant
from bench.report.lineage import Branch, grow
from bench.report.making import LearningCurve
from bench.report.plots import (
    Series,
    Spot,
    plot_ecdf,
    plot_histogram,
    plot_learning,
    plot_percentiles,
    plot_tradeoff,
    plot_verdict,
)
from bench.report.svg import Frame, LinearScale, LogScale, TailScale
from bench.stats.percentiles import bound_percentile
from tests.bench.report import builders as built

finite = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)
positive = st.floats(min_value=1e-4, max_value=1e6)


@given(low=finite, span=st.floats(min_value=1e-3, max_value=1e6))
def test_linear_axes_have_three_to_ten_round_ticks_inside(low: float, span: float) -> None:
    scale = LinearScale(low, low + span, 0, 100)
    ticks = scale.ticks()
    assert 3 <= len(ticks) <= 10
    assert all(low - 1e-6 * span <= value <= low + span * (1 + 1e-6) for value, _ in ticks)
    assert len({name for _, name in ticks}) == len(ticks)


@given(low=positive, ratio=st.floats(min_value=1.15, max_value=1e6))
def test_log_axes_have_ticks_inside_that_can_be_told_apart(low: float, ratio: float) -> None:
    scale = LogScale(low, low * ratio, 0, 100)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 10
    places = [scale(value) for value, _ in ticks]
    assert places == sorted(places)
    assert all(low * (1 - 1e-9) <= value <= low * ratio * (1 + 1e-9) for value, _ in ticks)
    assert len({name for _, name in ticks}) == len(ticks)


def test_log_ticks_are_one_two_five() -> None:
    assert [name for _, name in LogScale(0.9, 60, 0, 100).ticks()] == ["1", "2", "5", "10", "20", "50"]
    assert [name for _, name in LogScale(0.02, 0.3, 0, 100).ticks()] == ["0.02", "0.05", "0.1", "0.2"]


def test_each_further_nine_takes_the_same_room() -> None:
    scale = TailScale(90, 99.9, 0, 100)
    assert [scale(value) for value in (90, 99, 99.9)] == pytest.approx([0, 50, 100])
    assert [name for _, name in scale.ticks()] == ["90", "95", "99", "99.5", "99.9"]


@given(
    values=st.lists(positive, min_size=1, max_size=30),
    failed=st.integers(0, 5),
    limit=st.one_of(st.none(), positive),
)
def test_plots_of_any_samples_are_wellformed(values: list[float], failed: int, limit: float | None) -> None:
    samples = np.array(values + [math.inf] * failed)
    series = [Series(name="a & b", style="a", values=samples)]
    bounds = [bound_percentile(samples, percentile, 0.9) for percentile in (50.0, 90.0, 99.0)]
    drawn = [
        plot_ecdf(series, limit=limit),
        plot_histogram(series, limit=limit),
        plot_percentiles([("a", "a", bounds)], limit=None if limit is None else (99.0, limit)),
    ]
    for svg in drawn:
        if svg:
            ElementTree.fromstring(svg)
            assert "nan" not in svg
            assert "inf" not in svg.replace("inf ms", "")


@given(
    estimate=st.one_of(st.none(), st.floats(-1e3, 1e6), st.just(math.inf)),
    bound=st.one_of(st.none(), st.floats(-1e3, 1e6), st.just(math.inf)),
    threshold=st.floats(1e-3, 1e6),
    unit=st.sampled_from(["ms", "MB", "×", "share", "accuracy", "nats", "/s"]),
    at_least=st.booleans(),
)
def test_any_verdict_can_be_drawn(
    estimate: float | None, bound: float | None, threshold: float, unit: str, at_least: bool
) -> None:
    parts = {"estimate": estimate, "bound": bound, "threshold": threshold, "unit": unit, "at_least": at_least}
    svg = plot_verdict(built.verdict("gate", Outcome.INCONCLUSIVE, **parts))
    if svg:
        ElementTree.fromstring(svg)
        assert svg.count(">limit ") == 1
    else:
        assert estimate in (None, math.inf) or bound == math.inf


@given(
    losses=st.lists(st.one_of(st.just(0.0), finite), max_size=20),
    metric=st.lists(finite, min_size=1, max_size=10),
    teacher=st.one_of(st.none(), finite),
    best=st.integers(0, 9),
)
def test_any_training_can_be_drawn(losses: list[float], metric: list[float], teacher: float | None, best: int) -> None:
    curve = LearningCurve(
        metric="a & b",
        higher_is_better=True,
        best_update=best,
        teacher_metric=teacher,
        updates=tuple(range(1, len(losses) + 1)),
        losses={"loss": tuple(losses), "soft": tuple(losses)},
        metric_updates=tuple(range(len(metric))),
        metric_values=tuple(metric),
    )
    drawn = ElementTree.fromstring(plot_learning(curve))
    marks = [one for one in drawn if one.attrib.get("class", "").startswith("ring")]
    assert len(marks) == (best < len(metric))
    assert "nan" not in plot_learning(curve)


def test_the_kept_update_is_ringed_and_the_teacher_is_a_line() -> None:
    curve = built.curve()
    drawn = ElementTree.fromstring(plot_learning(curve))
    [ring] = [one for one in drawn if one.attrib.get("class") == "ring a"]
    dots = [one for one in drawn if one.attrib.get("class") == "dot a"]
    kept = dots[curve.metric_updates.index(curve.best_update)]
    assert (ring.attrib["cx"], ring.attrib["cy"]) == (kept.attrib["cx"], kept.attrib["cy"])
    [line] = [one for one in drawn if one.attrib.get("class") == "series b thin"]
    [height] = {point.split()[1] for point in line.attrib["d"].strip("M").split("L")}
    assert all(float(height) < float(dot.attrib["cy"]) for dot in dots)  # no student reaches it


@pytest.mark.parametrize(("at_least", "first"), [(False, "zone-pass"), (True, "zone-fail")])
def test_the_side_that_ships_is_where_the_limit_says(at_least: bool, first: str) -> None:
    svg = plot_verdict(built.verdict("gate", at_least=at_least))
    zones = [one for one in ElementTree.fromstring(svg) if one.attrib.get("class", "").startswith("zone")]
    assert min(zones, key=lambda one: float(one.attrib["x"])).attrib["class"] == first


def test_any_sorted_percentiles_make_a_band_that_only_rises() -> None:
    bounds = [
        bound_percentile(built.times_ms(2.0, 2000, seed=4), percentile, 0.99) for percentile in (50.0, 90.0, 99.0)
    ]
    svg = ElementTree.fromstring(plot_percentiles([("a", "a", bounds)]))
    band = next(one for one in svg if one.attrib.get("class", "").startswith("band")).attrib["d"]
    points = [tuple(map(float, pair.split())) for pair in band.strip("MZ").split("L")]
    upper, lower = points[: len(points) // 2], points[len(points) // 2 :]
    assert [y for _, y in upper] == sorted((y for _, y in upper), reverse=True)
    assert [y for _, y in lower] == sorted(y for _, y in lower)


def test_there_is_a_band_only_where_both_bounds_are() -> None:
    samples = built.times_ms(2.0, 500, seed=4)
    bounds = [bound_percentile(samples, percentile, 0.99) for percentile in (50.0, 75.0, 90.0, 99.0, 99.5)]
    gap = [bounds[0], bounds[1], replace(bounds[2], upper=None), bounds[3], replace(bounds[4], upper=math.inf)]
    for found, ends in ((bounds, [50.0, 99.0]), (gap, [50.0, 75.0]), (bounds[4:], [])):
        svg = ElementTree.fromstring(plot_percentiles([("a", "a", found)], limit=(99.9, 9.0)))
        bands = [one.attrib["d"] for one in svg if one.attrib.get("class", "").startswith("band")]
        places = [float(pair.split()[0]) for band in bands for pair in band.strip("MZ").split("L")]
        scale = TailScale(50, 99.9, Frame().left, Frame().right)
        assert sorted({min(places), max(places)} if places else []) == pytest.approx(
            [scale(end) for end in ends], abs=0.1
        )


def test_a_further_nine_never_seems_to_need_fewer_requests() -> None:
    samples = built.times_ms(2.0, 90, seed=1)
    found = [
        bound_percentile(samples, percentile, 0.99, inflation)
        for percentile, inflation in ((50.0, 20.0), (90.0, 9.0), (99.0, 2.0), (99.9, 1.0))
    ]
    found[1] = replace(found[1], num_required=2000)
    shown = [cell.note if isinstance(cell, Noted) else "" for cell in show_percentiles(found)]
    needed = [int(note.split("≥ ")[1].split(" ")[0].replace(",", "")) for note in shown]
    assert needed == sorted(needed)
    assert needed == [140, 2000, 2000, 4603]


def test_figures_have_no_more_digits_than_they_are_asked_for() -> None:
    assert [show_significant(value) for value in (46.5835, 50.0, 0.25, 12345.6)] == ["46.58", "50", "0.25", "12,346"]
    assert [count(1, "thread"), count(2000, "round"), count(2, "process", "processes")] == [
        "1 thread",
        "2,000 rounds",
        "2 processes",
    ]


def test_the_area_of_a_dot_is_its_size() -> None:
    spots = [
        Spot(name=str(size), style="a", speed=1.0 + size, quality=90.0, interval=None, size_mb=size)
        for size in (100.0, 25.0)
    ]
    svg = ElementTree.fromstring(plot_tradeoff(spots, speed="ms", quality="%"))
    radii = [float(one.attrib["r"]) for one in svg if one.attrib.get("class", "").startswith("blob")]
    assert radii[0] == pytest.approx(2 * radii[1], rel=0.02)


def _names(branch: Branch) -> list[str]:
    return [branch.ancestor.role, *(name for parent in branch.parents for name in _names(parent))]


def test_a_line_is_a_tree_with_every_ancestor_once() -> None:
    (tree,) = grow(built.lineage("server"))
    assert _names(tree) == ["server", "fp32", "merged", "base", "adapter", "calibration"]


def test_a_line_without_parents_hangs_below_the_artifact() -> None:
    line = (Ancestor(role="server", digest="a"), Ancestor(role="fp32", digest="b"), Ancestor(role="rows", digest="c"))
    (tree,) = grow(line)
    assert [one.ancestor.role for one in tree.parents] == ["fp32", "rows"]


def test_a_line_in_a_circle_ends() -> None:
    line = (Ancestor(role="a", digest="a", parents=("b",)), Ancestor(role="b", digest="b", parents=("a",)))
    (tree,) = grow(line)
    assert _names(tree) == ["a", "b", "a"]
    assert tree.parents[0].parents[0].is_repeated
    assert grow(()) == ()
