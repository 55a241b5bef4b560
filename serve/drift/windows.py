"""When served rows are compared with the reference, so that the chance of a false alarm is one of a whole day."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgesmith.errors import UsageError
from serve.drift.reference import Feature, Reference
from serve.drift.statistics import Difference, compare_counts, holm

__all__ = ["DriftSettings", "FeatureState", "Look", "Window", "look_at"]

FeatureState: TypeAlias = Literal["ok", "alarm", "too few"]
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """How often one looks, and how sure one wants to be."""

    alpha_per_day: float = 0.01
    """How often there is an alarm within a day though nothing has changed, over all features and all looks at one
    version of a model."""
    window_rows: int = 300
    """Rows of the smallest window."""
    max_window_rows: int = 2000
    """Rows that are taken for one window, spread over its time."""
    first_window_s: float = 10.0
    """The shortest window after the start; each further one is at least twice as long…"""
    window_s: float = 300.0
    """…up to this."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha_per_day < 1:
            raise UsageError(f"alpha_per_day is {self.alpha_per_day}; it must be above 0 and below 1")
        if not 10 <= self.window_rows <= self.max_window_rows:
            raise UsageError(
                f"window_rows is {self.window_rows}; it must be from 10 to max_window_rows, {self.max_window_rows}"
            )
        if not 0 < self.first_window_s <= self.window_s:
            raise UsageError(f"first_window_s is {self.first_window_s}; it must be above 0 and at most {self.window_s}")

    def shortest_s(self, index: int) -> float:
        """The least time from the start of window `index`, from 0, to its end."""
        return min(self.first_window_s * 2.0 ** min(index, 60), self.window_s)

    @property
    def windows_per_day(self) -> int:
        """The most windows that can end within a day."""
        num, passed_s = 0, 0.0
        while self.shortest_s(num) < self.window_s and passed_s < _DAY_S:
            passed_s += self.shortest_s(num)
            num += 1
        return num + math.ceil(max(_DAY_S - passed_s, 0.0) / self.window_s)

    @property
    def alpha_per_window(self) -> float:
        """`alpha_per_day`, divided among the windows of a day.

        Windows are compared with the same reference, so that they are not independent; this holds all the same.
        """
        return self.alpha_per_day / self.windows_per_day


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One feature of one window.

    Attributes:
        feature: As the reference has it.
        counts: Of the window, by bin.
        difference: To the reference.
        p_adjusted: After Holm, over the features of the window.
        state: `alarm` where `p_adjusted` is at most `DriftSettings.alpha_per_window`.
    """

    feature: Feature
    counts: tuple[int, ...]
    difference: Difference
    p_adjusted: float
    state: FeatureState


class Window:
    """Rows counted by bin until they are enough.

    Attributes:
        num_rows: Counted.
        counts: By feature.
    """

    def __init__(self, reference: Reference) -> None:
        self.num_rows = 0
        self.counts = {feature.name: [0] * len(feature.counts) for feature in reference.features}
        self._features = reference.features

    def add(self, values: Mapping[str, float]) -> None:
        """Count a row; a feature that it has no finite value for is not counted."""
        self.num_rows += 1
        for feature in self._features:
            value = values.get(feature.name)
            if value is not None and not math.isnan(value):
                self.counts[feature.name][feature.bin_of(value)] += 1


def look_at(window: Window, reference: Reference, settings: DriftSettings) -> tuple[Look, ...]:
    """Compare a window with the reference, all features at once.

    A feature that half of the rows or more have no value for is `too few`, and takes no part in Holm's correction.
    """
    alpha = settings.alpha_per_window
    looked: list[tuple[Feature, tuple[int, ...], Difference]] = []
    for feature in reference.features:
        counts = tuple(window.counts[feature.name])
        level = alpha / len(reference.features)
        difference = compare_counts(feature.counts, counts, is_ordered=feature.is_ordered, level=level)
        looked.append((feature, counts, difference))
    enough = [2 * sum(counts) > window.num_rows for _, counts, _ in looked]
    p_values = [one[2].p_value for one, is_enough in zip(looked, enough, strict=True) if is_enough]
    adjusted = iter(holm(p_values))
    looks = []
    for (feature, counts, difference), is_enough in zip(looked, enough, strict=True):
        p_adjusted = next(adjusted) if is_enough else 1.0
        state: FeatureState = "too few" if not is_enough else "alarm" if p_adjusted <= alpha else "ok"
        looks.append(Look(feature=feature, counts=counts, difference=difference, p_adjusted=p_adjusted, state=state))
    return tuple(looks)
