"""LoRA adapters in GGUF: what `generate` is given beside a model, and what is no model by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgesmith.errors import UnsupportedError, UsageError

__all__ = ["adapter_files", "check_speaks"]


def adapter_files(given: Sequence[str | Path]) -> list[tuple[Path, float]]:
    """Find the files of adapters.

    Args:
        given: Artifacts of kind `gguf-adapter` or bare `.gguf` files, or `path:scale`.

    Returns:
        File and scale of each.

    Raises:
        UsageError: there is no such file, or a scale is no number.
        ArtifactError: an artifact is damaged.
        UnsupportedError: it is something else than an adapter in GGUF.
    """
    from edgesmith.api.steps import weighted

    return [(_file(path), scale) for path, scale in map(weighted, given)]


def _file(path: Path) -> Path:
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.gguf_adapter import ADAPTER_FILE

    if (path / "adapter_config.json").is_file():
        raise UnsupportedError(
            f"--adapter {path}: is a PEFT adapter, and the engine loads GGUF",
            mend=f"Convert it: edgesmith export {path} --base CHECKPOINT --format gguf -o ADAPTER.",
        )
    if path.is_dir():
        return open_artifact(path, kinds=("gguf-adapter",)).file(ADAPTER_FILE)
    if not path.is_file():
        raise UsageError(f"--adapter {path}: no such file or folder", mend="Check the path.")
    if not _is_adapter(path):
        raise UnsupportedError(f"--adapter {path}: is a whole model, no LoRA adapter")
    return path


def check_speaks(model: Path) -> None:
    """Refuse what is an adapter alone, before an engine is loaded.

    Raises:
        UnsupportedError: it is a LoRA adapter in GGUF.
        ArtifactError: it is damaged.
    """
    from edgesmith.artifact import MANIFEST, read_manifest

    is_adapter = (model / MANIFEST).is_file() and read_manifest(model).kind == "gguf-adapter"
    if model.is_file() and model.suffix == ".gguf":
        is_adapter = _is_adapter(model)
    if is_adapter:
        raise UnsupportedError(
            f"{model}: is a LoRA adapter, which writes nothing without its base",
            mend=f"Open the base and give this with it: edgesmith generate BASE PROMPT --adapter {model}.",
        )


def _is_adapter(path: Path) -> bool:
    from serve.runtime.gguf_file import read_gguf

    return read_gguf(path).metadata.get("general.type") == "adapter"
