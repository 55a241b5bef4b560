"""How large an artifact is and what fills it; how long it takes to start and how much memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.gates.verdict import show
from bench.report.blocks import Block, Cell, Figure, Mono, Section, Table, Text, keep_filled
from bench.report.data import ReleaseReport, TargetReport
from bench.report.figures import MB, count, meanwhile, show_ms, show_short, times
from bench.report.plots import NUM_COLOURS, Part, plot_stacks

if TYPE_CHECKING:
    from bench.scenarios.start import Start
    from bench.sizes.tensors import TensorSizes

__all__ = ["show_size", "show_sizes", "show_start"]

_STEPS = ("startup_ms", "verify_ms", "load_ms", "first_run_ms")
_STEP_NAMES = ("interpreter and imports", "check of the files", "opening the model", "first answer")
_COLOURS = (
    ("embeddings, int", 0),
    ("embeddings, uint", 0),
    ("embeddings", 4),
    ("attention", 1),
    ("feed-forward", 2),
    ("output layer", 0),
    ("scales", 3),
    ("int", 1),
    ("weights", 2),
    ("model", 2),
    ("tokenizer", 5),
    ("metadata", 5),
    ("graph", 6),
)
_OTHERS = NUM_COLOURS - 1
"""Colour of what is too little for one of its own."""
_MAX_OPEN = 12
"""Rows, from which on a table is opened by the reader."""
_MIN_SHARE = 0.01
"""Of a model's files; below it a kind is drawn with the others."""


def show_sizes(report: ReleaseReport) -> list[Block]:
    """All models' files by kind of tensor, baselines first; nothing where they were not looked into."""
    bars: dict[str, tuple[str, TensorSizes]] = {}
    for target in report.targets:
        if target.baseline is not None and target.baseline_tensors is not None:
            bars.setdefault(target.baseline.digest, (target.baseline.name, target.baseline_tensors))
    for target in report.targets:
        if target.tensors is not None:
            bars[target.artifact.digest] = (target.name, target.tensors)
    if not bars:
        return []
    kinds = _all_kinds([sizes for _, sizes in bars.values()])
    colours = _colours(_large([sizes for _, sizes in bars.values()], kinds))
    stacks = [(name, _stack(sizes, colours)) for name, sizes in bars.values()]
    svg = plot_stacks("Bytes by kind", stacks, lambda value: f"{show_short(value)} MB", axis="MB of 1,000,000 bytes")
    rows: list[tuple[Cell | None, ...]] = [
        (kind, *(_megabytes(sizes.kinds.get(kind)) for _, sizes in bars.values())) for kind in kinds
    ]
    rows.append(("all files", *(_megabytes(sizes.total_bytes) for _, sizes in bars.values())))
    summary = f"What the files hold: {len(kinds)} kinds of bytes" if len(kinds) > _MAX_OPEN else ""
    table = keep_filled(("what the files hold, MB", *(name for name, _ in bars.values())), rows, summary=summary)
    return [Figure(caption="What the files hold.", svg=svg), *([table] if table else [])]


def _megabytes(num_bytes: int | None) -> str | None:
    return None if num_bytes is None else f"{num_bytes / MB:,.3f}"


def _all_kinds(sizes: Sequence[TensorSizes]) -> list[str]:
    """The kinds of all models, those of the same sort together, in the order that each model has."""
    kinds: list[str] = []
    for one in sizes:
        place = 0
        for kind in one.kinds:
            if kind in kinds:
                place = kinds.index(kind) + 1
            else:
                kinds.insert(place, kind)
                place += 1
    return kinds


def _large(sizes: Sequence[TensorSizes], kinds: Sequence[str]) -> list[str]:
    """The kinds that are seen in a bar, at most one for each colour but the last, in their order."""
    share = {kind: max(one.kinds.get(kind, 0) / max(1, sum(one.kinds.values())) for one in sizes) for kind in kinds}
    seen = sorted((kind for kind in share if share[kind] >= _MIN_SHARE), key=lambda kind: -share[kind])[:_OTHERS]
    return [kind for kind in kinds if kind in seen]


def _colours(kinds: Sequence[str]) -> Mapping[str, int]:
    """A colour of its own for each: embeddings, weights, tokenizer in those that differ most."""
    picked: dict[str, int] = {}
    for kind in kinds:
        wanted = next((colour for word, colour in _COLOURS if word in kind), 0)
        free = [colour for colour in (wanted, *range(_OTHERS)) if colour not in picked.values()]
        picked[kind] = free[0]
    return picked


