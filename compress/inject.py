"""PEFT's layers in a weightless model: its configuration, its injection, its warnings."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

from compress.adapter import Adapter
from compress.skeleton import quiet_transformers
from edgesmith.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["inject_layers", "load_peft_config", "peft_speaks_up"]


def load_peft_config(adapter: Adapter) -> tuple[Any, str | None]:
    """Read an adapter's configuration into PEFT's class for it.

    Returns:
        The configuration, and the start that has to be repeated on each base weight; usually None. PEFT gets to
        see an ordinary start instead, because a skeleton has no weights to start from.

    Raises:
        MergeError: PEFT does not accept it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(adapter.path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MergeError(
            f"{adapter.path / 'adapter_config.json'}: PEFT does not accept it: {error}",
            mend="Check the configuration; an adapter of a newer PEFT may need a newer PEFT here.",
        ) from error
    config.inference_mode = True
    start = adapter.rebased_start
    if start is not None:
        config.init_lora_weights = True
    return config, start


def inject_layers(adapter: Adapter, config: Any, skeleton: Any) -> Any:
    """Have PEFT put the adapter's layers into the skeleton, freshly initialized.

    Raises:
        MergeError: they do not fit, or PEFT cannot merge such layers.
    """
    whole = set(getattr(config, "modules_to_save", None) or ())
    for path, module in skeleton.named_modules():
        if whole & {path, path.rpartition(".")[2]} or any(path.endswith(f".{name}") for name in whole):
            module.to("meta")  # PEFT copies these modules, and a copy of shared zeros would take real memory
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    try:
        with warnings.catch_warnings(), quiet_transformers(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            model = model_class(skeleton, config)
            model.base_model._check_merge_allowed()
    except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise MergeError(
            f"{adapter.describe()}: does not fit this base: {error}",
            mend="Give the base that the adapter was trained on "
            f"(it records {adapter.config.get('base_model_name_or_path')!r}).",
        ) from error
    return model.eval()


@contextmanager
def peft_speaks_up(adapter: Adapter) -> Iterator[None]:
    """A warning while merging means that PEFT did not do, or not exactly, what was asked: make it an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        from_peft = "peft" in Path(warning.filename).parts and issubclass(
            warning.category, (UserWarning, RuntimeWarning)
        )
        if from_peft and not str(warning.message).startswith("Sparse invariant checks"):
            raise MergeError(
                f"{adapter.describe()}: PEFT warns while merging: {warning.message}",
                mend="Merge adapters that PEFT merges exactly, or ship base and adapter side by side.",
            )
