"""Quantize to a budget: choose types, build the file, and see that the budget is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from compress.gguf.allocate import Allocation, Allocator, Budget
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize import GgufQuantConfig, GgufQuantizer, GgufQuantResult
from compress.gguf.sensitivity import Sensitivity
from edgesmith.errors import UsageError, VerificationError
from edgesmith.files import storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress

__all__ = ["BudgetedQuantization", "Build", "quantize_to_budget"]

MOST_BUILDS = 3
# Of the allowed divergence: a build that uses as much of it is not built again for the rest.
_ENOUGH = 0.93
_AIM_OF_LAST = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One file that was made on the way."""

    size_bytes: int
    predicted_kld: float
    """Mean per token, in nats; corrected by the builds before it."""
    measured_kld: float | None
    kept: bool
    """Whether it was within the budget, and smaller than those kept before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetedQuantization:
    """The file, what was chosen for it, and what was tried."""

    result: GgufQuantResult
    allocation: Allocation
    builds: tuple[Build, ...]

    @property
    def measured_kld(self) -> float | None:
        """Of the file; None where nothing was measured."""
        return next(one.measured_kld for one in reversed(self.builds) if one.kept)

    def summary(self) -> str:
        """One line."""
        measured = "" if self.measured_kld is None else f"; measured mean KLD {self.measured_kld:.4f}"
        return self.allocation.summary() + measured


def quantize_to_budget(
    source: Path,
    out_file: Path,
    sensitivity: Sensitivity,
    budget: Budget,
    *,
    imatrix: Imatrix | None = None,
    measure: Callable[[Path], float] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> BudgetedQuantization:
    """Choose types for a budget and quantize with them, at most three times.

    A budget of bytes or bits is kept exactly: a file that is too large is built again. For a budget of divergence,
    each build is measured, and the ratio of measured to predicted corrects the next; the smallest within the budget
    is kept.

    Args:
        source: The unquantized file that `sensitivity` was measured on.
        out_file: The new file; it appears when it is within the budget.
        sensitivity: What each tensor costs in each type.
        budget: What must not be exceeded.
        imatrix: The one that `sensitivity` was measured with.
        measure: Mean KL divergence per token, in nats, of a file from the unquantized model; needed for a budget
            of divergence, and otherwise called once, for the record.
        threads: Of the quantizer.
        progress: Told of each build.

    Raises:
        UsageError: the budget is out of reach of these types, or a divergence cannot be measured.
        VerificationError: three builds did not get within the budget.
        UnsupportedError: see `quantize_gguf`, as for the errors of the files.
    """
    if budget.max_mean_kld is not None and measure is None:
        raise UsageError("a budget of divergence needs text to measure on", mend="Name held-out text, or give max_mb.")
    fitter = _Fitter(Allocator(sensitivity), budget, out_file)
    try:
        with GgufQuantizer() as quantizer, storage_errors(out_file):
            while (allocation := fitter.next()) is not None:
                progress.note(allocation.summary())
                config = GgufQuantConfig(type=allocation.file_type, tensor_types=allocation.tensor_types)
                result = quantizer.quantize(
                    source, fitter.temporary, config, imatrix=imatrix, threads=threads, progress=progress
                )
                fitter.judge(allocation, result, measure)
    finally:
        fitter.temporary.unlink(missing_ok=True)
    return fitter.outcome()


class _Fitter:
    """What is tried next, and what is kept."""

    def __init__(self, allocator: Allocator, budget: Budget, out_file: Path) -> None:
        self.temporary = temporary_sibling(out_file)
        self._allocator = allocator
        self._budget = budget
        self._out_file = out_file
        self._builds: list[Build] = []
        self._tried: list[dict[str, str]] = []
        self._best: tuple[GgufQuantResult, Allocation] | None = None
        self._scale = 1.0
        self._excess_bytes = 0
        self._done = False

    def next(self) -> Allocation | None:
        """What to build; None when the best is found or three were built."""
        if self._done or len(self._builds) == MOST_BUILDS:
            return None
        budget = self._budget
        if budget.max_mean_kld is not None and self._best is None and len(self._builds) == MOST_BUILDS - 1:
            budget = Budget(max_mean_kld=budget.max_mean_kld * _AIM_OF_LAST)
        try:
            allocation = self._allocator.allocate(budget, scale=self._scale, reserve_bytes=self._excess_bytes)
        except UsageError:
            if self._best is None:
                raise
            return None
        if allocation.tensor_types in self._tried:
            return None
        self._tried.append(allocation.tensor_types)
        return allocation

    def judge(self, allocation: Allocation, result: GgufQuantResult, measure: Callable[[Path], float] | None) -> None:
        """Keep the build, or learn from it."""
        within = self._excess(result) <= 0
        self._excess_bytes += max(0, self._excess(result))
        measured = measure(self.temporary) if measure is not None and within else None
        if (most := self._budget.max_mean_kld) is not None and measured is not None:
            within = measured <= most
            self._scale *= measured / allocation.predicted_kld if allocation.predicted_kld > 0 else 1.0
            self._done = within and measured >= _ENOUGH * most
        else:
            self._done = within
        kept = within and (self._best is None or result.size_bytes < self._best[0].size_bytes)
        if kept:
            self.temporary.replace(self._out_file)
            self._best = result, allocation
        self._builds.append(
            Build(
                size_bytes=result.size_bytes,
                predicted_kld=allocation.predicted_kld,
                measured_kld=measured,
                kept=kept,
            )
        )

    def _excess(self, result: GgufQuantResult) -> int:
        """Bytes beyond the budget; negative where there is room."""
        limit_bytes = self._budget.limit_bytes(sum(one.num_values for one in result.tensors))
        if limit_bytes is None:
            return 0
        if self._budget.max_mb is not None:
            return result.size_bytes - limit_bytes
        return sum(one.size_bytes for one in result.tensors) - limit_bytes

    def outcome(self) -> BudgetedQuantization:
        """The best."""
        if self._best is None:
            tried = ", ".join(f"{one.size_bytes / 1e6:.3f} MB" for one in self._builds)
            measured = ", ".join(f"{one.measured_kld:.4g}" for one in self._builds if one.measured_kld is not None)
            raise VerificationError(
                f"{self._out_file}: {self._budget} is not kept after {len(self._builds)} builds: {tried}"
                + (f" with a mean KLD of {measured}" if measured else ""),
                mend="Allow a little more, or name more types to choose from.",
            )
        result, allocation = self._best
        result = replace(result, path=self._out_file)
        return BudgetedQuantization(result=result, allocation=allocation, builds=tuple(self._builds))