def _stack(sizes: TensorSizes, colours: Mapping[str, int]) -> list[Part]:
    """A bar of the large kinds, and one part of what is left."""
    parts = [
        Part(name=kind, value=sizes.kinds[kind] / MB, colour=colour)
        for kind, colour in colours.items()
        if kind in sizes.kinds
    ]
    left = sum(num_bytes for kind, num_bytes in sizes.kinds.items() if kind not in colours) / MB
    return [*parts, *([Part(name="other", value=left, colour=_OTHERS)] if left else [])]


def show_size(target: TargetReport) -> Section | None:
    """Files and download beside the baseline's, and the largest tensors."""
    rows: list[tuple[Cell | None, ...]] = []
    theirs, ours = target.baseline, target.artifact
    for name, before, after in (
        ("model file", theirs.model_bytes if theirs else None, ours.model_bytes),
        ("all files", theirs.total_bytes if theirs else None, ours.total_bytes),
        (
            "download, one compressed stream",
            target.baseline_footprint.download_bytes if target.baseline_footprint else None,
            target.footprint.download_bytes if target.footprint else None,
        ),
    ):
        if after is not None:
            shown = None if before is None else f"{show(before / MB)} MB"
            rows.append(
                (name, shown, f"{show(after / MB)} MB", f"{after:,}", times(before, after, "smaller", "larger"))
            )
    table = keep_filled(("size", "baseline", "artifact", "bytes", "artifact is"), rows)
    blocks: list[Block] = [table] if table else []
    if target.footprint is not None:
        blocks.append(Text(f"Download: all files as one stream, {target.footprint.compression}."))
    if target.tensors is not None and target.tensors.largest:
        blocks.append(
            Table(
                head=("largest tensors", "kind", "shape", "MB"),
                rows=tuple(
                    (
                        Mono(one.name),
                        one.kind,
                        " × ".join(f"{axis:,}" for axis in one.shape),
                        f"{one.num_bytes / MB:,.3f}",
                    )
                    for one in target.tensors.largest[:8]
                ),
                num_text=2,
            )
        )
    return Section(title="Size", level=3, blocks=tuple(blocks)) if blocks else None


def show_start(target: TargetReport) -> Section | None:
    """What happens from the start of a process to its first answer, and the memory that it takes."""
    if not target.starts:
        return None
    rows: list[tuple[Cell | None, ...]] = []
    bars = []
    for ours in target.starts:
        theirs = next((o for o in target.baseline_starts if o.machine.name == ours.machine.name), None)
        for name, one in (("baseline", theirs), (target.name, ours)):
            if one is not None:
                rows.append((name, *_start_cells(one)))
                bars.append((name, _start_parts(one)))
    heads = ("fresh process", *_STEP_NAMES, "first answer after", "peak memory", "without mapped files")
    table = keep_filled(heads, rows, is_stacked=True)
    one = target.starts[0]
    where = ", ".join(dict.fromkeys(start.machine.name for start in target.starts))
    processes = count(one.num_starts, "fresh process", "fresh processes")
    said = (
        f"{one.engine}, {count(one.threads, 'thread')}; {where}; medians of {processes}, "
        f"memory the largest seen; {_cache(target.starts)}.{meanwhile(one.conditions)}"
    )
    svg = plot_stacks(
        "Time until the first answer", bars, lambda value: f"{value:,.0f} ms", axis="ms from the start of the process"
    )
    figure = Figure(caption="From the start of a process to its first answer.", svg=svg)
    blocks: list[Block] = [Text(said), *([table] if table else []), figure]
    return Section(title="Start and memory", level=3, blocks=tuple(blocks))


def _cache(starts: Sequence[Start]) -> str:
    """Where the processes read from."""
    if all(one.is_cache_cold for one in starts):
        return "the artifact's files came from the disk, interpreter and libraries from the page cache"
    return "the artifact's files may have been in the page cache: a first start after boot takes longer"


def _start_cells(one: Start) -> tuple[str | None, ...]:
    steps = (show_ms(float(getattr(one, step))) for step in _STEPS)
    private = None if one.private_bytes is None else f"{one.private_bytes / MB:,.0f} MB"
    return (*steps, show_ms(one.cold_start_ms), f"{one.peak_rss_bytes / MB:,.0f} MB", private)


def _start_parts(one: Start) -> list[Part]:
    named = zip(_STEPS, _STEP_NAMES, strict=True)
    return [
        Part(name=name, value=float(getattr(one, step)), colour=colour) for colour, (step, name) in enumerate(named)
    ]
