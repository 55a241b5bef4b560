"""Tables of embeddings as int8 rows: only the gathered rows are ever turned into floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.quantize.graph import Builder
from compress.quantize.kernels import quantize_symmetric, relative_error
from compress.quantize.layers import Embedding
from compress.quantize.result import QuantizedNode

__all__ = ["EmbeddingRewriter"]


class EmbeddingRewriter:
    """Gather(table, ids) → Cast(Gather(codes, ids)) * Gather(scale, ids), with one scale a row."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._tables: dict[ir.Value, tuple[ir.Value, ir.Value, float]] = {}

    def rewrite_(self, layer: Embedding) -> QuantizedNode:
        """Replace one layer in its graph. Tables that several layers share are stored once."""
        node, name = layer.node, layer.node.name or "embedding"
        codes, scale, error = self._table(layer)
        ids = node.inputs[1]
        make = self._builder.node
        [rows] = make("Gather", [codes, ids], name=f"{name}_codes", before=node)
        [scales] = make("Gather", [scale, ids], name=f"{name}_scales", before=node)
        to_float = {"to": int(ir.DataType.FLOAT)}
        [floats] = make("Cast", [rows], name=f"{name}_cast", before=node, attributes=to_float)
        self._builder.replace(node, make("Mul", [floats, scales], name=f"{name}_dequantized", before=node))
        return QuantizedNode(name, node.op_type, layer.weight.name or "", layer.table.shape, error)

    def _table(self, layer: Embedding) -> tuple[ir.Value, ir.Value, float]:
        if layer.weight not in self._tables:
            name = layer.weight.name or "table"
            array = quantize_symmetric(layer.table, axis=0)
            codes = self._builder.constant(f"{name}_int8", array.codes)
            scale = self._builder.constant(f"{name}_scale", array.scale[:, np.newaxis])  # [V, 1]
            self._tables[layer.weight] = codes, scale, relative_error(layer.table, array)
        return self._tables[layer.weight]
