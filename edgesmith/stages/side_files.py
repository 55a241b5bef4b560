"""What travels with a graph: tokenizer, labels and settings, and golden vectors made by the graph itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.artifact import SIDE_FILES, Artifact, FileEntry, Kind, Manifest, Signature, open_artifact
from edgesmith.files import atomic_write, storage_errors
from edgesmith.progress import Progress
from edgesmith.stages.rows import Rows
from edgesmith.tasks import TEXT_GENERATION, Example, ImageClassification, Task, TextTask, load_task

__all__ = ["MODEL_FILE", "add_reference", "carry_files", "close_generator", "close_graph"]

MODEL_FILE = "model.onnx"
_NUM_GOLDEN = 4
_NOT_HASHED = "0" * 64  # files that were written a moment ago are hashed once, when the manifest is written
_GOLDEN_TOKENS = 64
_GOLDEN_BYTES = 1_000_000  # of pictures' pixels: they travel with every artifact
# How far another device may be from the outputs recorded here, as a share of the largest output. Integer kernels
# round alike on VNNI and Arm; x86 without VNNI saturates, is several times further off, and is to be noticed.
_GOLDEN_TOLERANCE = {"fp32": 1e-4, "int8": 0.03}


def carry_files(source: Path, folder: Path) -> None:
    """Copy what a runtime needs beside the graph."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            with storage_errors(folder / name):
                shutil.copyfile(source / name, folder / name)


def close_graph(folder: Path, *, task: Task, examples: Sequence[Example], precision: str) -> Signature:
    """Finish an ONNX folder: write `task.json` and the golden vectors, and read the signature off the engine.

    Args:
        folder: Holds `model.onnx`; is written to.
        task: Encodes the examples.
        examples: Real ones; the shortest few become golden vectors.
        precision: Decides the golden vectors' tolerance.

    Returns:
        What the engine takes and gives.
    """
    from serve.runtime import open_engine
    from serve.runtime.golden import write_golden

    atomic_write(folder / "task.json", json.dumps(task.runtime_config(), indent=1, ensure_ascii=False) + "\n")
    chosen = sorted(examples, key=lambda example: (len(example.text), example.text))[: _num_golden(task)]
    arrays = _short(task, folder).encode(chosen)
    engine = open_engine(open_artifact(folder / MODEL_FILE))
    try:
        outputs = engine.run(arrays)
        signature = engine.signature
    finally:
        engine.close()
    largest = max(float(np.abs(values).max()) for values in outputs.values())
    write_golden(
        folder,
        inputs=arrays,
        outputs=outputs,
        max_abs_difference=_GOLDEN_TOLERANCE[precision] * max(largest, 1e-3),
        texts=[(one.text, one.text_pair) if one.text_pair is not None else one.text for one in chosen],
    )
    return signature


def _short(task: Task, folder: Path) -> Task:
    """The task with texts cut to a few words, so that golden vectors are small."""
    if not isinstance(task, TextTask):
        return task
    return load_task(folder, task.name, max_length=min(_GOLDEN_TOKENS, task.max_length or _GOLDEN_TOKENS))


def _num_golden(task: Task) -> int:
    """How many rows become golden vectors: of large pictures fewer."""
    if not isinstance(task, ImageClassification):
        return _NUM_GOLDEN
    return max(1, min(_NUM_GOLDEN, _GOLDEN_BYTES // (4 * math.prod(task.pixel_shape))))


def add_reference(folder: Path, *, task: Task, rows: Rows, progress: Progress) -> None:
    """Describe what the graph is given and gives on real rows, so that a server notices when that changes.

    Args:
        folder: Holds `model.onnx`; gets `reference.json`.
        task: Encodes the rows.
        rows: Held-out ones, as they will be asked. With too few of them there is no reference, which is said.
        progress: Shows how far it is.
    """
    from serve.drift.making import MIN_ROWS, make_reference
    from serve.drift.reference import write_reference
    from serve.runtime import EngineOptions, choose_threads, open_engine

    examples = rows.read(task)
    if len(examples) < MIN_ROWS:
        progress.note(f"{len(examples)} rows are too few for a reference of drift ({MIN_ROWS}): none is written")
        return
    progress.note(f"reference for drift on {len(examples):,} rows")
    engine = open_engine(open_artifact(folder / MODEL_FILE), EngineOptions(threads=choose_threads()))
    try:
        write_reference(folder, make_reference(engine, task, examples))
    finally:
        engine.close()


def close_generator(model: Path, folder: Path, kind: Kind) -> None:
    """Finish the folder of a model that writes text: `task.json`, and a golden answer by the model itself.

    Args:
        model: What the engine opens: a file in the folder, or the folder.
        folder: Is written to.
        kind: Decides the engine.
    """
    from serve.runtime import open_generation_engine
    from serve.runtime.golden_generation import write_golden_generation

    atomic_write(folder / "task.json", json.dumps({"task": TEXT_GENERATION}, indent=1) + "\n")
    files = tuple(
        FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=_NOT_HASHED)
        for path in sorted(folder.iterdir())
    )
    just_made = Artifact(path=model, manifest=Manifest(kind=kind, step="found", files=files))
    engine = open_generation_engine(just_made)
    try:
        write_golden_generation(folder, engine)
    finally:
        engine.close()
