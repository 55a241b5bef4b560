"""Orders in which GGUF wants the rows of a weight: index arrays for the first axis, and nothing else.

Axes: H heads, D width of a head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["interleave_rotary", "split_fused_heads"]


def interleave_rotary(num_heads: int, head_dim: int) -> NDArray[np.intp]:
    """Order the rows of a query or key projection for rotation of neighbouring pairs.

    Transformers rotates row i of a head with row i + D/2; llama.cpp's code for some architectures rotates row 2i
    with row 2i + 1.

    Returns:
        Positions in the checkpoint's weight, shape [H * D].

    >>> interleave_rotary(1, 6).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    order_HPR = np.arange(num_heads * head_dim).reshape(num_heads, 2, head_dim // 2)  # P: half, R: rotation
    return order_HPR.swapaxes(1, 2).reshape(-1)


def split_fused_heads(num_heads: int, head_dim: int) -> NDArray[np.intp]:
    """Order the rows of a projection that holds query, key and value head by head: all queries, keys, values.

    Returns:
        Positions in the checkpoint's weight, shape [3 * H * D].

    >>> split_fused_heads(2, 1).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    order_HTD = np.arange(3 * num_heads * head_dim).reshape(num_heads, 3, head_dim)  # T: query, key, value
    return order_HTD.swapaxes(0, 1).reshape(-1)
