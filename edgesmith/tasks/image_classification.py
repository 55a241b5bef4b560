"""Image classification: one label for a picture, of models whose files are as transformers or optimum write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError, UnsupportedError, UsageError
from edgesmith.files import storage_errors
from edgesmith.named_files import path_of_name
from edgesmith.tasks.base import Array, Arrays, Example, Metric, Picture, Prediction, Task, TaskInput
from edgesmith.tasks.classes import CLASS_METRICS, class_logits, class_predictions, read_class, read_class_names
from edgesmith.tasks.columns import read_text
from edgesmith.tasks.folder import checked_columns, read_task_json
from edgesmith.tasks.image_pixels import MAX_IMAGE_BYTES, lookup_table, open_image, prepare_image
from edgesmith.tasks.image_settings import ImageSettings, read_image_settings

__all__ = ["ImageClassification", "Picture"]


class ImageClassification(Task):
    """One of a fixed set of labels for each picture.

    A row of a data file names its picture by a path relative to that file: `{"image": "test/7.png", "label": "Bag"}`.

    Attributes:
        settings: How a picture becomes an array.
        labels: By index.
    """

    name: ClassVar[str] = "image-classification"
    model_class: ClassVar[str] = "AutoModelForImageClassification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    output_kind: ClassVar[Literal["logits", "embedding"]] = "logits"
    column_names: ClassVar[tuple[str, ...]] = ("image", "label")
    default_metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = CLASS_METRICS

    def __init__(
        self,
        settings: ImageSettings,
        labels: Sequence[str],
        *,
        input_name: str = "pixel_values",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = settings
        self.labels = tuple(labels)
        self._input_name = input_name
        self._columns = checked_columns(self.name, self.column_names, columns)
        self._table = lookup_table(settings)

    @classmethod
    def load(cls, folder: Path, *, max_length: int | None = None, columns: Mapping[str, str] | None = None) -> Self:
        """Read settings and labels from an artifact's `task.json`, or from a model's own files; see `Task.load`.

        Args:
            folder: Holds `preprocessor_config.json` and `config.json`, or a `task.json`.
            max_length: Must be left out: pictures have no length.
            columns: Where a row has what, `{"image": "file"}`.

        Raises:
            ArtifactError: A file is missing or damaged, or it is for another task.
            UnsupportedError: The model takes other pictures than grey or coloured ones, or prepares them in an unknown
                way.
            UsageError: There is a `max_length`, or `columns` names an unknown column.
        """
        if max_length is not None:
            raise UsageError(f"max_length is {max_length}, but pictures have no length", mend="Leave max_length out.")
        stored = read_task_json(folder, cls.name)
        if stored is None:
            return cls(read_image_settings(folder), _read_labels(folder / "config.json"), columns=columns)
        source = folder / "task.json"
        labels, input_name = stored.get("labels"), stored.get("input_name")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ArtifactError(f"{source}: `labels` is not a list of names")
        if not isinstance(input_name, str):
            raise ArtifactError(f"{source}: `input_name` is {input_name!r}, not a name")
        settings = ImageSettings.from_json(stored.get("image"), source)
        return cls(settings, labels, input_name=input_name, columns=columns)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Name of the array that `encode` returns."""
        return (self._input_name,)

    @property
    def max_length(self) -> int | None:
        """None: pictures are no sequences."""
        return None

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every encoded picture.

        Raises:
            UnsupportedError: Height and width are each picture's own.
        """
        edges = self.settings.edges
        if edges is None:
            raise UnsupportedError(
                "the image processor keeps each picture's proportions, so that they have no common size",
                mend="Give preprocessor_config.json a `size` of height and width, or a `crop_size`.",
            )
        return self.settings.num_channels, *edges

    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`: all that `load` needs."""
        return {
            "schema_version": 1,
            "task": self.name,
            "labels": list(self.labels),
            "input_name": self._input_name,
            "image": self.settings.model_dump(mode="json"),
        }

    def parse(self, row: Row, *, labelled: bool = True) -> Example:
        """Turn a row into an example that names its picture; see `Task.parse`. It is opened when it is encoded."""
        name = read_text(row, self._columns["image"], "image")
        target = read_class(row, self._columns["label"], self.labels) if labelled else None
        return Example(name, target=target, line=row.line, image=_picture_path(row, name))

    def encode(self, examples: Sequence[TaskInput]) -> dict[str, Array]:
        """Turn pictures into the model's input.

        Args:
            examples: Parsed rows, or pictures' whole files: PNG, JPEG, WebP, GIF (its first picture) or BMP.

        Returns:
            float32 of shape [batch, channels, height, width].

        Raises:
            DataError: One cannot be read or is too large; of several, the message says which.
            MissingExtraError: Pillow is not installed.
        """
        arrays: list[NDArray[np.float32]] = []
        for index, given in enumerate(examples):
            name, picture = _content(given)
            try:
                arrays.append(prepare_image(open_image(picture), self.settings, self._table))
            except DataError as error:
                if len(examples) == 1 and not name:
                    raise
                which = name or f"picture {index} of the batch"
                raise DataError(f"{which}: {error.message}", mend=error.mend) from error
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
        return class_logits(outputs, self.labels)

    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """One prediction a picture: the likeliest label, its index, its score and all scores."""
        return class_predictions(self.vectors(outputs, arrays), self.labels, len(examples))

    def sample_examples(self) -> list[Example]:
        """Real pictures of clothing, small and grey, for verification where the user gives none.

        Twelve of Fashion-MNIST's test pictures (MIT licence).
        """
        folder = resources.files("edgesmith.tasks").joinpath("sample_pictures")
        files = sorted((file for file in folder.iterdir() if file.name.endswith(".png")), key=lambda file: file.name)
        return [Example(file.name, image=file.read_bytes()) for file in files]

    def read_argument(self, argument: str) -> TaskInput:
        """The picture in the file of that name; see `Task.read_argument`."""
        path = Path(argument)
        if not path.is_file():
            raise UsageError(f"{argument}: no such picture", mend="Give a path of a PNG, JPEG, WebP, GIF or BMP file.")
        return Example(argument, image=path)


def _picture_path(row: Row, name: str) -> Path:
    path = path_of_name(row.path, name)
    if path is None:
        raise DataError(
            f"{row.place}: the picture {name!r} is not named by a path below the data file's folder",
            mend="Put the pictures into that folder or one below it, and name them from there: test/7.png.",
        )
    if not path.is_file():
        raise DataError(f"{row.place}: there is no picture {path}", mend="Paths are relative to the data file.")
    return path


def _content(given: TaskInput) -> tuple[str, Picture]:
    """What a picture is called, if anything, and its file's bytes."""
    match given:
        case Example(image=Path() as path):
            with storage_errors(path), path.open("rb") as file:
                return str(path), file.read(MAX_IMAGE_BYTES + 1)  # one more shows that it is too large
        case Example(image=bytes() | bytearray() | memoryview() as content):
            return given.text, content
        case bytes() | bytearray() | memoryview():
            return "", given
        case _:
            raise UsageError("a text was given to a task on pictures", mend="Give a picture's file.")


def _read_labels(path: Path) -> tuple[str, ...]:
    """The labels by index. ImageNet has two cranes: names that occur twice get their index behind them."""
    labels = read_class_names(path, ImageClassification.name)
    counts = Counter(labels)
    return tuple(label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels))
