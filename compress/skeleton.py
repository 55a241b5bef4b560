"""A model's architecture without its weights.

The skeleton's parameters have the right shape and type but share a single zero each, so a model of any size
takes next to no memory, and yet everything that looks at shapes, dtypes and devices works as on a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from compress.checkpoint import Checkpoint
from edgesmith.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "INDEX_DTYPES",
    "TORCH_DTYPES",
    "build_skeleton",
    "embeddings_of",
    "load_config",
    "quiet_transformers",
    "resolve_model_class",
    "zero_parameter",
]

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

INDEX_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

_TASK_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


# A model of a billion layers would be built, weightless, for hours.
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing to the terminal: what matters is checked here and raised."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def load_config(checkpoint: Checkpoint) -> Any:
    """Read a checkpoint's configuration into transformers' class for it.

    Raises:
        CheckpointError: transformers does not know the model type, or refuses the values; or they cannot be those
            of these weights.
    """
    for key in _LAYER_COUNTS:
        layers = checkpoint.config.get(key)
        if isinstance(layers, int) and layers > len(checkpoint.entries):
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: {key} is {layers}, but there are only {len(checkpoint.entries)} "
                "tensors",
                mend="config.json and weights are of two models: copy the checkpoint again.",
            )
    try:
        with quiet_transformers():
            return transformers.AutoConfig.from_pretrained(
                str(checkpoint.folder), local_files_only=True, trust_remote_code=False
            )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: transformers {transformers.__version__} does not accept it: "
            f"{_first_line(error)}",
            mend="Check model_type and the values; a newer model may need a newer transformers.",
        ) from error


def resolve_model_class(config: Any, *, requested: str | None, task_types: Sequence[str | None]) -> type[Any]:
    """Find the model class that an adapter was trained with.

    Args:
        config: The base's configuration.
        requested: Name of an auto class or model class of transformers; decides when given.
        task_types: What the adapters record; the first one that transformers has for this model type counts.

    Returns:
        A class of transformers. Without request and record: the one that the base's configuration names.

    Raises:
        UsageError: transformers has no such class.
        CheckpointError: nothing names a class.
    """
    if requested is not None:
        found = _class_named(config, requested)
        if found is None:
            raise UsageError(
                f"{requested}: transformers has no such class for model type {config.model_type!r}",
                mend="Give an auto class, e.g. AutoModelForSequenceClassification, or the model class itself.",
            )
        return found
    for task_type in task_types:
        if (
            isinstance(task_type, str)
            and task_type in _TASK_CLASSES
            and (found := _class_named(config, _TASK_CLASSES[task_type]))
        ):
            return found
    for architecture in config.architectures or []:
        if found := _class_named(config, architecture):
            return found
    raise CheckpointError(
        f"neither the adapter (task_type) nor the base's config.json (architectures: {config.architectures}) "
        f"names a class that transformers has for model type {config.model_type!r}",
        mend="Give the model class, e.g. AutoModelForSequenceClassification.",
    )


def _class_named(config: Any, name: str) -> type[Any] | None:
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type):
        return None
    mapping = getattr(found, "_model_mapping", None)
    if mapping is not None:  # its truth value would import every model there is
        if type(config) not in mapping:
            return None
        known = mapping[type(config)]
        candidates = list(known) if isinstance(known, (list, tuple)) else [known]
        named = [candidate for candidate in candidates if candidate.__name__ in (config.architectures or [])]
        found = (named or candidates)[0]
    return found if issubclass(found, transformers.PreTrainedModel) else None


def build_skeleton(config: Any, model_class: type[Any]) -> Any:
    """Build a model whose parameters take no memory, in float32 and evaluation mode.

    Raises:
        CheckpointError: the configuration describes no possible model.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            model = model_class._from_config(copy.deepcopy(config), dtype=torch.float32)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, ImportError) as error:
        raise CheckpointError(
            f"config.json: no {model_class.__name__} can be built from it: {_first_line(error)}",
            mend="Check the configuration against the model's documentation.",
        ) from error
    parameters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = parameters.setdefault(id(parameter), zero_parameter(parameter.shape))
                module._parameters[name] = zeros
    return model.eval()


def embeddings_of(model: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """Find the input and output embeddings; None where the model has none, as one of images has not."""
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:
        return None, None


def zero_parameter(shape: Sequence[int]) -> nn.Parameter:
    """Make a parameter of zeros that all lie in one place: it takes four bytes, whatever its shape."""
    return nn.Parameter(torch.zeros(()).expand(tuple(shape)), requires_grad=False)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
