"""From a picture's file to the array that a model takes, with Pillow and NumPy, bounded in memory.

Equal to what transformers' own processors give with Pillow, to the last bit.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError, MissingExtraError
from edgesmith.tasks.image_settings import ImageSettings

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "MAX_IMAGE_BYTES", "MAX_PIXELS", "lookup_table", "open_image", "prepare_image", "sniff_image"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is read; of an animation the first picture."""
MAX_PIXELS = 50_000_000
"""Of a picture, and of what it is resized to: 150 MB as it is unpacked."""
MAX_IMAGE_BYTES = 32 << 20
"""Of a file."""

_MEND = f"Send one {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, whole."
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


def sniff_image(data: bytes | memoryview) -> str | None:
    """Tell the media type of a picture from its first bytes; None if it is none that is read.

    >>> sniff_image(b"GIF89a...")
    'image/gif'
    """
    head = bytes(data[:12])
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def open_image(data: bytes | bytearray | memoryview) -> Image.Image:
    """Unpack a picture: upright, in red, green and blue, what is transparent made white.

    Args:
        data: A whole file of one of `FORMATS`.

    Raises:
        DataError: It is no such file, damaged, cut short, or above `MAX_IMAGE_BYTES` or `MAX_PIXELS`.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError(
            "the library `pillow` is not installed; it reads pictures",
            mend="Install it: pip install 'edgesmith[vision]'",
        ) from error
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"the picture's file has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read", mend=_MEND)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"the picture has too many pixels; at most {MAX_PIXELS:,} are read") from error
    except MemoryError as error:
        raise DataError("the picture needs more memory than there is", mend="Send a smaller one.") from error
    except Exception as error:  # decoders raise whatever their bytes lead them to
        reason = str(error).split("<_io")[0].strip()  # Pillow names the buffer by its address
        raise DataError(f"the picture cannot be read: {reason or type(error).__name__}", mend=_MEND) from error


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise DataError(f"the picture has {width} x {height} pixels", mend=_MEND)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the picture has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read",
            mend="Send a smaller one: models look at some hundred pixels each way.",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut off what is brighter than 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def prepare_image(image: Image.Image, settings: ImageSettings, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resize, crop, rescale and normalise a picture.

    Args:
        image: In red, green and blue.
        settings: The model's.
        table: `lookup_table(settings)`.

    Returns:
        float32 of shape [channels, height, width].

    Raises:
        DataError: It is so narrow that the resized picture would be above `MAX_PIXELS`.
    """
    from PIL import Image

    if settings.num_channels == 1:
        image = image.convert("L")  # of a grey picture, the brightness that its file says
    target = _target_size(image.height, image.width, settings)
    if target is not None:
        height, width = target
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise DataError(
                f"a picture of {image.width:,} x {image.height:,} pixels would be resized to {width:,} x {height:,}",
                mend="Cut it to a usual format.",
            )
        image = image.resize((width, height), resample=Image.Resampling(settings.resample))
    pixels_HWC = np.asarray(image).reshape(image.height, image.width, settings.num_channels)
    if settings.crop is not None:
        pixels_HWC = _crop_center(pixels_HWC, *settings.crop)
    values_CHW = np.stack([table[channel][pixels_HWC[:, :, channel]] for channel in range(settings.num_channels)])
    return np.ascontiguousarray(values_CHW[::-1]) if settings.is_bgr else values_CHW


def lookup_table(settings: ImageSettings) -> NDArray[np.float32]:
    """What each brightness becomes in each channel, float32 of shape [channels, 256].

    Rounded in the steps and types of transformers, so that equal pictures are equal arrays.
    """
    values: NDArray[np.float32] = np.tile(np.arange(256, dtype=np.float32), (settings.num_channels, 1))
    if settings.rescale_factor is not None:
        values = (values.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.is_offset:
        values -= np.float32(1)
    std = None if settings.std is None else np.array(settings.std, np.float32)[:, None]
    if settings.mean is not None and std is not None:
        values = (values - np.array(settings.mean, np.float32)[:, None]) / std
    if settings.is_divided_again and std is not None:
        values = values / std
    return values


def _target_size(height: int, width: int, settings: ImageSettings) -> tuple[int, int] | None:
    """Height and width to resize to; None to leave the picture as it is."""
    if settings.height is not None and settings.width is not None:
        return settings.height, settings.width
    if settings.shortest_edge is None:
        return None
    short, long = sorted((height, width))
    edge: float = settings.shortest_edge
    rounded = settings.shortest_edge
    if settings.longest_edge is not None and long / short * edge > settings.longest_edge:
        edge = settings.longest_edge * float(short) / float(long)
        rounded = round(edge)
    if settings.longest_edge is not None and short == rounded:
        return height, width
    longer = int(edge * long / short)
    return (longer, rounded) if width <= height else (rounded, longer)


def _crop_center(pixels_HWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a picture, with black around it where it is smaller."""
    for axis, wanted in ((0, height), (1, width)):
        length = pixels_HWC.shape[axis]
        if length < wanted:
            before = math.ceil((wanted - length) / 2)
            padding = [(0, 0)] * 3
            padding[axis] = (before, wanted - length - before)
            pixels_HWC = np.pad(pixels_HWC, padding)
    top, left = (pixels_HWC.shape[0] - height) // 2, (pixels_HWC.shape[1] - width) // 2
    return pixels_HWC[top : top + height, left : left + width]
