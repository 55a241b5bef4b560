"""What the blocks of a model are fed with on calibration data, one block at a time.

The model itself is run, with its blocks passing on what they get: so every block's masks, position embeddings and
other arguments are those that the model really gives it, and that its blocks form a chain is seen, not assumed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.prune.weights.block_model import BlockModel
from compress.quiet import quiet_libraries
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress

__all__ = ["BlockInputs", "capture_inputs"]

IN_MEMORY_BYTES = 1 << 30
"""Hidden states above this size lie in a file."""
_MEND = "Single weights can be pruned by magnitude, which runs no model, or structures: method structured."


class _StopForwardError(Exception):
    """All blocks have been passed; the rest of the model is not run."""


class _Hidden:
    """Stands where a block's arguments have the hidden states."""


_HIDDEN = _Hidden()


@dataclass(frozen=True)
class _Call:
    """How a block is called, hidden states left out."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class BlockInputs:
    """Hidden states of all calibration batches at one point of the model, and how each block is called.

    Args:
        folder: Where a file may lie.

    Attributes:
        tokens: For each batch, bool of shape [rows, length], false at padding; None where there is none.
    """

    def __init__(self, folder: Path, *, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self.tokens: list[Tensor | None] = []
        self._states: list[Tensor] = []
        self._calls: list[list[_Call]] = []  # of each batch, of each block
        self._folder = folder
        self._left = in_memory_bytes
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    @property
    def size_bytes(self) -> int:
        """Of the hidden states and of what else the blocks are given, in memory or in files."""
        return sum(one.numel() * one.element_size() for one in (*self._states, *self._known.values()))

    @property
    def num_tokens(self) -> int:
        """Positions of all batches, padding included."""
        return sum(math.prod(states.shape[:-1]) for states in self._states)

    def add(self, states: Tensor, calls: list[_Call], tokens: Tensor | None) -> None:
        """Add a batch."""
        place = self._allocate(states.shape)
        place.copy_(states)
        self._states.append(place)
        self._calls.append(calls)
        self.tokens.append(tokens)

    def intern(self, value: Any) -> Any:
        """Let equal tensors of different batches and blocks share their memory."""
        match value:
            case Tensor():
                raw = value.contiguous().reshape(-1).view(torch.uint8) if value.numel() else value
                digest = hashlib.sha256(raw.numpy().data).digest() if value.numel() else b""
                return self._known.setdefault((value.dtype, tuple(value.shape), digest), value.clone())
            case tuple() | list():
                return type(value)(self.intern(one) for one in value)
            case dict():
                return {key: self.intern(one) for key, one in value.items()}
        return value

    def run(self, block: nn.Module, index: int, batch: int) -> Tensor:
        """Run a block on a batch.

        Returns:
            Its hidden states, of the same shape.
        """
        call, states = self._calls[batch][index], self._states[batch]
        arguments = [states if one is _HIDDEN else one for one in call.arguments]
        keywords = {name: states if one is _HIDDEN else one for name, one in call.keywords.items()}
        return _states_of(block(*arguments, **keywords))

    def replace(self, batch: int, states: Tensor) -> None:
        """Put a block's outputs in the place of its inputs."""
        self._states[batch].copy_(states)

    def _allocate(self, shape: torch.Size) -> Tensor:
        size_bytes = 4 * math.prod(shape)
        if size_bytes <= self._left:
            self._left -= size_bytes
            return torch.empty(shape)
        path = self._folder / f"hidden-states-{len(self._states)}.bin"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return torch.from_file(str(path), shared=True, size=math.prod(shape)).reshape(shape)


def capture_inputs(
    model: BlockModel, batches: Sequence[Mapping[str, Tensor]], folder: Path, progress: Progress
) -> BlockInputs:
    """Run all that comes before the blocks on every batch.

    Args:
        model: Of which only embeddings and the like are read, and the first block once.
        batches: Model inputs; rows of a batch are padded to one length and have an `attention_mask` then.
        folder: Where hidden states may lie when they are too many for memory.
        progress: Told of each batch.

    Returns:
        What the first block is fed with.

    Raises:
        UnsupportedError: the blocks are no chain, or the model cannot be run up to them.
    """
    inputs = BlockInputs(folder)
    with model.loading_others():
        first = _Passing(model, until_first=True)
        first.run(batches[0])
        with model.loaded(0) as block, torch.inference_mode():
            arguments, keywords = first.called[0]
            extras = _extras_of(block(*arguments, **keywords), first.hidden, model)
        for batch in progress.track(batches, "embed calibration data"):
            passing = _Passing(model, extras)
            passing.run(batch)
            calls = [
                _Call(
                    tuple(_HIDDEN if one is passing.hidden else inputs.intern(one) for one in arguments),
                    {name: _HIDDEN if one is passing.hidden else inputs.intern(one) for name, one in keywords.items()},
                )
                for arguments, keywords in passing.called
            ]
            assert passing.hidden is not None
            inputs.add(passing.hidden, calls, _tokens_of(batch))
    return inputs


