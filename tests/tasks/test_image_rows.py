"""Rows of a data file name pictures: parsed, safely found, hashed into keys, and encoded as transformers does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgesmith.data import Row
from edgesmith.errors import DataError, EdgesmithError, UsageError
from edgesmith.named_files import named_files_digest
from edgesmith.stages.rows import Rows
from edgesmith.tasks import Example, ImageClassification, TextClassification
from tests.tasks.test_image_classification import file_of, photo, write_folder

PIL_Image = pytest.importorskip("PIL.Image")
GREY = {"size": 12, "image_mean": [0.3], "image_std": [0.25]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures and the rows that name them."""
    (tmp_path / "pictures").mkdir()
    rows = []
    for index, label in enumerate(("red", "green", 2)):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(file_of(photo(9, 7, seed=index)))
        rows.append(json.dumps({"image": f"pictures/{index}.png", "label": label}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def task(tmp_path: Path) -> ImageClassification:
    return ImageClassification.load(write_folder(tmp_path / "model", {"size": 8}))


def test_rows_are_the_pictures_that_they_name(data: Path, task: ImageClassification) -> None:
    examples = task.read_examples(data)
    assert [example.target for example in examples] == [0, 1, 2]
    assert examples[1].text == "pictures/1.png"
    contents = [(data.parent / "pictures" / f"{index}.png").read_bytes() for index in range(3)]
    np.testing.assert_array_equal(
        task.encode(examples)["pixel_values"],
        task.encode(contents)["pixel_values"],
    )


def test_columns_can_be_mapped_and_unknown_ones_are_refused(tmp_path: Path, data: Path) -> None:
    folder = write_folder(tmp_path / "model", {"size": 8})
    task = ImageClassification.load(folder, columns={"image": "file"})
    row = Row(data, 1, {"file": "pictures/0.png"})
    assert task.parse(row, labelled=False).image == data.parent / "pictures/0.png"
    with pytest.raises(UsageError, match="image-classification has no column 'text'"):
        ImageClassification.load(folder, columns={"text": "file"})
    with pytest.raises(UsageError, match="no length"):
        ImageClassification.load(folder, max_length=128)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../rows.jsonl", "pictures/../../x", "", "a\0b", "pictures", "none.png"]
)
def test_a_name_that_leads_elsewhere_or_nowhere_is_refused_with_its_line(
    name: str, data: Path, task: ImageClassification
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7"):
        task.parse(Row(data, 7, {"image": name, "label": "red"}))


def test_a_damaged_picture_is_named_by_its_path(data: Path, task: ImageClassification) -> None:
    (data.parent / "pictures/1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"pictures/1\.png: the picture cannot be read"):
        task.encode(task.read_examples(data))


def test_a_changed_picture_changes_the_key_and_a_copy_does_not(data: Path, tmp_path: Path) -> None:
    before = Rows(path=data).digest
    picture = data.parent / "pictures/2.png"
    content, state = picture.read_bytes(), picture.stat()
    picture.write_bytes(file_of(photo(9, 7, seed=9)))
    changed = Rows(path=data).digest
    picture.write_bytes(content)
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert changed != before == Rows(path=data).digest
    picture.unlink()
    assert Rows(path=data).digest not in (before, changed)


@pytest.mark.parametrize("is_absolute", [True, False])
def test_what_lies_outside_the_data_files_folder_is_not_even_hashed(
    is_absolute: bool, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "private.txt"
    name = str(other) if is_absolute else os.path.relpath(other, data.parent)
    data.write_text(json.dumps({"image": name, "label": "red"}) + "\n")
    before = named_files_digest(data, "image")
    other.write_text("private")
    assert named_files_digest(data, "image") == before


def test_rows_of_texts_are_hashed_as_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "image": 3}\n')
    assert named_files_digest(path, "image") is None
    assert "+" not in Rows(path=path).digest


def test_a_grey_model_takes_grey_arrays_as_transformers_makes_them(tmp_path: Path) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    task = ImageClassification.load(write_folder(tmp_path, GREY, num_channels=1))
    grey = photo(9, 7).convert("L")
    wanted = ViTImageProcessorPil(**GREY)(grey, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(task.encode([file_of(grey)])["pixel_values"], wanted)
    assert task.pixel_shape == wanted.shape[1:] == (1, 12, 12)


def test_sample_pictures_are_small_real_and_encoded(task: ImageClassification) -> None:
    examples = task.sample_examples()
    assert len({example.image for example in examples}) == len(examples) >= 8
    assert task.encode(examples)["pixel_values"].shape == (len(examples), *task.pixel_shape)


def test_texts_and_pictures_are_not_mistaken_for_each_other(
    task: ImageClassification, classifier_folder: Path, data: Path
) -> None:
    with pytest.raises(EdgesmithError, match="a text was given"):
        task.encode(["a text"])
    texts = TextClassification.load(classifier_folder)
    for picture in (b"bytes", Example("name", image=data)):
        with pytest.raises(EdgesmithError, match="a picture was given"):
            texts.encode([picture])
    assert isinstance(task.read_argument(str(data.parent / "pictures/0.png")), Example)
    with pytest.raises(UsageError, match="no such picture"):
        task.read_argument("none.png")
