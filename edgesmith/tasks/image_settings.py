"""How pictures become arrays, worked out of a `preprocessor_config.json` as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.tasks.folder import read_json_object

__all__ = ["PREPROCESSOR_CONFIG", "ImageSettings", "read_image_settings"]

PREPROCESSOR_CONFIG = "preprocessor_config.json"
MAX_EDGE = 4096

_MEND = "Save the image processor again with transformers' `save_pretrained`, or fetch the folder anew."
_BILINEAR, _BICUBIC = 2, 3
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FULL_RESOLUTION_EDGE = 384  # from here on ConvNeXt's processor warps instead of cropping

Edge = Annotated[int, Field(gt=0, le=MAX_EDGE)]
Triple = tuple[float, float, float]
Channels = tuple[float, ...]
"""A value for each channel: of grey, or of red, green and blue."""


class ImageSettings(BaseModel):
    """How a picture becomes an array: what `task.json` holds of it. Steps are done in the order of the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    shortest_edge: Edge | None = None
    """Resized so that the shorter edge has this length, in pixels."""
    longest_edge: Edge | None = None
    """With `shortest_edge`: the longer edge gets no longer than this."""
    height: Edge | None = None
    """Resized to just this height and `width`, whatever the picture's proportions."""
    width: Edge | None = None
    resample: Annotated[int, Field(ge=0, le=5)] = _BILINEAR
    """Pillow's number of the filter."""
    crop: tuple[Edge, Edge] | None = Field(default=None, strict=False)
    """Height and width of the middle that is kept; black is added where the picture is smaller."""
    rescale_factor: float | None = 1 / 255
    is_offset: bool = False
    """Whether 1 is taken off after rescaling."""
    mean: Channels | None = Field(default=None, strict=False)
    std: Channels | None = Field(default=None, strict=False)
    is_divided_again: bool = False
    """Whether the array is divided by `std` once more, as EfficientNets were trained."""
    is_bgr: bool = False
    num_channels: Literal[1, 3] = 3
    """Of the array: 1 for pictures in grey, 3 for red, green and blue."""

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.num_channels:
                raise ValueError(f"`{name}` has {len(values)} values for pictures of {self.num_channels} channel(s)")
        return self

    @property
    def edges(self) -> tuple[int, int] | None:
        """Height and width of every array; None where they follow the picture's."""
        if self.crop is not None:
            return self.crop
        return (self.height, self.width) if self.height is not None and self.width is not None else None

    @classmethod
    def from_json(cls, value: Any, source: Path) -> Self:
        """Check the settings that `task.json` holds.

        Raises:
            ArtifactError: They are damaged; `source` names the file.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _damaged(source, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a processor does where its file says nothing."""

    size: Mapping[str, int] | None = None
    resample: int = _BICUBIC
    crop: int | None = None
    is_square: bool = True
    """What a size of one number means: both edges, or the shorter one."""
    mean: Triple = _HALF
    std: Triple = _HALF
    does_normalize: bool = True
    crop_share: float | None = None


