"""Shadows: a version that gets copies of requests, and whose answers are compared and thrown away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError
from serve.errors import OverloadedError
from serve.models.job import Job
from serve.traffic.sequences import Sums, mean_interval

__all__ = ["Agreement", "Shadow", "compare_outputs"]

_SAME_COSINE = 0.99
_MAX_COMPARED = 1 << 20
"""Elements of one output; of more, as many are compared, evenly spread."""
_MAX_HELD_BYTES = 64 << 20
"""Of inputs and answers of the copies that are under way or wait to be compared."""
_TIMEOUT_S = 30.0

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How near two answers are.

    Attributes:
        is_same: The same label in every row; where there are no labels, a cosine of at least 0.99.
        max_abs_difference: Of any element; infinite where shapes differ or a value is not finite.
        cosine: Of all elements as one vector, the smallest of the outputs.
    """

    is_same: bool
    max_abs_difference: float
    cosine: float


def compare_outputs(ours: Arrays, theirs: Arrays) -> Agreement:
    """Compare what two versions gave for the same rows.

    >>> compare_outputs({"logits": np.array([[1.0, 2.0]])}, {"logits": np.array([[1.0, 2.5]])}).is_same
    True
    """
    is_same, largest, lowest = True, 0.0, 1.0
    for name, one in ours.items():
        other = theirs.get(name)
        if other is None or one.shape != other.shape or one.dtype.kind not in "fiu" or other.dtype.kind not in "fiu":
            return Agreement(is_same=False, max_abs_difference=float("inf"), cosine=0.0)
        if name == "logits" and one.ndim >= 2:
            is_same = is_same and bool(np.array_equal(one.argmax(axis=-1), other.argmax(axis=-1)))
        step = -(-one.size // _MAX_COMPARED) or 1
        a, b = (array.reshape(-1)[::step].astype(np.float64) for array in (one, other))
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return Agreement(is_same=False, max_abs_difference=float("inf"), cosine=0.0)
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        lowest = min(lowest, float(a @ b) / length if length else float(np.array_equal(a, b)))
    if "logits" not in ours:
        is_same = lowest >= _SAME_COSINE
    return Agreement(is_same=is_same, max_abs_difference=largest, cosine=lowest)


class Shadow:
    """The copies that one version gets of one model's requests.

    A copy is sent when its original is answered, so that the original never waits behind it in a queue, and only
    while few copies are under way and the shadow's own queue has room.

    Args:
        version: That gets them.
        submit: Hands a copy to the version; raises what `GraphModel.submit` raises.
        on_compared: Called in the background with the original's id and how near the answers are, None where the
            shadow failed.
        max_pending: Copies under way or waiting to be compared.

    Attributes:
        disagreements: Copies that were answered; the sum is of those whose answer was another.
        num_failed: Copies that the shadow did not answer.
        num_dropped: Requests that were not copied, because there was no room.
        max_abs_difference: The largest yet.
        lowest_cosine: The lowest yet.
    """

    def __init__(
        self,
        version: str,
        submit: Callable[[Job], None],
        on_compared: Callable[[str, Agreement | None], None],
        *,
        max_pending: int,
    ) -> None:
        self.version = version
        self.disagreements = Sums()
        self.num_failed = self.num_dropped = 0
        self.max_abs_difference, self.lowest_cosine = 0.0, 1.0
        self._submit, self._on_compared, self._max_pending = submit, on_compared, max_pending
        self._num_pending = self._held_bytes = 0
        self._answered: list[tuple[str, int, Arrays, Job]] = []
        self._lock = threading.Lock()

    def mirror(self, job: Job, request_id: str, wake: Callable[[], None]) -> None:
        """Send a copy of a job that was answered. On the loop's thread; never raises.

        Args:
            job: With its outputs.
            request_id: Of the original.
            wake: Called when there is something for `compare`.
        """
        outputs = job.outputs or {}
        # The shadow's own answer is about as large as the original's.
        size = sum(array.nbytes for array in job.arrays.values())
        size += 2 * sum(array.nbytes for array in outputs.values())
        if self._num_pending >= self._max_pending or self._held_bytes + size > _MAX_HELD_BYTES:
            self.num_dropped += 1
            return

        def done(copy: Job) -> None:
            with self._lock:
                self._answered.append((request_id, size, outputs, copy))
            wake()

        now_ns = time.monotonic_ns()
        copy = Job(job.arrays, done, job.num_rows, now_ns, deadline_ns=now_ns + int(_TIMEOUT_S * 1e9))
        try:
            self._submit(copy)
        except OverloadedError:
            self.num_dropped += 1
        except EdgesmithError:  # not ready, or its inputs are others
            self.num_failed += 1
        else:
            with self._lock:
                self._num_pending += 1
                self._held_bytes += size

    def compare(self) -> None:
        """Compare what was answered since; in the background's thread."""
        with self._lock:
            answered, self._answered = self._answered, []
        for request_id, size, outputs, copy in answered:
            agreement = None if copy.outputs is None else compare_outputs(outputs, copy.outputs)
            if agreement is None:
                self.num_failed += 1
            else:
                self.disagreements.num += 1
                self.disagreements.total += not agreement.is_same
                self.max_abs_difference = max(self.max_abs_difference, agreement.max_abs_difference)
                self.lowest_cosine = min(self.lowest_cosine, agreement.cosine)
            with self._lock:
                self._num_pending -= 1
                self._held_bytes -= size
            self._on_compared(request_id, agreement)

    def report(self, alpha: float) -> dict[str, Any]:
        """State for the page; the share of other answers with an interval that holds at every moment."""
        low, high = mean_interval(self.disagreements, alpha)
        return {
            "version": self.version,
            "compared": self.disagreements.num,
            "disagreement": self.disagreements.mean,
            "disagreement_low": low,
            "disagreement_high": high,
            "failed": self.num_failed,
            "dropped": self.num_dropped,
            "max_abs_difference": self.max_abs_difference,
            "lowest_cosine": self.lowest_cosine,
        }
