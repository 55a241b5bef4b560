"""The real rows that a stage looks at: from the user's file, or the packaged examples where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from edgesmith.data import data_digest
from edgesmith.files import sha256_text
from edgesmith.named_files import named_files_digest
from edgesmith.tasks import Example, Task
from edgesmith.tasks.base import sample_texts

__all__ = ["Rows"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows of which file; part of a stage's key."""

    path: Path | None = None
    """The data file; None for the task's packaged examples."""
    num: int | None = None
    """How many are drawn; None for all."""
    seed: int = 0
    """Of the draw."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The task's column → the file's."""

    @property
    def digest(self) -> str:
        """Of the file's content and format, and of the pictures that its rows name."""
        if self.path is None:
            return "sha256:" + sha256_text(*sample_texts())
        own = f"sha256:{data_digest(self.path)}{self.path.suffix.lower()}"  # which decides how it is read
        pictures = named_files_digest(self.path, self.columns.get("image", "image"))
        return own if pictures is None else f"{own}+{pictures}"

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides which rows are read, for keys and manifests."""
        return {"num": self.num, "seed": self.seed, "columns": dict(self.columns)}

    @property
    def description(self) -> str:
        """For messages."""
        return f"{self.num or 'all'} rows of {self.path}" if self.path else "packaged examples"

    def read(self, task: Task, *, labelled: bool = False) -> list[Example]:
        """Read and parse them.

        Raises:
            DataError: a row does not fit the task.
        """
        if self.path is None:
            return task.sample_examples()[: self.num]
        return task.read_examples(self.path, num=self.num, seed=self.seed, labelled=labelled)
