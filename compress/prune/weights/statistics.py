"""What the matrices of a block are fed with: norms, XᵀX and a few rows of their inputs.

Shapes: T tokens, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compress.prune.weights.blocks import Matrix
from edgesmith.errors import DataError, UnsupportedError

__all__ = ["InputStatistics", "LayerInputs"]

_SAMPLE_TOKENS = 1024


class LayerInputs:
    """Statistics of the inputs of one layer, or of several that share them.

    Args:
        num_inputs: Width.
        needs_gram: Whether XᵀX is added up, too.

    Attributes:
        num_tokens: How many rows were added.
        squares: Σ x², float64 of shape [I].
        gram: XᵀX, float32 of shape [I, I].
    """

    def __init__(self, num_inputs: int, *, needs_gram: bool) -> None:
        self.num_tokens = 0
        self.squares = torch.zeros(num_inputs, dtype=torch.float64)
        self.gram = torch.zeros(num_inputs, num_inputs) if needs_gram else None
        self._sample: list[Tensor] = []

    @property
    def norms(self) -> Tensor:
        """‖x‖ of every input over all tokens, float64 of shape [I]."""
        return self.squares.sqrt()

    def add(self, states_TI: Tensor, num_sampled: int) -> None:
        """Add rows, and keep a few of them, evenly taken."""
        self.num_tokens += len(states_TI)
        self.squares += states_TI.double().square_().sum(dim=0)
        if self.gram is not None:
            self.gram.addmm_(states_TI.T, states_TI)
        if len(states_TI):
            places = torch.arange(min(num_sampled, len(states_TI))) * len(states_TI) // num_sampled
            self._sample.append(states_TI[places])

    def relative_error(self, weight_OI: Tensor, pruned_OI: Tensor) -> float:
        """How far the outputs move: ‖X (W - Ŵ)ᵀ‖ / ‖X Wᵀ‖ over the rows that were kept; 0 where W gives zeros."""
        sample_TI = torch.cat(self._sample)
        before = float((sample_TI @ weight_OI.T).double().norm())
        moved = float((sample_TI @ (weight_OI - pruned_OI).T).double().norm())
        return moved / before if before else 0.0


class InputStatistics:
    """Listens at the matrices of a block while it is run.

    Args:
        matrices: Of the block.
        num_batches: That will be run.
        needs_gram: Whether XᵀX is added up.
    """

    def __init__(self, matrices: Sequence[Matrix], *, num_batches: int, needs_gram: bool) -> None:
        self._names = {matrix.module: matrix.name for matrix in matrices}
        self._widths = {matrix.module: matrix.weight().shape[1] for matrix in matrices}
        self._needs_gram = needs_gram
        self._num_sampled = max(1, _SAMPLE_TOKENS // num_batches)
        self._inputs: dict[nn.Module, LayerInputs] = {}
        self._first: dict[nn.Module, nn.Module] = {}  # layer → the one whose inputs are its own, too
        self._tokens: Tensor | None = None
        self._heard: list[tuple[Tensor, nn.Module]] = []  # of the batch that is being run

    @contextmanager
    def listening(self, tokens: Tensor | None) -> Iterator[None]:
        """Listen while one batch is run.

        Args:
            tokens: Bool of shape [rows, length], false at padding, which does not count.
        """
        self._tokens = tokens
        handles = [module.register_forward_pre_hook(self._hear) for module in self._names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._heard.clear()

    def of(self, matrix: Matrix, where: str) -> LayerInputs:
        """What a layer was fed with.

        Raises:
            UnsupportedError: nothing.
            DataError: values that are no numbers.
        """
        first = self._first.get(matrix.module)
        if first is None or not self._inputs[first].num_tokens:
            raise UnsupportedError(
                f"{where}: {matrix.name} was given no inputs on the calibration data",
                mend="Calibrate on more data; or prune by magnitude, which needs none.",
            )
        inputs = self._inputs[first]
        if not bool(torch.isfinite(inputs.squares).all()):
            raise DataError(
                f"{where}: {matrix.name} was given values that are not finite on the calibration data",
                mend="Look at the calibration data, and whether the checkpoint works at all.",
            )
        return inputs

    def _hear(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        states = arguments[0]
        if module not in self._first:
            shared = next((other for heard, other in self._heard if heard is states), module)
            self._first[module] = shared
            if shared is module:
                self._inputs[module] = LayerInputs(self._widths[module], needs_gram=self._needs_gram)
        if self._first[module] is module:
            self._heard.append((states, module))
            self._inputs[module].add(self._rows(states), self._num_sampled)

    def _rows(self, states: Tensor) -> Tensor:
        if self._tokens is not None and states.shape[:2] == self._tokens.shape:
            return states[self._tokens]
        return states.reshape(-1, states.shape[-1])
