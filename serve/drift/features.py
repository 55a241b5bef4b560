"""What is looked at of a row: one value for each feature, so that rows, which are drawn alike, can be compared."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NUM_BUCKETS",
    "bucket_of",
    "directions",
    "given_values",
    "holds_pictures",
    "log_shares",
    "output_values",
    "picture_values",
    "row_tokens",
    "surprise_of",
    "tag_values",
]

NUM_BUCKETS = 4096
"""Groups that tokens are hashed into."""
NUM_DIRECTIONS = 4
_SMOOTHING = 0.5

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def bucket_of(tokens: Ints) -> Ints:
    """Group of each token, in [0, NUM_BUCKETS)."""
    mixed = (tokens.astype(np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    return (mixed >> np.uint64(20)).astype(np.int64)


def row_tokens(arrays: Mapping[str, Array], row: int) -> Ints:
    """Tokens of one row, without padding.

    Raises:
        KeyError: There are no `input_ids`.
    """
    tokens = np.asarray(arrays["input_ids"][row], np.int64)
    mask = arrays.get("attention_mask")
    return tokens if mask is None else tokens[np.asarray(mask[row]) > 0]


def holds_pictures(arrays: Mapping[str, Array]) -> bool:
    """Whether a graph's inputs are one array of pixels [batch, channels, height, width]."""
    return len(arrays) == 1 and all(one.ndim == 4 and one.dtype.kind == "f" for one in arrays.values())


def picture_values(arrays: Mapping[str, Array], row: int) -> dict[str, float]:
    """What is looked at of a picture: `brightness`, the mean of its prepared pixels, and `contrast`, their spread."""
    (pixels,) = arrays.values()
    wide = pixels[row].astype(np.float64)
    return {"brightness": float(wide.mean()), "contrast": float(wide.std())}


def log_shares(counts: Sequence[int] | Floats) -> Floats:
    """Logarithms of the buckets' shares, none of them zero."""
    smoothed = np.asarray(counts, np.float64) + _SMOOTHING
    shares: Floats = np.log(smoothed / smoothed.sum(axis=-1, keepdims=True))
    return shares


def surprise_of(buckets: Ints, logs: Floats) -> float:
    """Mean surprise of a row's tokens in nats; 0 of a row without any."""
    return float(-logs[buckets].mean()) if len(buckets) else 0.0


def given_values(
    tokens: Ints, *, ignored: Ints, unknown_id: int | None, logs: Floats, draw: random.Random
) -> dict[str, float]:
    """What is looked at of a row's input.

    Args:
        tokens: Without padding.
        ignored: Tokens that every row has, such as those at its beginning and end; counted in its length alone.
        unknown_id: Stands for what the tokenizer cannot spell; None where it can spell everything.
        logs: Logarithms of the buckets' shares.
        draw: Picks one token of the row. One alone, since those of a row are not drawn independently.

    Returns:
        `length`, `surprise`, `token` (a bucket; -1 without tokens) and, where it can be, `unknown`.
    """
    text = tokens[~np.isin(tokens, ignored)]
    buckets = bucket_of(text)
    values = {
        "length": float(len(tokens)),
        "surprise": surprise_of(buckets, logs),
        "token": float(buckets[draw.randrange(len(buckets))]) if len(buckets) else -1.0,
    }
    if unknown_id is not None:
        values["unknown"] = float((text == unknown_id).mean()) if len(text) else 0.0
    return values


def output_values(vector: Array, kind: str) -> dict[str, float]:
    """What is looked at of a row's output.

    Args:
        vector: Its logits, or its embedding.
        kind: `logits` or `embedding`.

    Returns:
        `label` and `confidence`, or `norm` and `direction 1` to `direction 4`.
    """
    wide = vector.astype(np.float64)
    if kind == "logits":
        likely = np.exp(wide - wide.max())
        return {"label": float(wide.argmax()), "confidence": float(likely.max() / likely.sum())}
    along = directions(len(wide)) @ wide / np.sqrt(len(wide))
    return {"norm": float(np.linalg.norm(wide))} | {
        f"direction {index + 1}": float(value) for index, value in enumerate(along)
    }


def tag_values(logits_ST: Array, tokens_S: Ints, *, ignored: Ints, draw: random.Random) -> dict[str, float]:
    """What is looked at of a tagger's answer to one row.

    Args:
        logits_ST: Of its tokens.
        tokens_S: Without padding.
        ignored: Tokens that every row has, whose tags say nothing.
        draw: Picks one token of the row, as `given_values` does.

    Returns:
        `label`, the tag of one token (-1 without tokens), and `confidence`, the mean over all of them.
    """
    wide = logits_ST[~np.isin(tokens_S, ignored)].astype(np.float64)
    if not len(wide):
        return {"label": -1.0, "confidence": 1.0}
    likely = np.exp(wide - wide.max(axis=1, keepdims=True))
    label = wide[draw.randrange(len(wide))].argmax()
    return {"label": float(label), "confidence": float((likely.max(axis=1) / likely.sum(axis=1)).mean())}


_DIRECTIONS: dict[int, Floats] = {}


def directions(size: int) -> Floats:
    """Fixed random directions: signs, of shape [NUM_DIRECTIONS, size]; the same everywhere and always."""
    if size not in _DIRECTIONS:
        draw = random.Random(size)  # noqa: S311 - its bits are the same in every version of Python
        bits = [[(draw.getrandbits(32) & 1) * 2.0 - 1.0 for _ in range(size)] for _ in range(NUM_DIRECTIONS)]
        _DIRECTIONS[size] = np.array(bits)
    return _DIRECTIONS[size]
