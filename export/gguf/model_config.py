"""The settings of a checkpoint's `config.json`, with the defaults of its architecture, read with types checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.quiet import quiet_libraries
from edgesmith.errors import CheckpointError, UnsupportedError

__all__ = ["ModelConfig", "load_config"]

_MEND = "The file and the weights must be of one model: get both from one source."


class ModelConfig:
    """What an architecture's configuration says, by the names that transformers gives to all architectures.

    Args:
        source: The configuration object.
        path: For messages.
    """

    def __init__(self, source: Any, path: Path) -> None:
        self._source = source
        self.path = path

    @property
    def model_type(self) -> str:
        """The architecture, as transformers calls it."""
        return str(self._source.model_type)

    def get(self, key: str) -> Any:
        """Look a setting up; None when the architecture has none of this name."""
        return getattr(self._source, key, None)

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Look up a whole number from 1 to 2³¹ − 1.

        Raises:
            CheckpointError: it is missing without a default, or something else.
        """
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < 1 << 31:
            raise CheckpointError(f"{self.path}: {key} is {value!r}, expected a positive whole number", mend=_MEND)
        return value

    def number(self, key: str) -> float:
        """Look up a finite number.

        Raises:
            CheckpointError: it is missing or something else.
        """
        return as_number(self.get(key), key, self.path)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Look up an object; an empty one when it is missing.

        Raises:
            CheckpointError: it is something else.
        """
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, expected an object", mend=_MEND)
        return value

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        heads = self.integer("num_attention_heads")
        return self.integer("head_dim", default=self.integer("hidden_size") // heads)

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries, or fewer."""
        return self.integer("num_key_value_heads", default=self.integer("num_attention_heads"))

    def require(self, key: str, *allowed: Any, why: str) -> None:
        """Refuse a setting that the runtime's code for this architecture does not have.

        Raises:
            UnsupportedError: the value is none of those allowed.
        """
        value = self.get(key)
        if value not in allowed:
            shown = " or ".join(repr(one) for one in allowed)
            raise UnsupportedError(
                f"{self.path}: {key} is {value!r}; {why} {shown}",
                mend="Choose another format for this checkpoint, such as onnx.",
            )


def as_number(value: Any, key: str, path: Path) -> float:
    """Check that a value is a finite number.

    Raises:
        CheckpointError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e38:
        raise CheckpointError(f"{path}: {key} is {value!r}, expected a number", mend=_MEND)
    return float(value)


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` with the architecture's defaults; of a model of several parts, the text part.

    Raises:
        CheckpointError: the file does not fit its architecture.
        UnsupportedError: transformers does not know the architecture.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        with quiet_libraries():
            source = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (KeyError, ImportError, ValueError) as error:
        raise UnsupportedError(
            f"{path}: transformers cannot read this configuration: {_first_line(error)}",
            mend="Use a checkpoint whose architecture transformers itself has, or name a converter that knows it with "
            "`converter:` in the target.",
        ) from error
    except Exception as error:  # its validators raise classes of their own
        raise CheckpointError(f"{path}: {_first_line(error)}", mend=_MEND) from error
    return ModelConfig(source.get_text_config(), path)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
