"""Pictures become the arrays that transformers' own processors make of them, and hostile ones become errors."""

from __future__ import annotations

import importlib
import io
import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, DataError, UnsupportedError
from edgesmith.tasks import ImageClassification, TextClassification, load_task
from edgesmith.tasks.image_pixels import FORMATS, MAX_IMAGE_BYTES, MAX_PIXELS, open_image, sniff_image

PIL_Image = pytest.importorskip("PIL.Image")
FAMILIES = {
    "Beit": "beit", "Bit": "bit", "CLIP": "clip", "ConvNext": "convnext", "DeiT": "deit",
    "EfficientNet": "efficientnet", "Levit": "levit", "MobileNetV1": "mobilenet_v1", "MobileNetV2": "mobilenet_v2",
    "MobileViT": "mobilevit", "PoolFormer": "poolformer", "Pvt": "pvt", "Segformer": "segformer", "Siglip": "siglip",
    "ViT": "vit",
}  # fmt: skip
SIZES = ((90, 120), (131, 57), (256, 31))
LABELS = {"0": "red", "1": "green", "2": "blue"}


def photo(height: int, width: int, seed: int = 0) -> Any:
    """Something between a landscape and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + k) + np.cos(y / (11 + k)) for k in range(3)], axis=-1)
    noise = rng.normal(scale=0.4, size=(height, width, 3))
    return PIL_Image.fromarray(np.clip((waves + noise + 2.2) * 58, 0, 255).astype(np.uint8))


def file_of(image: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_folder(folder: Path, processor: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "id2label": LABELS} | config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reference_of(name: str, **options: Any) -> Any:
    module = importlib.import_module(f"transformers.models.{FAMILIES[name]}.image_processing_pil_{FAMILIES[name]}")
    return getattr(module, f"{name}ImageProcessorPil")(**options)


def encoded(folder: Path, image: Any) -> NDArray[np.float32]:
    return ImageClassification.load(folder).encode([file_of(image)])["pixel_values"][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_arrays_are_those_of_transformers_to_the_last_bit(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    processor = reference_of(name)
    processor.save_pretrained(tmp_path)
    write_folder(tmp_path)
    for size in SIZES:
        wanted = processor(photo(*size), return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(encoded(tmp_path, photo(*size)), wanted)


@pytest.mark.parametrize("name", ["ViT", "ConvNext", "Bit", "MobileViT", "PoolFormer"])
def test_a_file_that_only_names_its_processor_means_its_defaults(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_folder(tmp_path, {"feature_extractor_type": f"{name}FeatureExtractor"})
    wanted = reference_of(name)(photo(90, 120), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(encoded(tmp_path, photo(90, 120)), wanted)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ConvNext", {"size": {"shortest_edge": 64}}),
        ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.95, "resample": 2}),
        ("ConvNext", {"size": 64}),
        ("ViT", {"size": 48, "do_normalize": False}),
        ("ViT", {"size": {"height": 20, "width": 40}, "do_rescale": False}),
        ("ViT", {"size": {"shortest_edge": 40, "longest_edge": 60}, "resample": 0}),
        ("Bit", {"size": {"shortest_edge": 33}, "crop_size": 65}),
        ("Bit", {"do_resize": False, "crop_size": {"height": 51, "width": 200}}),
        ("DeiT", {"do_center_crop": False, "resample": 1}),
        ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("EfficientNet", {"include_top": False}),
        ("PoolFormer", {"size": {"height": 60, "width": 90}}),
        ("PoolFormer", {"crop_pct": None}),
        ("MobileViT", {"do_flip_channel_order": False}),
    ],
)
def test_stated_options_are_kept_as_transformers_keeps_them(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_folder(tmp_path, {"image_processor_type": f"{name}ImageProcessorFast"} | options)
    wanted = reference_of(name, **options)(photo(131, 97), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(encoded(tmp_path, photo(131, 97)), wanted)


def test_a_file_without_a_processor_is_understood_from_the_model(tmp_path: Path) -> None:
    stated = encoded(write_folder(tmp_path / "a", {"image_processor_type": "ConvNextImageProcessor"}), photo(9, 9))
    implied = encoded(write_folder(tmp_path / "b", {"size": 384}, model_type="resnet"), photo(9, 9))
    np.testing.assert_array_equal(implied, stated)


def test_settings_survive_the_artifact(tmp_path: Path) -> None:
    task = ImageClassification.load(write_folder(tmp_path / "model", {"size": {"shortest_edge": 31}, "crop_size": 24}))
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "task.json").write_text(json.dumps(task.runtime_config()))
    again = load_task(artifact)
    assert isinstance(again, ImageClassification)
    assert (again.labels, again.settings, again.input_names) == (task.labels, task.settings, task.input_names)


def test_folders_are_served_by_the_task_of_their_model(tmp_path: Path, minilm_folder: Path) -> None:
    assert isinstance(load_task(write_folder(tmp_path, {"size": 32})), ImageClassification)
    assert not isinstance(load_task(minilm_folder), ImageClassification)
    assert TextClassification.name != ImageClassification.name


def test_a_rotated_photo_is_seen_upright() -> None:
    exif = PIL_Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    turned = open_image(file_of(photo(40, 60), "JPEG", exif=exif, quality=95))
    plain = open_image(file_of(photo(40, 60), "JPEG", quality=95))
    assert turned.size == (40, 60)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(plain), k=-1))


def test_transparency_becomes_white_and_every_mode_becomes_coloured() -> None:
    clear = PIL_Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_image(file_of(clear))).min() == 255
    palette = PIL_Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert np.asarray(open_image(file_of(palette, "GIF")))[0, 0].tolist() == [9, 8, 7]
    assert np.asarray(open_image(file_of(palette, transparency=1)))[0, 0].tolist() == [255] * 3
    deep = PIL_Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))
    assert np.asarray(open_image(file_of(deep)))[0, 0].tolist() == [0x80] * 3
    for mode in ("1", "L", "LA", "CMYK"):
        form = "JPEG" if mode == "CMYK" else "PNG"
        assert open_image(file_of(photo(8, 8).convert("L").convert(mode), form)).mode == "RGB"


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_known_by_its_first_bytes_and_read(form: str) -> None:
    data = file_of(photo(20, 30), form)
    assert sniff_image(data) == f"image/{form.lower()}"
    assert open_image(data).size == (30, 20)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [PIL_Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_but_nothing_else(form: str, data: st.DataObject) -> None:
    whole = bytearray(file_of(photo(12, 17), form))
    cut = data.draw(st.integers(0, len(whole)))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] ^= data.draw(st.integers(1, 255))
    with suppress(DataError):
        assert open_image(bytes(whole[:cut])).mode == "RGB"


def test_a_file_that_is_cut_short_is_refused() -> None:
    for form in ("PNG", "JPEG"):
        with pytest.raises(DataError, match="cannot be read"):
            open_image(file_of(photo(200, 200), form)[:-2000])


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (MAX_PIXELS + 1, 1), (10_000, 5_001)])
def test_more_pixels_than_are_read_are_refused_by_the_header(width: int, height: int) -> None:
    with pytest.raises(DataError, match=rf"{width:,} x {height:,} pixels|too many pixels"):
        open_image(bomb(width, height))


def test_a_strip_that_would_be_resized_to_gigabytes_is_refused(tmp_path: Path) -> None:
    task = ImageClassification.load(write_folder(tmp_path, {"image_processor_type": "BitImageProcessor"}))
    strip = file_of(PIL_Image.new("RGB", (30_000, 1)), "PNG")
    with pytest.raises(DataError, match="would be resized to 6,720,000 x 224"):
        task.encode([strip])


def test_a_file_above_the_limit_is_not_looked_at() -> None:
    with pytest.raises(DataError, match=f"{MAX_IMAGE_BYTES + 1:,} bytes"):
        open_image(bytes(MAX_IMAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("processor", "failure", "message"),
    [
        ({"size": 10**9}, ArtifactError, "`height`"),
        ({"size": {"shortest_edge": -3}}, ArtifactError, "shortest_edge"),
        ({"size": {"wide": 3}}, ArtifactError, "neither a shortest edge"),
        ({"image_mean": [0.5]}, ArtifactError, "red, green and blue"),
        ({"resample": 17}, ArtifactError, "resample"),
        ({"rescale_factor": "x"}, ArtifactError, "damaged"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0}, ArtifactError, "division"),
        ({"image_processor_type": "SamImageProcessor"}, UnsupportedError, "'Sam'; known are Beit"),
        ({"do_pad": True}, UnsupportedError, "pads"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    processor: dict[str, Any], failure: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(failure, match=message):
        ImageClassification.load(write_folder(tmp_path, processor))


def test_labels_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"size": 8}, id2label={"0": "crane", "1": "tench", "2": "crane"})
    assert ImageClassification.load(folder).labels == ("crane (0)", "tench", "crane (2)")


@pytest.mark.parametrize(
    ("config", "failure"),
    [
        ({"num_channels": 4}, UnsupportedError),
        ({"num_channels": 1}, ArtifactError),  # the processor's three means are for three channels
        ({"id2label": {"1": "a"}}, ArtifactError),
        ({"id2label": None, "num_labels": -1}, ArtifactError),
        ({"problem_type": "multi_label_classification"}, UnsupportedError),
        ({"id2label": {"0": "score"}}, UnsupportedError),
    ],
)
def test_models_of_another_form_are_refused(config: dict[str, Any], failure: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(failure):
        ImageClassification.load(write_folder(tmp_path, {"size": 8}, **config))


def test_predictions_name_the_likeliest_label(tmp_path: Path) -> None:
    task = ImageClassification.load(write_folder(tmp_path, {"size": 8}))
    pictures = [file_of(photo(9, 9)), file_of(photo(7, 30))]
    arrays = task.encode(pictures)
    assert arrays["pixel_values"].shape == (2, 3, 8, 8)
    outputs = {"logits": np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]], np.float32))}
    first, second = task.decode(outputs, arrays, pictures)
    assert (first["label"], second["label"]) == ("green", "red")
    assert first["score"] == pytest.approx(0.7, abs=1e-6)
    assert sum(second["scores"].values()) == pytest.approx(1)
    with pytest.raises(ArtifactError, match=r"\[2, 2\].*3 labels"):
        task.vectors({"logits": np.zeros((2, 2), np.float32)}, arrays)


def test_a_bad_picture_of_a_batch_is_named(tmp_path: Path) -> None:
    task = ImageClassification.load(write_folder(tmp_path, {"size": 8}))
    with pytest.raises(DataError, match="picture 1 of the batch"):
        task.encode([file_of(photo(9, 9)), b"no picture"])


def test_pictures_that_stay_of_different_sizes_are_refused_together(tmp_path: Path) -> None:
    task = ImageClassification.load(write_folder(tmp_path, {"size": {"shortest_edge": 8}}))
    with pytest.raises(DataError, match="2 different sizes"):
        task.encode([file_of(photo(9, 9)), file_of(photo(9, 30))])


def test_without_pillow_the_extra_is_named_and_texts_need_none(tmp_path: Path) -> None:
    write_folder(tmp_path, {"size": 8})
    code = f"""
import sys
sys.modules["PIL"] = None
from pathlib import Path
from edgesmith.errors import MissingExtraError
from edgesmith.tasks import load_task
task = load_task(Path({str(tmp_path)!r}))
try:
    task.encode([b""])
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edgesmith[vision]'" in done.stdout
