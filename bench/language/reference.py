"""What a reference model says of every token of a text: some hundred bytes a token, not a whole vocabulary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.language.packing import describe, pack, unpack
from bench.language.reading import check_width, read_window
from bench.language.scores import Block, StoredRows, draw_tail
from bench.language.windows import MIN_WINDOWS, Windows
from bench.raw import damage_errors, pretty_json, read_json
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["NUM_TAIL", "REFERENCE", "TOP_K", "Reference", "record_reference"]

REFERENCE = "reference.json"
ARRAYS = "reference.bin.gz"
TOP_K = 64
NUM_TAIL = 32
_MAX_K = 4096
_KEPT = ("top_ids", "top_logs", "tail_ids", "tail_logs", "rest_logs", "target_logs")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference model's next-token distributions on the scored tokens of a text.

    W windows, S scored tokens each, K likeliest tokens, M sampled ones; see `StoredRows`.
    """

    engine: str
    artifact_digest: str | None
    """Of the reference model; None for an engine that is no artifact."""
    windows: Windows
    width: int
    """Tokens of the vocabulary that the probabilities are of; what an embedding has beyond is padding."""
    num_excluded: int
    """Logits beyond `width` that the model gave and that were left out."""
    seed: int
    """Of the sampled tokens."""
    top_ids: NDArray[np.integer]
    """[W, S, K]"""
    top_logs: NDArray[np.float32]
    tail_ids: NDArray[np.integer]
    """[W, S, M]"""
    tail_logs: NDArray[np.float32]
    rest_logs: NDArray[np.float32]
    """[W, S]"""
    target_logs: NDArray[np.float32]
    """ln of the probability of the token that the text has, of shape [W, S]."""
    seconds: float = 0.0

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss of the scored tokens."""
        return float(np.exp(-self.target_logs.mean(dtype=np.float64)))

    @property
    def bytes_per_token(self) -> float:
        """Of memory for each scored token."""
        return float(sum(getattr(self, name).nbytes for name in _KEPT)) / self.target_logs.size

    @cached_property
    def digest(self) -> str:
        """Of the windows and of all that is kept of the model."""
        hashed = hashlib.sha256(f"{self.windows.digest} {self.width}".encode())
        for name in _KEPT:
            array = getattr(self, name)
            hashed.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
        return f"sha256:{hashed.hexdigest()}"

    def rows(self, window: int, block: Block) -> StoredRows:
        """What is kept of the rows of a block of a window's logits."""
        picked = slice(block.start, block.start + len(block.totals))
        return StoredRows(
            top_ids=self.top_ids[window, picked],
            top_logs=self.top_logs[window, picked],
            tail_ids=self.tail_ids[window, picked],
            tail_logs=self.tail_logs[window, picked],
            rest_logs=self.rest_logs[window, picked],
        )

    def summary(self) -> dict[str, Any]:
        """Give what it is without the arrays, JSON-able."""
        return {
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "digest": self.digest,
            "windows_digest": self.windows.digest,
            "num_windows": self.windows.num_windows,
            "window_length": self.windows.length,
            "bos": self.windows.bos,
            "num_tokens": self.windows.num_tokens,
            "width": self.width,
            "num_excluded": self.num_excluded,
            "top_k": int(self.top_ids.shape[2]),
            "num_tail": int(self.tail_ids.shape[2]),
            "seed": self.seed,
            "perplexity": self.perplexity,
            "seconds": round(self.seconds, 3),
        }

    def save(self, folder: Path) -> None:
        """Write `reference.json` and `reference.bin.gz` into a folder; the latter is reproducible to the byte.

        Raises:
            StorageError: The folder cannot be written.
        """
        arrays = {"tokens": self.windows.tokens} | {name: getattr(self, name) for name in _KEPT}
        atomic_write(folder / ARRAYS, pack(arrays))
        atomic_write(
            folder / REFERENCE, pretty_json({"schema_version": 1} | self.summary() | {"columns": describe(arrays)})
        )

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no reference.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / REFERENCE, mend="Make one with `edgesmith eval`.")
        source = folder / ARRAYS
        with damage_errors(source):
            with storage_errors(source):
                content = source.read_bytes()
            return _from_arrays(value, unpack(content, value["columns"]))


