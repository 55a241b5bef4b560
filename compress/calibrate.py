"""Observing the tensors of an ONNX graph while real rows run through it.

Rows are streamed, and as many tensors are observed in a run as fit a memory budget: what is kept of each is one
histogram of constant size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from compress.histogram import Histogram, channel_peaks, observe
from edgesmith.errors import DataError
from edgesmith.progress import SILENT, Progress

__all__ = [
    "CalibrationError",
    "SpooledFeeds",
    "collect_channel_peaks",
    "collect_histograms",
    "observe_tensors",
    "spool",
]

T = TypeVar("T")

Feed = Mapping[str, NDArray[np.generic]]
_FLOAT_BYTES = 4


class CalibrationError(DataError):
    """The calibration rows are missing, do not fit the graph, or give values that are not finite."""


def collect_histograms(
    model: Path, names: Sequence[str], feeds: Iterable[Feed], *, memory_budget_bytes: int, progress: Progress = SILENT
) -> dict[str, Histogram]:
    """Count the values of some tensors of a graph while `feeds` run through it; see `observe_tensors`."""
    return observe_tensors(
        model, names, feeds, observe, memory_budget_bytes=memory_budget_bytes, label="calibrate", progress=progress
    )


def collect_channel_peaks(
    model: Path, names: Sequence[str], feeds: Iterable[Feed], *, memory_budget_bytes: int, progress: Progress = SILENT
) -> dict[str, NDArray[np.float32]]:
    """Find the largest absolute value in each entry of the last axis of some tensors; see `observe_tensors`."""
    return observe_tensors(
        model,
        names,
        feeds,
        channel_peaks,
        memory_budget_bytes=memory_budget_bytes,
        label="find outliers",
        progress=progress,
    )


def observe_tensors(
    model: Path,
    names: Sequence[str],
    feeds: Iterable[Feed],
    observer: Callable[[NDArray[np.float32], T | None], T],
    *,
    memory_budget_bytes: int,
    label: str,
    progress: Progress = SILENT,
) -> dict[str, T]:
    """Run `feeds` through a graph and show some of its tensors to an observer.

    Args:
        model: A float graph; its folder is not written to.
        names: Tensors to observe; each a float32 output of some node, or an input of the graph.
        feeds: One run's inputs each; iterated once. When one run cannot observe all tensors within the budget,
            they are kept in a temporary file and run again.
        observer: Takes a tensor and what it returned for the one before, `None` at first. A `ValueError` of its
            own is reported with the tensor and the row.
        memory_budget_bytes: Bound on the observed tensors of one run, by the sizes of the first.
        label: What the progress bar says.
        progress: Where to report.

    Returns:
        What the observer returned last, for each name.

    Raises:
        CalibrationError: There are no feeds, one does not fit the graph, or a tensor holds NaN or infinity.
    """
    stream = iter(feeds)
    first = next(stream, None)
    if first is None:
        raise CalibrationError("no calibration rows", mend="Give at least one row; 100 or more make good ranges.")
    session = _open(model, names, measure=True)
    sizes = _run(session, first, number=1)
    groups = _group(names, [int(size) * _FLOAT_BYTES for size in sizes], memory_budget_bytes)
    seen: dict[str, T] = {}
    with tempfile.TemporaryDirectory(prefix="edgesmith-calibrate-") as folder:
        source: Iterable[Feed] = chain([first], stream)
        if len(groups) > 1:
            source = spool(source, Path(folder))
        for number, group in enumerate(groups, 1):
            del session  # two at once would hold the weights twice
            session = _open(model, group)
            part = f"{label} {number}/{len(groups)}" if len(groups) > 1 else label
            for row, feed in enumerate(progress.track(source, part), 1):
                _observe_all_(seen, observer, dict(zip(group, _run(session, feed, number=row), strict=True)), row)
    return seen


def _observe_all_(
    seen: dict[str, T],
    observer: Callable[[NDArray[np.float32], T | None], T],
    arrays: Mapping[str, NDArray[np.generic]],
    row: int,
) -> None:
    for name, array in arrays.items():
        try:
            seen[name] = observer(np.asarray(array, dtype=np.float32), seen.get(name))
        except ValueError as error:
            raise CalibrationError(
                f"calibration input {row}: {name}: {error}",
                mend="Check that the float model gives finite outputs for this input.",
            ) from error


def _open(model: Path, names: Sequence[str], *, measure: bool = False) -> ort.InferenceSession:
    """Open the graph with nothing but `names` as outputs, or with their sizes."""
    proto = onnx.load(model, load_external_data=False)
    del proto.graph.output[:]
    for index, name in enumerate(names):
        output = name
        if measure:
            output = f"edgesmith_size_{index}"
            proto.graph.node.append(onnx.helper.make_node("Size", [name], [output]))
        kind = onnx.TensorProto.INT64 if measure else onnx.TensorProto.FLOAT
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
    options = ort.SessionOptions()
    # One thread: the order of sums, and with it the ranges, does not depend on the number of processors.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # gives memory back between runs
    options.log_severity_level = 3
    # Where external data is looked for when the graph comes as bytes.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, feed: Feed, *, number: int) -> list[NDArray[np.generic]]:
    wanted = [node.name for node in session.get_inputs()]
    missing = [name for name in wanted if name not in feed]
    if missing:
        raise CalibrationError(f"calibration input {number} lacks {missing}; it has {sorted(feed)}")
    try:
        return list(session.run(None, {name: np.asarray(feed[name]) for name in wanted}))
    except (ort.capi.onnxruntime_pybind11_state.InvalidArgument, RuntimeError) as error:
        raise CalibrationError(f"calibration input {number} does not fit the graph: {error}") from error


def _group(names: Sequence[str], sizes_bytes: Sequence[int], budget_bytes: int) -> list[list[str]]:
    """Divide `names`, in order, into groups within the budget; a tensor over the budget is a group alone."""
    groups: list[list[str]] = []
    used = 0
    for name, size in zip(names, sizes_bytes, strict=True):
        if not groups or used + size > budget_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


class SpooledFeeds:
    """Feeds kept in files; at any time one of them is in memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Feed]:
        for path in self._paths:
            with np.load(path, allow_pickle=False) as arrays:
                yield dict(arrays)


def spool(feeds: Iterable[Feed], folder: Path) -> SpooledFeeds:
    """Write feeds to `folder`, one file each, so that a stream can be iterated more than once."""
    paths = []
    for number, feed in enumerate(feeds):
        path = folder / f"{number}.npz"
        np.savez(path, **{name: np.asarray(array) for name, array in feed.items()})  # type: ignore[arg-type]
        paths.append(path)
    return SpooledFeeds(paths)
