"""The versions of one model beside each other: their shares, what they did, and what was decided of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve.traffic.comparison import Arm, Comparison, Units, compare_arms
from serve.traffic.settings import TrafficSettings
from serve.traffic.split import Split

__all__ = ["Arms"]

_LOG = logging.getLogger(__name__)


class Arms:
    """One model's split and comparison.

    Requests are counted on the loop's thread; `judge` is called by the background. Each only ever puts a whole object
    in another's place.

    Args:
        name: The model.
        weights: Version → weight.
        settings: Margins and levels.
        rng: Draws for requests without a key.

    Attributes:
        split: Who gets what now.
        control: What the others are compared with; the same for the whole comparison.
        arms: Version → what it did since the comparison began.
        comparisons: Version of a canary → how it stands.
        stopped: Version → why its share was taken away.
        answered: Keys whose answers are counted.
        judged: Keys whose feedback is counted.
    """

    def __init__(self, name: str, weights: Mapping[str, float], settings: TrafficSettings, rng: random.Random) -> None:
        self.name, self.settings = name, settings
        self.split = Split(name, weights, salt=settings.salt, rng=rng)
        self.control = self.split.control
        self.arms = {version: Arm() for version in weights}
        self.comparisons: dict[str, Comparison] = {}
        self.stopped: dict[str, str] = {}
        self.answered, self.judged = Units(settings.max_keys), Units(settings.max_keys)
        self._judged_at = -1

    def judge(self) -> None:
        """Compare every canary with the control, if anything has happened, and stop those that are proven worse."""
        happened = sum(arm.num_requests + arm.feedback.num for arm in self.arms.values())
        if happened == self._judged_at:
            return
        self._judged_at = happened
        for version, arm in self.arms.items():
            if version == self.control or version in self.stopped:
                continue
            comparison = compare_arms(arm, self.arms[self.control], self.settings)
            self.comparisons[version] = comparison
            if comparison.state == "regression" and self.settings.stops:
                self.split = self.split.without(version)
                self.stopped[version] = comparison.reason
                _LOG.warning(
                    "%s:%s gets no more requests: %s. Take it out of the configuration, or a restart brings it back.",
                    self.name,
                    version,
                    comparison.reason,
                )

    def role(self, version: str) -> str:
        """`control`, `canary`, `stopped`, or `other` for a version that was asked for by name."""
        if version == self.control:
            return "control"
        if version in self.stopped:
            return "stopped"
        return "canary" if version in self.arms else "other"

    def report(self, version: str) -> dict[str, Any] | None:
        """State of one version for the page; None of one that has no share."""
        arm = self.arms.get(version)
        if arm is None:
            return None
        comparison = self.comparisons.get(version)
        return {
            "arm": self.role(version),
            "share": self.split.shares.get(version, 0.0),
            "requests": arm.num_requests,
            "compared": arm.answers.num,
            "failures": arm.num_failed,
            "slow": arm.num_slow if self.settings.slo_ms is not None else None,
            "feedback": {"num": arm.feedback.num, "mean": _score(arm)},
            "comparison": None if comparison is None else _describe(comparison, self.control, self.settings.alpha),
            "stopped": self.stopped.get(version),
        }


def _score(arm: Arm) -> float | None:
    harm = arm.feedback.mean
    return None if harm is None else 1.0 - harm


def _describe(comparison: Comparison, control: str, alpha: float) -> dict[str, Any]:
    findings = [asdict(one) | {"state": one.state} for one in comparison.findings]
    return {
        "with": control,
        "state": comparison.state,
        "reason": comparison.reason,
        "alpha": alpha,
        "findings": findings,
    }