def _from_arrays(value: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Reference:
    windows = Windows(tokens=arrays["tokens"], bos=value["bos"], num_tokens=int(value["num_tokens"]))
    rows, width = (windows.num_windows, windows.num_scored), int(value["width"])
    if windows.num_windows < MIN_WINDOWS:
        raise ValueError(f"{windows.num_windows} windows")
    for name in _KEPT:
        array = arrays[name]
        if array.shape[:2] != rows or array.ndim != (2 if name in ("rest_logs", "target_logs") else 3):
            raise ValueError(f"{name} of shape {array.shape} for windows of {rows}")
        if name.endswith("_ids") and array.size and int(array.max()) >= width:
            raise ValueError(f"{name} has token {int(array.max())} of {width}")
        if name.endswith("_logs") and not ((array <= 1e-3) & ((array > -np.inf) | (name == "rest_logs"))).all():
            raise ValueError(f"{name} has what is no probability")
    if arrays["top_ids"].shape != arrays["top_logs"].shape or arrays["tail_ids"].shape != arrays["tail_logs"].shape:
        raise ValueError("tokens without a probability for each")
    if int(windows.tokens.min()) < 0 or int(windows.tokens.max()) >= width or not arrays["top_ids"].shape[2]:
        raise ValueError(f"tokens outside a vocabulary of {width}")
    reference = Reference(
        engine=str(value["engine"]),
        artifact_digest=value["artifact_digest"],
        windows=windows,
        width=width,
        num_excluded=int(value["num_excluded"]),
        seed=int(value["seed"]),
        seconds=float(value["seconds"]),
        **{name: arrays[name] for name in _KEPT},
    )
    if reference.digest != value["digest"]:
        raise ValueError(f"its content is {reference.digest[:19]}…, not {str(value['digest'])[:19]}…")
    return reference


def record_reference(
    engine: GenerationEngine,
    windows: Windows,
    *,
    top_k: int = TOP_K,
    num_tail: int = NUM_TAIL,
    num_vocabulary: int | None = None,
    artifact_digest: str | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Reference:
    """Keep what a model says of every scored token, to hold other models against it.

    Args:
        engine: The reference, such as the torch model.
        windows: Of the text.
        top_k: Likeliest tokens that are kept, at least 1.
        num_tail: Other tokens that are kept as a sample. With all of a small vocabulary kept nothing is estimated.
        num_vocabulary: Tokens that the tokenizer has: logits beyond them are padding of the embedding and left out.
            All of the engine's by default.
        artifact_digest: Of what the engine runs.
        seed: Of the sample.
        progress: Shows the windows done.

    Raises:
        UsageError: An option is out of range, or the text has tokens that the model does not know.
        VerificationError: A logit is not finite.
    """
    width = engine.num_vocabulary if num_vocabulary is None else num_vocabulary
    if not 1 <= top_k <= _MAX_K or not 1 <= num_tail <= _MAX_K:
        raise UsageError(f"top_k is {top_k} and num_tail {num_tail}; both must be from 1 to {_MAX_K:,}")
    check_width(engine, windows, width)
    if width <= top_k + num_tail:
        top_k, num_tail = width, 0
    start = time.perf_counter()
    kept: dict[str, list[NDArray[Any]]] = {name: [] for name in _KEPT}
    for window in progress.track(range(windows.num_windows), "reference"):
        rng = np.random.default_rng([seed, window])
        parts = [
            _keep(block, windows.targets[window], top_k, num_tail, rng)
            for block in read_window(engine, windows, window, width)
        ]
        for name in _KEPT:
            kept[name].append(np.concatenate([part[name] for part in parts]))
    return Reference(
        engine=engine.name,
        artifact_digest=artifact_digest,
        windows=windows,
        width=width,
        num_excluded=engine.num_vocabulary - width,
        seed=seed,
        seconds=time.perf_counter() - start,
        **{name: np.stack(found) for name, found in kept.items()},
    )


def _keep(
    block: Block, targets: NDArray[np.int32], top_k: int, num_tail: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """What is stored of a few rows."""
    kind = np.uint16 if block.exps.shape[1] <= 1 << 16 else np.uint32
    width = block.exps.shape[1]
    part = np.argpartition(block.shifted, width - top_k, axis=1)[:, width - top_k :]
    part.sort(axis=1)  # of equal logits the first token comes first
    order = np.argsort(-np.take_along_axis(block.shifted, part, axis=1), axis=1, kind="stable")
    top_ids = np.take_along_axis(part, order, axis=1)
    _put_first(top_ids, block.likeliest)
    rest = block.totals - np.take_along_axis(block.exps, top_ids, axis=1).sum(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        rest_logs = np.log(np.maximum(rest, 0.0) / block.totals)
    tail_ids = draw_tail(block, top_ids, num_tail, rng) if num_tail else np.empty((len(top_ids), 0), dtype=np.int64)
    here = targets[block.start : block.start + len(top_ids), None].astype(np.int64)
    return {
        "top_ids": top_ids.astype(kind),
        "top_logs": block.logs_of(top_ids).astype(np.float32),
        "tail_ids": tail_ids.astype(kind),
        "tail_logs": block.logs_of(tail_ids).astype(np.float32),
        "rest_logs": rest_logs.astype(np.float32),
        "target_logs": block.logs_of(here)[:, 0].astype(np.float32),
    }


def _put_first(top_ids: NDArray[np.int64], likeliest: NDArray[np.int64]) -> None:
    """Have the first of several equally likely tokens among the kept ones, at their head."""
    for row in np.flatnonzero(top_ids[:, 0] != likeliest).tolist():
        others = top_ids[row][top_ids[row] != likeliest[row]]
        top_ids[row] = np.concatenate(([likeliest[row]], others))[: top_ids.shape[1]]
