"""What an activation's scale and zero point make of values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.quantize.kernels import ActivationScale


def fake_quantize(values: NDArray[np.float32], parameters: ActivationScale) -> NDArray[np.float32]:
    """Round `values` to what their codes stand for; values out of range are clipped."""
    low, high = (-128, 127) if parameters.signed else (0, 255)
    codes = np.clip(np.rint(values / parameters.scale) + parameters.zero_point, low, high)
    return np.asarray((codes - parameters.zero_point) * parameters.scale, dtype=np.float32)
