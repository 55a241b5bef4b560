"""Requests' arrays against a signature, faster than `serve.runtime.arrays` for those that are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Signature, TensorSpec
from serve.models.batching import Layout
from serve.runtime.arrays import check_inputs

__all__ = ["Validator"]


class Validator:
    """A signature's checks, worked out beforehand."""

    def __init__(self, signature: Signature, layout: Layout) -> None:
        self.layout = layout
        self._specs = signature.inputs
        self._first = signature.inputs[0].name if signature.inputs else ""
        # Inputs of one shape in the signature are compared with the first of them; others are left to `check_inputs`.
        shapes = {spec.shape for spec in signature.inputs}
        self._is_simple = len(shapes) == 1 and all(_is_plain(spec) for spec in signature.inputs)
        self._dtypes = [(spec.name, np.dtype(spec.dtype)) for spec in signature.inputs] if self._is_simple else []
        shape = next(iter(shapes)) if self._is_simple else ()
        self._num_axes = len(shape)
        skipped = 1 if layout.rows == "single" else 0
        self._fixed = [(at, axis) for at, axis in enumerate(shape) if isinstance(axis, int) and at >= skipped]

    def num_rows(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Length of the axis of rows."""
        return 1 if self.layout.rows == "none" else int(arrays[self._first].shape[0])

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Check arrays; see `GraphModel.validate`."""
        if self._is_simple and self._fits(arrays):
            return self.num_rows(arrays)
        if self.layout.rows == "single":
            self._check_single(arrays)
        else:
            check_inputs(self._specs, arrays)
        return self.num_rows(arrays)

    def _fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether arrays are right beyond doubt."""
        if len(arrays) != len(self._dtypes) or self._first not in arrays:
            return False
        shape = arrays[self._first].shape
        if len(shape) != self._num_axes or 0 in shape:
            return False
        for at, length in self._fixed:
            if shape[at] != length:
                return False
        for name, dtype in self._dtypes:
            array = arrays.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                return False
        return True

    def _check_single(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check each input with any number of rows, the same for all."""
        free = [TensorSpec(name=spec.name, dtype=spec.dtype, shape=("rows", *spec.shape[1:])) for spec in self._specs]
        check_inputs(free, arrays)


def _is_plain(spec: TensorSpec) -> bool:
    """Whether an input's checks are those of a NumPy dtype and of axes that each have a name of their own."""
    names = [axis for axis in spec.shape if isinstance(axis, str)]
    try:
        np.dtype(spec.dtype)
    except TypeError:
        return False
    return len(set(names)) == len(names) and spec.dtype != "string"
