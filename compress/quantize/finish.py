"""Last rewrites and the written file: everything out that a runtime does not read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgesmith.files import storage_errors, temporary_sibling

__all__ = ["LARGEST_SINGLE_FILE_BYTES", "clean_", "model_size_bytes", "write_model"]

T = TypeVar("T")

# protobuf cannot hold more than 2 GiB in a message; the graph itself needs room too.
LARGEST_SINGLE_FILE_BYTES = (2 << 30) - (64 << 20)


def clean_(model: ir.Model) -> None:
    """Remove unused nodes, duplicate constants, notes of the exporter, and shapes that a runtime infers."""
    RemoveUnusedNodesPass()(model)
    DeduplicateInitializersPass(size_limit=4096)(model)
    RemoveUnusedOpsetsPass()(model)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def write_model(
    model: ir.Model,
    destination: Path,
    check: Callable[[Path], T],
    *,
    single_file_bytes: int = LARGEST_SINGLE_FILE_BYTES,
) -> T:
    """Write `destination`, with `destination`.data beside it when one file cannot hold the weights.

    A failure leaves neither file, and what was there before as it was.

    Args:
        model: What to write.
        destination: Where it appears, whole or not at all.
        check: Called with the written file before it appears; whatever it raises stops that.
        single_file_bytes: Weights of more bytes are written beside the graph.

    Returns:
        What `check` returned.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    external = f"{destination.name}.data" if sum(w.nbytes for w in weights) > single_file_bytes else None
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = temporary_sibling(destination)
        try:
            folder.mkdir()
            ir.save(model, folder / destination.name, external_data=external, size_threshold_bytes=1024)
            checked = check(folder / destination.name)
            beside = destination.with_name(f"{destination.name}.data")
            if external:
                (folder / external).replace(beside)
            (folder / destination.name).replace(destination)
            if not external:
                beside.unlink(missing_ok=True)
            return checked
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def model_size_bytes(model: ir.Model, path: Path) -> int:
    """Return the size of an ONNX file together with the external data that it names.

    Args:
        model: As read from the file, not yet changed.
        path: The file.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    names = {tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return path.stat().st_size + sum((path.parent / str(name)).stat().st_size for name in names)
