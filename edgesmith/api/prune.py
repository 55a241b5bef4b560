"""Pruning: checkpoint in, checkpoint with fewer weights out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import PruneOptions

__all__ = ["prune", "prune_options"]


def prune(
    checkpoint: Path,
    *,
    out: Path,
    options: PruneOptions,
    data: Path | None = None,
    num_samples: int | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Take out what matters least: single weights, which become zero, or whole structures, which leave.

    Training what is left to do as the model before did is `edgesmith.api.distill`'s, with the result as its student.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact, not quantized.
        out: Folder to write.
        options: Method, and how much; see `prune_options`.
        data: Calibration rows, of a language model a text; needed by all that does not go by magnitude alone.
        num_samples: Rows of it, 128 if left out, or windows of 512 tokens, 40 if left out.
        task: Guessed from config.json if left out.
        columns: The task's column → the file's.
        threads: Of torch.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Returns:
        The checkpoint, and what its `pruning.json` says; of single weights with the memory that it took.

    Raises:
        UsageError: there is nothing to choose by, or what is asked for cannot be had.
        UnsupportedError: an architecture that cannot be pruned in this way; the message says which part.
        CheckpointError: the checkpoint is damaged or unsafe.
        DataError: a row does not fit the task.
    """
    from compress.prune.weights.result import PRUNING_FILE
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.prune import PruneStage

    if data is not None and not data.is_file():
        raise UsageError(f"{data}: no such data file", mend="Check the path.")
    memory: dict[str, int] = {}

    def tell(result: Any) -> None:
        names = ("peak_memory_bytes", "peak_memory_added_bytes")
        memory.update({name: getattr(result, name) for name in names if hasattr(result, name)})

    stage = PruneStage(
        source=open_artifact(checkpoint, kinds=("checkpoint",)),
        prune=options,
        data=data,
        num_samples=num_samples,
        columns=columns or {},
        task=task,
        seed=seed,
        threads=threads,
        tell=tell,
    )
    artifact, facts = make_into(
        stage, out, lambda made: json.loads((made.path / PRUNING_FILE).read_text(encoding="utf-8")), progress
    )
    return artifact, {**facts, **memory}


def prune_options(**given: Any) -> PruneOptions:
    """Make a prune step's options of those that were given; None counts as not given.

    Raises:
        UsageError: one is out of its range, or means nothing to the method.
    """
    from pydantic import ValidationError

    from edgesmith.recipe import PruneOptions

    try:
        return PruneOptions(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
        raise UsageError("; ".join(dict.fromkeys(faults)), mend="See edgesmith prune --help.") from error


def _describe(fault: Any) -> str:
    where = str(fault["loc"][0]) if fault["loc"] else ""
    said = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] != "value_error" and not isinstance(fault["input"], dict | list):
        said += f", not {fault['input']!r}"
    return f"{where.replace('_', '-')}: {said}" if where else said
