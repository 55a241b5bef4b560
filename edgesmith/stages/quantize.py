"""Quantize: fp32 ONNX artifact → INT8 ONNX artifact."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import Progress
from edgesmith.recipe import QuantizeOptions
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.stages.side_files import MODEL_FILE, add_reference, carry_files, close_graph
from edgesmith.tasks import load_task

if TYPE_CHECKING:
    from compress.quantize.config import DynamicInt8Config, StaticInt8Config
    from compress.quantize.result import QuantizeResult

__all__ = ["QuantizeStage"]

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class QuantizeStage(Stage):
    """Turn weights and activations into 8-bit integers, on ranges of real rows where the method needs them."""

    step: ClassVar[str] = "quantize"
    kind: ClassVar[Kind] = "onnx"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True  # the golden vectors are this processor's

    source: Artifact
    method: QuantizeOptions
    rows: Rows
    """Golden vectors are made of some of these."""
    calibration: Rows | None = None
    reference: Rows | None = None
    """Held-out rows that the artifact keeps a description of, which a server compares its requests with."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {
            **self.method.model_dump(mode="json"),
            "rows": self.rows.options,
            "calibration": self.calibration.options if self.calibration else None,
            "reference": self.reference.options if self.reference else None,
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        calibration = {"calibration": self.calibration.digest} if self.calibration else {}
        reference = {"reference": self.reference.digest} if self.reference else {}
        return {"source": self.source.digest, "rows": self.rows.digest, **calibration, **reference}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Quantize, copy the side files, make golden vectors."""
        from compress.quantize.stage import quantize_onnx

        if self.source.manifest.precision not in (None, "fp32"):
            raise UnsupportedError(
                f"{self.source.path}: is {self.source.manifest.precision} already; quantize takes an fp32 artifact",
                mend="Export the checkpoint again: edgesmith export CHECKPOINT -o fp32.",
            )
        task = load_task(self.source.folder, columns=self.rows.columns)
        examples = self.rows.read(task)
        feeds = None
        if self.calibration is not None:
            calibration = self.calibration.read(task)
            feeds = (task.encode([example]) for example in progress.track(calibration, "calibrate"))
        source = self.source.path if self.source.path.is_file() else self.source.file(MODEL_FILE)
        result = quantize_onnx(source, folder / MODEL_FILE, self._config(), feeds, progress=progress)
        self._check_patterns(result)
        _tell(result, folder, progress)
        carry_files(self.source.folder, folder)
        signature = close_graph(folder, task=task, examples=examples, precision="int8")
        if self.reference is not None:
            add_reference(folder, task=task, rows=self.reference, progress=progress)
        return self.seal(folder, task=task.name, precision="int8", signature=signature)

    def _check_patterns(self, result: QuantizeResult) -> None:
        """A pattern that matches nothing is a misspelt one."""
        names = [node.name for node in result.quantized] + [node.name for node in result.skipped]
        used = {node.reason for node in result.skipped}
        for pattern in self.method.exclude:
            if f"excluded by {pattern!r}" not in used and not any(fnmatchcase(name, pattern) for name in names):
                core = pattern.strip("*?")
                near = max(names, key=lambda name: SequenceMatcher(None, core, name).find_longest_match().size)
                raise UsageError(f"exclude {pattern!r} matches no layer", mend=f"A layer's name is {near!r}, say.")

    def _config(self) -> DynamicInt8Config | StaticInt8Config:
        from compress.quantize.config import DynamicInt8Config, LayerSelection, SmoothingConfig, StaticInt8Config

        if self.method.needs_calibration and self.calibration is None:
            raise UsageError(
                f"{self.method.method}{' with smoothing' if self.method.is_smoothed else ''} takes ranges from real "
                "rows, and none were given",
                mend="Name a file of them: --calibration train.jsonl, or data.calibration in a recipe. (--data are the "
                "rows that the result is compared on.)",
            )
        if self.calibration is not None and not self.method.needs_calibration:
            raise UsageError(
                "dynamic-int8 without smoothing takes no ranges from calibration rows, but some were given",
                mend="Add --smoothing, or leave --calibration out.",
            )
        select = LayerSelection(exclude=self.method.exclude)
        smoothing = SmoothingConfig() if self.method.is_smoothed else None
        reduce_range, clusters = self.method.reduce_range, self.method.clusters
        match self.method.method:
            case "dynamic-int8":
                return DynamicInt8Config(
                    select=select, reduce_range=reduce_range, smoothing=smoothing, clusters=clusters
                )
            case "static-int8":
                return StaticInt8Config(
                    select=select, reduce_range=reduce_range, smoothing=smoothing, clusters=clusters
                )


def _tell(result: QuantizeResult, folder: Path, progress: Progress) -> None:
    """Say what was left in float and why, and write all of it into the artifact's `quantization.json`."""
    progress.note(f"quantize: {len(result.quantized)} layers to int8, {len(result.skipped)} left in float")
    for reason, count in Counter(node.reason for node in result.skipped).most_common():
        names = [node.name for node in result.skipped if node.reason == reason]
        progress.note(f"  in float: {', '.join(names[:3])}{' …' if count > 3 else ''}: {reason}")
    bits, before = result.bits_per_weight, result.bits_before_sharing
    if bits != before:
        progress.note(f"  codes shared: {bits:.2f} bits a weight once compressed, {before:.2f} before")
    facts = {
        "bits_per_weight": bits,
        "bits_per_weight_before_sharing": before,
        "quantized": [asdict(node) for node in result.quantized],
        "in_float": [asdict(node) for node in result.skipped],
        "float_operators": dict(sorted(result.float_operators.items())),
        "activation_ranges": {name: list(bounds) for name, bounds in sorted(result.activation_ranges.items())},
    }
    atomic_write(folder / "quantization.json", json.dumps(facts, indent=1) + "\n")
