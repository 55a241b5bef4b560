"""The reference that drift is measured against: how an artifact's own calibration rows look to it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError
from edgesmith.files import atomic_write, storage_errors
from serve.drift.features import NUM_BUCKETS

__all__ = ["REFERENCE_FILE", "Feature", "Reference", "num_counted_rows", "read_reference", "write_reference"]

_LOG = logging.getLogger(__name__)
REFERENCE_FILE = "reference.json"
_MAX_BYTES = 64 << 10
_MAX_COUNT = 10**9

Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


def num_counted_rows(num_rows: int) -> int:
    """Rows whose values are counted where the others choose which values are."""
    return num_rows - num_rows // 2


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Feature(_Strict):
    """The reference's rows, counted by the value of one feature; half of them, where the others chose the bins.

    A value v is in bin i where edges[i - 1] < v <= edges[i]; without edges it is one of `values`, or in the last bin.
    """

    name: Name
    edges: Annotated[tuple[Finite, ...], Field(strict=False, max_length=64)] = ()
    values: Annotated[tuple[int, ...], Field(strict=False, max_length=64)] = ()
    labels: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(strict=False, max_length=64)] = ()
    """Names of `values`, where they have any."""
    counts: Annotated[tuple[Count, ...], Field(strict=False, min_length=2, max_length=65)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.edges) == bool(self.values):
            raise ValueError(f"{self.name} has both edges and values, or neither")
        if len(self.counts) != len(self.edges or self.values) + 1:
            raise ValueError(f"{self.name} has {len(self.counts)} counts for {len(self.edges or self.values)} bounds")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"the edges of {self.name} do not ascend")
        if len(set(self.values)) != len(self.values) or (self.labels and len(self.labels) != len(self.values)):
            raise ValueError(f"{self.name} has a value twice, or not a label for each")
        return self

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring bins are alike."""
        return bool(self.edges)

    def bin_of(self, value: float) -> int:
        """The bin of a value."""
        if self.edges:
            return int(np.searchsorted(self.edges, value, side="left"))
        return self.values.index(int(value)) if value in self.values else len(self.values)

    @property
    def bin_names(self) -> list[str]:
        """For people."""
        if self.edges:
            return [f"≤ {edge:g}" for edge in self.edges] + [f"> {self.edges[-1]:g}"]
        names = list(self.labels) if self.labels else [f"group {value}" for value in self.values]
        return [*names, "other"]


class Reference(_Strict):
    """What a model's calibration rows look like, as it is given them and as it answers them."""

    schema_version: Literal[1, 2] = 2
    output: Literal["logits", "embedding", "text"]
    """What is looked at beside the input; of a model that writes text, nothing."""
    num_rows: Annotated[int, Field(ge=2, le=_MAX_COUNT)]
    ignored_tokens: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, max_length=1024)] = ()
    unknown_id: Annotated[int, Field(ge=0)] | None = None
    bucket_counts: Annotated[tuple[Count, ...], Field(strict=False, min_length=NUM_BUCKETS, max_length=NUM_BUCKETS)]
    """Tokens by bucket, of the half of the rows that is not counted otherwise."""
    features: Annotated[tuple[Feature, ...], Field(strict=False, min_length=1, max_length=32)]
    skipped: Annotated[tuple[Name, ...], Field(strict=False, max_length=32)] = ()
    """Features that say nothing of these rows, because all of them have the same value."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("a feature is there twice")
        for feature in self.features:
            if sum(feature.counts) not in (self.num_rows, num_counted_rows(self.num_rows)):
                raise ValueError(f"{feature.name} counts {sum(feature.counts)} rows of {self.num_rows}")
        return self

    @property
    def ignored(self) -> NDArray[np.int64]:
        """`ignored_tokens`, as an array."""
        return np.array(self.ignored_tokens, np.int64)


def write_reference(folder: Path, reference: Reference) -> None:
    """Write `reference.json` into an artifact's folder, before its manifest; the same bytes for the same reference.

    Raises:
        StorageError: The folder cannot be written.
    """
    atomic_write(folder / REFERENCE_FILE, reference.model_dump_json() + "\n")


def read_reference(artifact: Artifact) -> Reference | None:
    """The reference of an artifact; None if it has none, or one whose alarms would be false.

    Raises:
        ArtifactError: It is damaged, or larger than a reference can be.
    """
    if not any(entry.path == REFERENCE_FILE for entry in artifact.manifest.files):
        return None
    path = artifact.file(REFERENCE_FILE)
    with storage_errors(path):
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ArtifactError(f"{path}: is {size:,} bytes; a reference has at most {_MAX_BYTES:,}")
        text = path.read_bytes()
    try:
        found = Reference.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: is damaged at {where or 'its start'}: {first['msg']}", mend="Make the artifact again."
        ) from error
    if found.schema_version == 1:  # what is counted was chosen by the rows that counted it
        _LOG.warning("%s is of an older version and not used; make the artifact again to watch drift", path)
        return None
    return found
