"""Image classification: one label for a picture, of models whose files are as transformers or optimum write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, DataError, UnsupportedError
from edgesmith.tasks import scoring
from edgesmith.tasks.base import Arrays, Prediction
from edgesmith.tasks.folder import read_json_object, read_task_json
from edgesmith.tasks.image_pixels import lookup_table, open_image, prepare_image
from edgesmith.tasks.image_settings import PREPROCESSOR_CONFIG, ImageSettings, read_image_settings

__all__ = ["ImageClassification", "Picture", "is_image_folder"]

Picture: TypeAlias = bytes | bytearray | memoryview
"""A picture's whole file."""

_ARCHITECTURE_ENDING = "ForImageClassification"


def is_image_folder(folder: Path) -> bool:
    """Whether a folder's model classifies pictures: its `task.json` says so, or else its other files.

    Raises:
        ArtifactError: A file is damaged.
    """
    stored = read_json_object(folder / "task.json", required=False)
    if "task" in stored:
        return bool(stored["task"] == ImageClassification.name)
    if not (folder / PREPROCESSOR_CONFIG).is_file():
        return False
    named = read_json_object(folder / "config.json", required=False).get("architectures")
    return isinstance(named, list) and any(str(name).endswith(_ARCHITECTURE_ENDING) for name in named)


class ImageClassification:
    """One of a fixed set of labels for each picture.

    It has the methods of `edgesmith.tasks.Task` by which a server answers; its rows are files and not texts, so the
    data files, recipes and measurements of those tasks are not for it.

    Attributes:
        name: As on the model hub.
        output_names: What the graph gives.
        output_kind: Logits.
        settings: How a picture becomes an array.
        labels: By index.
    """

    name: ClassVar[str] = "image-classification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    output_kind: ClassVar[Literal["logits"]] = "logits"

    def __init__(self, settings: ImageSettings, labels: Sequence[str], *, input_name: str = "pixel_values") -> None:
        self.settings = settings
        self.labels = tuple(labels)
        self._input_name = input_name
        self._table = lookup_table(settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read settings and labels from an artifact's `task.json`, or from a model's own files.

        Args:
            folder: Holds `preprocessor_config.json` and `config.json`, or a `task.json`.

        Raises:
            ArtifactError: A file is missing or damaged, or it is for another task.
            UnsupportedError: The model takes other pictures than coloured ones, or prepares them in an unknown way.
        """
        stored = read_task_json(folder, cls.name)
        if stored is None:
            return cls(read_image_settings(folder), _read_labels(folder / "config.json"))
        source = folder / "task.json"
        labels, input_name = stored.get("labels"), stored.get("input_name")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ArtifactError(f"{source}: `labels` is not a list of names")
        if not isinstance(input_name, str):
            raise ArtifactError(f"{source}: `input_name` is {input_name!r}, not a name")
        return cls(ImageSettings.from_json(stored.get("image"), source), labels, input_name=input_name)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Name of the array that `encode` returns."""
        return (self._input_name,)

    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`: all that `load` needs."""
        return {
            "schema_version": 1,
            "task": self.name,
            "labels": list(self.labels),
            "input_name": self._input_name,
            "image": self.settings.model_dump(mode="json"),
        }

    def encode(self, pictures: Sequence[Picture]) -> dict[str, NDArray[np.float32]]:
        """Turn pictures into the model's input.

        Args:
            pictures: Whole files: PNG, JPEG, WebP, GIF (its first picture) or BMP.

        Returns:
            float32 of shape [batch, 3, height, width].

        Raises:
            DataError: One cannot be read or is too large; of several, the message says which.
            MissingExtraError: Pillow is not installed.
        """
        arrays: list[NDArray[np.float32]] = []
        for index, picture in enumerate(pictures):
            try:
                arrays.append(prepare_image(open_image(picture), self.settings, self._table))
            except DataError as error:
                if len(pictures) == 1:
                    raise
                raise DataError(f"picture {index} of the batch: {error.message}", mend=error.mend) from error
        shapes = sorted({array.shape[1:] for array in arrays})
        if len(shapes) > 1:
            raise DataError(
                f"the pictures have {len(shapes)} different sizes after resizing: {shapes[0]}, {shapes[1]} …",
                mend="Send them one by one.",
            )
        return {self._input_name: np.stack(arrays)}

    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """The logits, float32 of shape [batch, num_labels]."""
        del arrays
        logits = np.asarray(outputs["logits"], np.float32)
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise ArtifactError(
                f"the model gives logits of shape {list(logits.shape)}, but there are {len(self.labels)} labels"
            )
        return logits

    def decode(self, outputs: Arrays, arrays: Arrays, pictures: Sequence[Picture]) -> list[Prediction]:
        """One prediction a picture: the likeliest label, its index, its score and all scores."""
        scores_NL = scoring.softmax(self.vectors(outputs, arrays))
        if len(scores_NL) != len(pictures):
            raise ValueError(f"{len(scores_NL)} rows of output for {len(pictures)} pictures")
        best = scores_NL.argmax(axis=1)
        return [
            {
                "label": self.labels[index],
                "index": int(index),
                "score": float(scores[index]),
                "scores": dict(zip(self.labels, map(float, scores), strict=True)),
            }
            for index, scores in zip(best, scores_NL, strict=True)
        ]


def _read_labels(path: Path) -> tuple[str, ...]:
    """The labels by index. ImageNet has two cranes: names that occur twice get their index behind them."""
    config: Mapping[str, Any] = read_json_object(path)
    if config.get("num_channels", 3) != 3:
        raise UnsupportedError(
            f"{path}: takes pictures of {config['num_channels']!r} channels; known are those of 3",
            mend="Send the prepared picture as a tensor.",
        )
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        num_labels = config.get("num_labels", 2)
        if type(num_labels) is not int or not 1 <= num_labels <= 1 << 20:
            raise ArtifactError(f"{path}: num_labels is {num_labels!r}")
        named = {str(index): f"LABEL_{index}" for index in range(num_labels)}
    if sorted(named) != sorted(map(str, range(len(named)))):
        raise ArtifactError(
            f"{path}: the indices of id2label are not 0 to {len(named) - 1}",
            mend="Number the labels from 0 without gaps, as the rows of the classifier are.",
        )
    labels = [str(named[str(index)]) for index in range(len(named))]
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return tuple(label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels))