_SQUARE_224, _SHORTEST_224 = {"height": 224, "width": 224}, {"shortest_edge": 224}
_CLIP = _Family(size=_SHORTEST_224, crop=224, is_square=False, mean=_CLIP_MEAN, std=_CLIP_STD)
_MOBILENET = _Family(size={"shortest_edge": 256}, resample=_BILINEAR, crop=224, is_square=False)
_FAMILIES: Mapping[str, _Family] = {
    "Beit": _Family(size=_SQUARE_224),
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": _Family(size={"shortest_edge": 384}, is_square=False, crop_share=224 / 256),
    "DeiT": _Family(size={"height": 256, "width": 256}, crop=224),
    "EfficientNet": _Family(size={"height": 346, "width": 346}),
    "Levit": _Family(size=_SHORTEST_224, crop=224, is_square=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "MobileViT": _Family(size=_SHORTEST_224, crop=256, is_square=False, does_normalize=False),
    "PoolFormer": _Family(
        size=_SHORTEST_224, crop=224, is_square=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, crop_share=0.9
    ),
    "Pvt": _Family(size=_SQUARE_224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "Segformer": _Family(
        size={"height": 512, "width": 512}, resample=_BILINEAR, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    ),
    "Siglip": _Family(size=_SQUARE_224, is_square=False),
    "ViT": _Family(size=_SQUARE_224, resample=_BILINEAR),
}
"""Name of a processor's class without its ending → its defaults."""
_OF_MODEL_TYPE: Mapping[str, str] = {
    "beit": "Beit", "bit": "Bit", "clip": "CLIP", "convnext": "ConvNext", "convnextv2": "ConvNext", "cvt": "ConvNext",
    "data2vec-vision": "Beit", "deit": "DeiT", "dinat": "ViT", "dinov2": "Bit", "efficientnet": "EfficientNet",
    "focalnet": "Bit", "hiera": "Bit", "ijepa": "ViT", "levit": "Levit", "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2", "mobilevit": "MobileViT", "mobilevitv2": "MobileViT", "poolformer": "PoolFormer",
    "pvt": "Pvt", "pvt_v2": "Pvt", "regnet": "ConvNext", "resnet": "ConvNext", "segformer": "Segformer",
    "siglip": "Siglip", "swiftformer": "ViT", "swin": "ViT", "swinv2": "ViT", "vit": "ViT", "vit_msn": "ViT",
}  # fmt: skip


def read_image_settings(folder: Path) -> ImageSettings:
    """Work out of a model's folder how its pictures are prepared.

    Args:
        folder: Holds `preprocessor_config.json` and `config.json`, which says how many channels the model takes and
            names the processor where the former does not.

    Raises:
        ArtifactError: A file is missing or damaged.
        UnsupportedError: A processor that does more than resizing, cropping, rescaling and normalising, or pictures
            that are neither grey nor coloured.
    """
    source = folder / PREPROCESSOR_CONFIG
    config = read_json_object(source)
    model = read_json_object(folder / "config.json", required=False)
    name = _processor_name(model, config)
    family = _FAMILIES.get(name)
    if family is None:
        raise UnsupportedError(
            f"{source}: is for the image processor {name!r}; known are {', '.join(_FAMILIES)}",
            mend="Send the prepared picture as a tensor.",
        )
    if config.get("do_pad"):
        raise UnsupportedError(f"{source}: pads pictures, which is not known here")
    try:
        return _settings(config, name, family, _num_channels(model, folder / "config.json"))
    except ValidationError as error:
        raise _damaged(source, error) from error
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ArtifactError(f"{source}: is damaged: {error}", mend=_MEND) from error


def _num_channels(model: Mapping[str, Any], source: Path) -> int:
    given = model.get("num_channels", 3)
    if type(given) is not int or given not in (1, 3):
        raise UnsupportedError(
            f"{source}: takes pictures of {given!r} channels; known are those of 1 and of 3",
            mend="Send the prepared picture as a tensor.",
        )
    return given


def _processor_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    stated = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not isinstance(stated, str):
        model_type = str(model.get("model_type"))
        return _OF_MODEL_TYPE.get(model_type, model_type)
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        stated = stated.removesuffix(ending)
    return stated


def _settings(config: Mapping[str, Any], name: str, family: _Family, num_channels: int) -> ImageSettings:
    does_normalize = config.get("do_normalize", family.does_normalize)
    does_rescale = config.get("do_rescale", True)
    is_efficientnet = name == "EfficientNet"
    divides_again = is_efficientnet and bool(config.get("include_top", True))
    needs_std = does_normalize or divides_again
    crop = config.get("crop_size", family.crop) if config.get("do_center_crop", family.crop is not None) else None
    values: dict[str, Any] = {
        "resample": config.get("resample", family.resample),
        "crop": None if crop is None else _height_and_width(crop),
        "rescale_factor": float(config.get("rescale_factor", 1 / 255)) if does_rescale else None,
        "is_offset": is_efficientnet and bool(does_rescale and config.get("rescale_offset", False)),
        "mean": _channels(config.get("image_mean", family.mean), num_channels) if does_normalize else None,
        "std": _channels(config.get("image_std", family.std), num_channels) if needs_std else None,
        "is_divided_again": divides_again,
        "is_bgr": name == "MobileViT" and bool(config.get("do_flip_channel_order", True)),
        "num_channels": num_channels,
    }
    if config.get("do_resize", True):
        values |= _resizing(config, name, family)
    return ImageSettings.model_validate(values)


def _resizing(config: Mapping[str, Any], name: str, family: _Family) -> dict[str, Any]:
    """The size that a picture is really resized to, and ConvNeXt's own crop."""
    size = config.get("size", family.size)
    if isinstance(size, int):
        size = {"height": size, "width": size} if family.is_square else {"shortest_edge": size}
    elif isinstance(size, list):
        size = dict(zip(("height", "width"), _height_and_width(size), strict=True))
    kept = {key: size[key] for key in ("shortest_edge", "longest_edge", "height", "width") if size.get(key)}
    if set(kept) not in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"}):
        raise ValueError(f"the size {size!r} is neither a shortest edge nor a height and a width")
    share = config.get("crop_pct", family.crop_share)
    edge = kept.get("shortest_edge")
    if name == "ConvNext":
        if edge is None:
            raise ValueError(f"the size {size!r} has no shortest edge")
        if edge >= _FULL_RESOLUTION_EDGE:
            return {"height": edge, "width": edge}
        return {"shortest_edge": int(edge / share), "crop": (edge, edge)}
    if name == "Levit" and edge is not None:
        return {"shortest_edge": int((256 / 224) * edge)}
    if name == "PoolFormer" and share is not None:
        if edge is None and kept["height"] != kept["width"]:
            return {key: int(value / share) for key, value in kept.items()}
        return {"shortest_edge": int((edge or kept["height"]) / share)}
    return kept


def _height_and_width(size: Any) -> tuple[int, int]:
    match size:
        case int():
            return size, size
        case [int(height), int(width)]:
            return height, width
        case {"height": int(height), "width": int(width)}:
            return height, width
        case _:
            raise ValueError(f"the crop {size!r} is no height and width")


def _channels(values: Any, num_channels: int) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        return (float(values),) * num_channels
    if not isinstance(values, Sequence) or len(values) != num_channels:
        each = "red, green and blue" if num_channels == 3 else "the one channel"
        raise ValueError(f"{values!r} is no value for each of {each}")
    return tuple(float(value) for value in values)


def _damaged(source: Path, error: ValidationError) -> ArtifactError:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return ArtifactError(f"{source}: `{where}`: {first['msg']}", mend=_MEND)
