"""Tables of embeddings as int8 rows: only the gathered rows are ever turned into floats."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.quantize.graph import Builder
from compress.quantize.layers import Embedding
from compress.quantize.result import QuantizedNode
from compress.quantize.weights import CodedWeight, code_weight

__all__ = ["EmbeddingRewriter"]


class EmbeddingRewriter:
    """Gather(table, ids) → Cast(Gather(codes, ids)) * Gather(scale, ids), with one scale a row."""

    def __init__(self, builder: Builder, clusters: int | None = None) -> None:
        self._builder = builder
        self._clusters = clusters
        self._tables: dict[ir.Value, tuple[ir.Value, ir.Value, CodedWeight]] = {}

    def rewrite_(self, layer: Embedding) -> QuantizedNode:
        """Replace one layer in its graph. Tables that several layers share are stored once."""
        node, name = layer.node, layer.node.name or "embedding"
        codes, scale, coded = self._table(layer)
        ids = node.inputs[1]
        make = self._builder.node
        [rows] = make("Gather", [codes, ids], name=f"{name}_codes", before=node)
        [scales] = make("Gather", [scale, ids], name=f"{name}_scales", before=node)
        to_float = {"to": int(ir.DataType.FLOAT)}
        [floats] = make("Cast", [rows], name=f"{name}_cast", before=node, attributes=to_float)
        self._builder.replace(node, make("Mul", [floats, scales], name=f"{name}_dequantized", before=node))
        return coded.as_node(node, layer.weight)

    def _table(self, layer: Embedding) -> tuple[ir.Value, ir.Value, CodedWeight]:
        if layer.weight not in self._tables:
            name = layer.weight.name or "table"
            coded = code_weight(layer.table, axis=0, clusters=self._clusters)
            codes = self._builder.constant(f"{name}_int8", coded.array.codes)
            scale = self._builder.constant(f"{name}_scale", coded.array.scale[:, np.newaxis])  # [V, 1]
            self._tables[layer.weight] = codes, scale, coded
        return self._tables[layer.weight]
