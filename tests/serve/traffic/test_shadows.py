from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from edgesmith.artifact import Artifact
from edgesmith.errors import UsageError
from serve.errors import OverloadedError
from serve.models.job import Job
from serve.runtime import open_engine
from serve.traffic.shadows import Agreement, Shadow, compare_outputs

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def logits(*rows: list[float]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"logits": np.array(rows, np.float32)}


def test_logits_agree_by_their_labels() -> None:
    near = compare_outputs(logits([1, 2], [3, 1]), logits([1, 2.5], [3, 0]))
    assert near.is_same
    assert near.max_abs_difference == 1.0
    assert 0.9 < near.cosine < 1
    assert not compare_outputs(logits([1, 2], [3, 1]), logits([1, 2], [1, 3])).is_same


def test_embeddings_agree_by_their_direction() -> None:
    one, other = np.array([[1.0, 0.0]]), np.array([[1.0, 0.05]])
    assert compare_outputs({"e": one}, {"e": other}).is_same
    assert not compare_outputs({"e": one}, {"e": other[:, ::-1]}).is_same


@pytest.mark.parametrize(
    "theirs", [{}, {"logits": np.ones((1, 3))}, {"logits": np.full((1, 2), np.nan)}, {"logits": np.array([["a", "b"]])}]
)
def test_answers_that_cannot_be_compared_disagree(
    theirs: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
) -> None:
    found = compare_outputs({"logits": np.ones((1, 2))}, theirs)
    assert not found.is_same
    assert math.isinf(found.max_abs_difference)


class Version:
    """A version that answers when it is told to, by a real engine."""

    def __init__(self, artifact: Artifact) -> None:
        self.engine = open_engine(artifact)
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def answer(self) -> None:
        for job in self.jobs:
            job.outputs = self.engine.run(job.arrays)
            job.done(job)
        self.jobs.clear()


def mirrored(artifact: Artifact, num: int, **changes: int) -> tuple[Shadow, Version, list[Agreement | None]]:
    version, seen = Version(artifact), list[Agreement | None]()
    shadow = Shadow(
        "2", version.submit, lambda request_id, agreement: seen.append(agreement), **{"max_pending": 4} | changes
    )
    outputs = version.engine.run({"x": X})
    for number in range(num):
        shadow.mirror(Job({"x": X}, lambda job: None, 2, 0, outputs=outputs), f"r{number}", lambda: None)
    return shadow, version, seen


def test_answers_of_a_shadow_are_compared_with_those_of_the_original(affine_artifact: Artifact) -> None:
    shadow, version, seen = mirrored(affine_artifact, 3)
    version.answer()
    shadow.compare()
    assert seen == [Agreement(is_same=True, max_abs_difference=0.0, cosine=pytest.approx(1.0))] * 3
    report = shadow.report(0.05)
    assert (report["compared"], report["disagreement"], report["dropped"], report["failed"]) == (3, 0.0, 0, 0)
    assert 0 == report["disagreement_low"] < report["disagreement_high"] < 1


def test_no_more_copies_are_under_way_than_are_allowed(affine_artifact: Artifact) -> None:
    shadow, version, seen = mirrored(affine_artifact, 10)
    assert (len(version.jobs), shadow.num_dropped) == (4, 6)
    version.answer()
    shadow.compare()
    shadow.mirror(Job({"x": X}, lambda job: None, 2, 0, outputs={}), "later", lambda: None)
    assert (len(version.jobs), len(seen)) == (1, 4)


@pytest.mark.parametrize(("error", "failed"), [(OverloadedError("full"), 0), (UsageError("another input"), 1)])
def test_a_shadow_that_takes_no_copy_is_no_error(error: Exception, failed: int) -> None:
    def refuse(job: Job) -> None:
        raise error

    shadow = Shadow("2", refuse, lambda request_id, agreement: None, max_pending=4)
    shadow.mirror(Job({"x": X}, lambda job: None, 2, 0, outputs={}), "r", lambda: None)
    assert (shadow.num_failed, shadow.num_dropped) == (failed, 1 - failed)


def test_a_shadow_that_breaks_on_a_copy_is_counted(affine_artifact: Artifact) -> None:
    shadow, version, seen = mirrored(affine_artifact, 1)
    done: Callable[[Job], None] = version.jobs[0].done
    version.jobs[0].error = UsageError("broken")
    done(version.jobs[0])
    shadow.compare()
    assert (shadow.num_failed, seen) == (1, [None])


def test_inputs_of_copies_count_as_held() -> None:
    copies: list[Job] = []
    shadow = Shadow("2", copies.append, lambda request_id, agreement: None, max_pending=64)
    large = {"x": np.zeros((1, 4 << 20), np.float32)}  # 16 MiB
    for number in range(64):
        shadow.mirror(Job(large, lambda job: None, 1, 0, outputs={}), f"r{number}", lambda: None)
    assert (len(copies), shadow.num_dropped) == (4, 60)