class _Passing:
    """Runs a model whose blocks pass on their hidden states, and writes down how they are called.

    Args:
        model: The model.
        extras: What a block returns beside the hidden states; None when it returns nothing else.
        until_first: Stop at the first block instead of behind the last.
    """

    def __init__(self, model: BlockModel, extras: tuple[Any, ...] | None = None, *, until_first: bool = False) -> None:
        self.called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden: Tensor | None = None
        self._model = model
        self._extras = extras
        self._until_first = until_first
        self._num_blocks = 1 if until_first else len(model.blocks)

    def run(self, batch: Mapping[str, Tensor]) -> None:
        """Run the model."""
        for index, block in enumerate(self._model.blocks):
            block.forward = self._make_forward(index)
        handles = [
            module.register_forward_pre_hook(self._stop_behind, prepend=True) for _, module in self._model.others()
        ]
        try:
            with torch.inference_mode(), quiet_libraries():
                self._model.model(**batch)
        except _StopForwardError:
            pass
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
            raise UnsupportedError(
                f"{self._model.checkpoint.folder}: {type(self._model.model).__name__} cannot be run up to its blocks: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
                mend=_MEND,
            ) from error
        finally:
            for handle in handles:
                handle.remove()
            for block in self._model.blocks:
                del block.forward
        if len(self.called) < self._num_blocks:
            raise self._refuse(f"block {len(self.called)} of {len(self._model.blocks)} was never run")

    def _stop_behind(self, *_: Any) -> None:
        """What comes behind the blocks is not run; but a block that is run again has been seen before it."""
        if len(self.called) == self._num_blocks:
            raise _StopForwardError

    def _make_forward(self, index: int) -> Any:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            if index < len(self.called):
                raise self._refuse(f"block {index} is run again")
            if index > len(self.called):
                raise self._refuse(f"block {index} is run when block {len(self.called)} should be")
            given = [one for one in (*arguments, *keywords.values()) if isinstance(one, Tensor)]
            if self.hidden is None:
                self.hidden = given[0] if given else None
            if self.hidden is None or all(one is not self.hidden for one in given):
                raise self._refuse(f"block {index} is not given just what block {index - 1} returns")
            if any(one is extra for one in given for extra in self._extras or () if extra is not None):
                raise self._refuse(f"block {index} is given more of what block {index - 1} returns than hidden states")
            self.called.append((arguments, keywords))
            if self._until_first:
                raise _StopForwardError
            return self.hidden if self._extras is None else (self.hidden, *self._extras)

        return forward

    def _refuse(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._model.checkpoint.folder}: {self._model.path}: {what}; blocks that are run once each, every one on "
            "the hidden states of the one before, are known here",
            mend=_MEND,
        )


def _extras_of(returned: Any, hidden: Tensor | None, model: BlockModel) -> tuple[Any, ...] | None:
    """Stand-ins for all but the first of what a block returns; None when it returns a bare tensor."""
    states = _states_of(returned)
    if hidden is None or states.shape != hidden.shape:
        raise UnsupportedError(
            f"{model.checkpoint.folder}: {model.path}: a block makes hidden states of shape {list(states.shape)} from "
            f"{list(hidden.shape) if hidden is not None else 'nothing'}",
            mend=_MEND,
        )
    if isinstance(returned, Tensor):
        return None
    return tuple(torch.empty(0) if isinstance(one, Tensor) else None for one in returned[1:])


def _states_of(returned: Any) -> Tensor:
    states: Tensor = returned if isinstance(returned, Tensor) else returned[0]
    return states


def _tokens_of(batch: Mapping[str, Tensor]) -> Tensor | None:
    mask = batch.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask.bool()
