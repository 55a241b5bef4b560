"""What a model has done so far: counts, times and histograms that cost well under a microsecond a request.

Every field is written by one thread only, so none needs a lock: outcomes of requests by the loop's thread, runs of the
engine by the model's executor. A reader on any thread sees each number whole, and may see one field a request ahead of
another.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

__all__ = ["DURATION_BOUNDS_NS", "ROW_BOUNDS", "Buckets", "ModelStats"]

DURATION_BOUNDS_NS: tuple[int, ...] = tuple(
    int(bound * 1e6)
    for bound in (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
)
"""Upper bounds of time histograms, 50 µs to 30 s."""
ROW_BOUNDS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram of rows in a batch."""


class Buckets:
    """A histogram with fixed bounds.

    Attributes:
        bounds: Upper bounds, each included in its bucket, ascending.
        counts: Values in each bucket, the last one above all bounds; not cumulative.
        total: Sum of the values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...] = DURATION_BOUNDS_NS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """For each bound, and at last for no bound, the values up to it, as Prometheus has them.

        >>> buckets = Buckets((1, 2, 4))
        >>> for value in (1, 2, 2, 3, 9):
        ...     buckets.add(value)
        >>> buckets.cumulative()
        [1, 3, 4, 5]
        """
        found, below = [], 0
        for count in self.counts:
            below += count
            found.append(below)
        return found


class ModelStats:
    """Figures of one version of one model.

    Attributes:
        success_count: Requests answered. Like all of the first group, written by the loop's thread.
        success_ns: Their time from arrival to answer, together.
        failures: Requests that were not, by reason (see `serve.errors`); refused ones included.
        fail_ns: Their time, together.
        queue_ns: Time that an answered request waited for the engine.
        inference_count: Rows answered.
        last_inference_ms: When the last answer was given, since the epoch; 0 before.
        execution_count: Runs of the engine. Like all of the second group, written by the executor.
        compute_ns: Time of one run, without joining inputs and cutting outputs.
        batch_rows: Rows of one run.
        batches: Rows of a run → its runs, and the time of joining inputs, running and cutting outputs.
        jobs_ns: Times of joining, running and cutting, each counted once for every request in the run.
        num_jobs_run: Requests that those are counted for.
        elements_given: Elements that clients sent: tokens. Counted of texts whose lengths may be mixed.
        elements_run: Elements that were run for them, padding included.
        first_token_ns: From a request's arrival to its first token. Like the rest, written by the scheduler of a
            language model.
        between_tokens_ns: From one token of a text to its next.
        prompt_tokens: Tokens of prompts, reused ones included.
        reused_tokens: Of them, those that were not read again.
        generated_tokens: Tokens written.
    """

    __slots__ = (
        "batch_rows",
        "batches",
        "between_tokens_ns",
        "compute_ns",
        "elements_given",
        "elements_run",
        "execution_count",
        "fail_ns",
        "failures",
        "first_token_ns",
        "generated_tokens",
        "inference_count",
        "jobs_ns",
        "last_inference_ms",
        "num_jobs_run",
        "prompt_tokens",
        "queue_ns",
        "reused_tokens",
        "success_count",
        "success_ns",
    )

    def __init__(self) -> None:
        self.success_count = 0
        self.success_ns = 0
        self.failures: dict[str, int] = {}
        self.fail_ns = 0
        self.queue_ns = Buckets()
        self.inference_count = 0
        self.last_inference_ms = 0

        self.execution_count = 0
        self.compute_ns = Buckets()
        self.batch_rows = Buckets(ROW_BOUNDS)
        self.batches: dict[int, list[int]] = {}  # rows → runs, ns of joining, of running, of cutting
        self.jobs_ns = [0, 0, 0]
        self.num_jobs_run = 0
        self.elements_given = 0
        self.elements_run = 0

        self.first_token_ns = Buckets()
        self.between_tokens_ns = Buckets()
        self.prompt_tokens = 0
        self.reused_tokens = 0
        self.generated_tokens = 0

    def count_success(self, rows: int, queue_ns: int, total_ns: int) -> None:
        """Count an answered request; on the loop's thread."""
        self.success_count += 1
        self.success_ns += total_ns
        self.inference_count += rows
        self.queue_ns.add(queue_ns)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def count_failure(self, reason: str, total_ns: int = 0) -> None:
        """Count a request that was refused, dropped or went wrong; on the loop's thread."""
        self.failures[reason] = self.failures.get(reason, 0) + 1
        self.fail_ns += total_ns

    def count_run(self, rows: int, jobs: int, join_ns: int, infer_ns: int, cut_ns: int) -> None:
        """Count a run of the engine; on the executor's thread.

        Args:
            rows: Rows of the run.
            jobs: Requests in it; 0 for a further run for the same request.
            join_ns: Time for making one input of several requests'.
            infer_ns: Time of the engine.
            cut_ns: Time for giving each request its own rows.
        """
        self.execution_count += 1
        self.compute_ns.add(infer_ns)
        self.batch_rows.add(rows)
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += join_ns
        batch[2] += infer_ns
        batch[3] += cut_ns
        self.num_jobs_run += jobs
        times, weight = self.jobs_ns, max(jobs, 1)
        times[0] += join_ns * weight
        times[1] += infer_ns * weight
        times[2] += cut_ns * weight

    @property
    def fail_count(self) -> int:
        """Requests that were not answered."""
        return sum(self.failures.values())

    @property
    def padding_share(self) -> float:
        """Share of the elements run that were padding for batches of several lengths; what clients padded is not."""
        return 1.0 - self.elements_given / self.elements_run if self.elements_run else 0.0

    def snapshot(self) -> dict[str, Any]:
        """The figures in the fields of the Open Inference Protocol's statistics extension, without name and version.

        Source: github.com/triton-inference-server/server, docs/protocol/extension_statistics.md.
        """
        names = ("compute_input", "compute_infer", "compute_output")
        queue = self.queue_ns
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": {"count": self.success_count, "ns": self.success_ns},
                "fail": {"count": self.fail_count, "ns": self.fail_ns},
                "queue": {"count": queue.count, "ns": queue.total},
                **{name: {"count": self.num_jobs_run, "ns": ns} for name, ns in zip(names, self.jobs_ns, strict=True)},
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    **{name: {"count": runs, "ns": ns} for name, ns in zip(names, times, strict=True)},
                }
                for rows, (runs, *times) in sorted(self.batches.copy().items())
            ],
        }
