"""ONNX models on ONNX Runtime's CPU provider."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature, TensorSpec
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from serve.runtime import EngineOptions
from serve.runtime.arrays import check_inputs
from serve.runtime.onnx_file import ExternalData, OnnxFile, read_onnx

__all__ = ["OnnxEngine", "open_engine", "preflight"]

# Operator domains that ONNX Runtime's CPU build implements itself.
_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
# Operators that load native code, compiled blobs or other files.
_REFUSED = frozenset({("com.microsoft", "EPContext"), ("com.microsoft", "PyOp"), ("com.microsoft", "PythonOp")})
_SOURCE = re.compile(r"\s?/\S+\.(?:cc|h):\d+ (?:.*?\) )?")
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxEngine:
    """One ONNX Runtime session; `run` may be called from several threads."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session = session
        self.signature = signature
        self.name = f"onnxruntime {onnxruntime.__version__} (CPU)"
        self._output_names = [output.name for output in signature.outputs]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `serve.runtime.Engine`."""
        if self._session is None:
            raise UsageError("the engine is closed", mend="Open the artifact again.")
        check_inputs(self.signature.inputs, arrays)
        return self.run_checked(arrays)

    def run_checked(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As `run`, of arrays that are known to fit the signature; saves about 10 µs."""
        if self._session is None:
            raise UsageError("the engine is closed", mend="Open the artifact again.")
        try:
            values = self._session.run(self._output_names, arrays if type(arrays) is dict else dict(arrays))
        except Exception as error:  # the library's errors share no other base
            raise UsageError(
                f"ONNX Runtime could not run these inputs: {_first_line(error)}",
                mend="Check that values are in range (token ids below the vocabulary's size) and lengths within "
                "the model's limit.",
            ) from error
        return dict(zip(self._output_names, values, strict=True))

    def end_profile(self) -> Path:
        """End a trace that `EngineOptions.profile_to` asked for.

        Returns:
            The trace: a JSON array of events, those of one run between its `model_run` event's start and end.

        Raises:
            UsageError: The engine is closed.
        """
        if self._session is None:
            raise UsageError("the engine is closed", mend="End the trace before closing it.")
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session."""
        self._session = None


def open_engine(artifact: Artifact, options: EngineOptions) -> OnnxEngine:
    """Open an artifact of kind `onnx`; see `serve.runtime.open_engine`."""
    path = model_path(artifact)
    preflight(artifact, path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 4  # errors are raised, and a client's mistakes must not fill the log
    if options.profile_to is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile_to / "trace")
    if not options.packs_weights:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=["CPUExecutionProvider"],
            # It pads convolutions' channels to whole vectors, and a trace would show the padding as work.
            disabled_optimizers=None if options.packs_weights else ["NchwcTransformer"],
        )
    except Exception as error:  # the library's errors share no other base
        if type(error).__name__ == "NotImplemented":
            raise UnsupportedError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} lacks an operator of it: {_first_line(error)}",
                mend="Install a newer onnxruntime, or export with an older operator set.",
            ) from error
        raise ArtifactError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}",
            mend="If the model is sound, it may need a newer onnxruntime.",
        ) from error
    signature = _session_signature(session, path)
    if artifact.manifest.signature is not None:
        _compare(artifact.manifest.signature, signature, path)
    return OnnxEngine(session, signature)


def model_path(artifact: Artifact) -> Path:
    """The artifact's model file.

    Raises:
        ArtifactError: It has none.
    """
    return artifact.path if artifact.path.is_file() else artifact.file("model.onnx")


def preflight(artifact: Artifact, path: Path) -> OnnxFile:
    """Look at a model file before native code does.

    Returns:
        What the file says of itself.

    Raises:
        ArtifactError: It is damaged, or its weights are to be read from where the artifact has no file.
        UnsupportedError: It needs operators that ONNX Runtime's CPU build does not have.
    """
    found = read_onnx(path)
    for domain, operator in sorted(found.operators):
        if (domain, operator) in _REFUSED:
            raise UnsupportedError(f"{path}: the operator {domain}::{operator} runs code from outside the model")
        if domain not in _DOMAINS and (domain, operator) not in found.functions:
            raise UnsupportedError(
                f"{path}: the operator {domain}::{operator} needs a custom operator library; none is ever loaded",
                mend="Export the model with standard operators.",
            )
    if not found.signature.outputs:
        raise ArtifactError(f"{path}: the model has no outputs")
    listed = {entry.path: entry.size_bytes for entry in artifact.manifest.files}
    for external in found.external:
        _check_external(path, external, listed)
    return found


def _check_external(path: Path, external: ExternalData, listed: Mapping[str, int]) -> None:
    """Refuse weights outside the artifact, behind a link, or beyond the end of their file."""
    location = external.location
    pure = PurePosixPath(location)
    leaves = pure.is_absolute() or PureWindowsPath(location).drive or ".." in pure.parts or "\\" in location
    if not location or leaves or "\0" in location:
        raise ArtifactError(
            f"{path}: the tensor {external.tensor!r} is stored at {location!r}, which leaves the artifact",
            mend="Do not trust this file. A sound model keeps its weights beside itself.",
        )
    target = path.parent / pure
    if any(part.is_symlink() for part in (target, *target.parents[: len(pure.parts) - 1])):
        raise ArtifactError(
            f"{target}: holds weights, but is a link", mend="Put a copy of the file itself beside the model."
        )
    if not target.is_file():
        raise ArtifactError(
            f"{target}: is missing; the tensor {external.tensor!r} is stored there",
            mend="Copy the file to where the model is: it is a part of it.",
        )
    state = target.stat()
    if state.st_nlink > 1:
        raise ArtifactError(
            f"{target}: holds weights, but has {state.st_nlink} hard links",
            mend="Put a copy of the file itself beside the model.",
        )
    if str(pure) not in listed:
        raise ArtifactError(
            f"{target}: holds weights, but the manifest does not name it",
            mend=f"Rename it to {path.name}.data and export the model again.",
        )
    end = external.offset + (external.length or 0)
    if external.offset < 0 or (external.length or 0) < 0 or end > state.st_size:
        raise ArtifactError(
            f"{target}: has {state.st_size:,} bytes, but the tensor {external.tensor!r} is at "
            f"{external.offset:,} to {end:,}",
            mend="Get the artifact again from where it was made.",
        )


def _session_signature(session: Any, path: Path) -> Signature:
    return Signature(
        inputs=tuple(_spec(value, path) for value in session.get_inputs()),
        outputs=tuple(_spec(value, path) for value in session.get_outputs()),
    )


def _spec(value: Any, path: Path) -> TensorSpec:
    kind = str(value.type)
    if not kind.startswith("tensor("):
        raise UnsupportedError(f"{path}: {value.name!r} is a {kind}, not a tensor")
    element = kind.removeprefix("tensor(").removesuffix(")")
    shape = tuple(
        axis if isinstance(axis, (int, str)) else f"{value.name}_axis{position}"
        for position, axis in enumerate(value.shape)
    )
    return TensorSpec(name=value.name, dtype=_DTYPES.get(element, element), shape=shape)


def _compare(stated: Signature, actual: Signature, path: Path) -> None:
    """Refuse a model that takes or gives other tensors than its manifest says; free axes may be named anew."""
    for role in ("inputs", "outputs"):
        expected = {spec.name: spec for spec in getattr(stated, role)}
        found = {spec.name: spec for spec in getattr(actual, role)}
        if expected.keys() != found.keys():
            raise ArtifactError(
                f"{path}: the manifest says the {role} are {', '.join(sorted(expected))}; "
                f"the model has {', '.join(sorted(found))}"
            )
        for name, spec in expected.items():
            other = found[name]
            clash = any(
                isinstance(one, int) and isinstance(two, int) and one != two
                for one, two in zip(spec.shape, other.shape, strict=False)
            )
            if spec.dtype != other.dtype or len(spec.shape) != len(other.shape) or clash:
                raise ArtifactError(
                    f"{path}: the manifest says {name!r} is {spec.dtype}{list(spec.shape)}; "
                    f"in the model it is {other.dtype}{list(other.shape)}"
                )


def _first_line(error: Exception) -> str:
    """What went wrong, without the library's own source files, which tell a client nothing."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _SOURCE.sub("", first)
