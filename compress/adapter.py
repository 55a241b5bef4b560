"""A PEFT adapter folder: opened with distrust, and judged on whether it can be merged exactly.

Everything that PEFT would do on loading and that is not the adapter's weights is refused here: pickles, the
import of modules named in the configuration, copies of layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint import Checkpoint, read_json, weights_digest
from compress.tensor_file import TensorFile
from edgesmith.errors import CheckpointError, MergeError, UsageError
from edgesmith.files import atomic_write

__all__ = [
    "EXACT_KINDS",
    "LINEAR_KINDS",
    "Adapter",
    "AdapterSpec",
    "check_combination",
    "check_recorded_base",
    "open_adapter",
    "record_base",
]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
BASE_RECORD_NAME = "base.json"

# PEFT kinds whose effect on each weight is a plain function of that weight, so that merging is exact.
EXACT_KINDS = frozenset({
    "ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT",
    "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD",
    "SHIRA", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
})  # fmt: skip

# Of these, the kinds that add a delta which does not depend on the base weight: they can be scaled and summed.
LINEAR_KINDS = frozenset({"LORA", "ADALORA", "LOHA", "LOKR"})

_PROMPT_KINDS = {
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "adaption prompts",
    "CPT": "context-aware prompt tuning",
    "CARTRIDGE": "a cartridge",
}
_USE_LORA = "Train with a kind that can be merged, such as LoRA."

_SIZES = ("r", "init_r", "target_r", "num_vectors", "vector_length", "n_frequency")

# Initialisations of LoRA that take the adapter's start out of the base weight.
_REBASED_STARTS = ("pissa", "olora")
_LOST_STARTS = {
    "pissa_niter": "a randomized SVD of the base, which cannot be repeated",
    "corda": "statistics of the training data",
    "lora_ga": "gradients on the training data",
    "loftq": "a base that was quantized for it",
}


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter to merge and how much of it."""

    path: Path
    weight: float = 1.0
    """Factor on the delta that the adapter adds to each weight: W + weight · ΔW."""


class Adapter:
    """An adapter folder whose configuration and weights were found to be sound and mergeable.

    Attributes:
        config: What `adapter_config.json` holds.
        file: The adapter's tensors, all finite.
    """

    def __init__(self, spec: AdapterSpec, config: dict[str, Any], file: TensorFile) -> None:
        self.path = spec.path
        self.weight = spec.weight
        self.config = config
        self.file = file

    @property
    def kind(self) -> str:
        """PEFT's name of the method, e.g. `LORA`."""
        return str(self.config["peft_type"])

    @property
    def is_linear(self) -> bool:
        """Whether it adds a delta that does not depend on the base weight."""
        variants = ("use_dora", "arrow_config", "alora_invocation_tokens", "use_bdlora", "monteclora_config")
        return self.kind in LINEAR_KINDS and not any(self.config.get(name) for name in variants)

    @property
    def rebased_start(self) -> str | None:
        """The initialisation that changed the base weights before training, to be repeated; usually None."""
        start = self.config.get("init_lora_weights")
        return start if self.kind == "LORA" and start in _REBASED_STARTS else None

    def describe(self) -> str:
        """Name the adapter in messages: folder and method."""
        return f"{self.path} ({self.kind})"


def open_adapter(spec: AdapterSpec) -> Adapter:
    """Open an adapter folder and check that it is safe, complete in itself, finite and mergeable.

    Raises:
        UsageError: the weight is not a finite number other than zero.
        CheckpointError: a file is missing, damaged or a pickle; a tensor holds a NaN or an infinity.
        MergeError: adapters of this kind, or with this setting, cannot be merged exactly.
    """
    if not math.isfinite(spec.weight) or spec.weight == 0:
        raise UsageError(f"adapter weight {spec.weight:g}", mend="Give a finite weight other than 0, or no adapter.")
    if not spec.path.is_dir():
        raise CheckpointError(f"{spec.path}: no such adapter folder", mend="Give the folder that PEFT wrote.")
    config = read_json(spec.path / CONFIG_NAME)
    _check_kind(spec.path, config)
    _check_settings(spec.path, config)
    weights = spec.path / WEIGHTS_NAME
    if not weights.is_file():
        raise _no_weights(spec.path)
    file = TensorFile(weights)
    if not file.entries:
        raise CheckpointError(f"{weights}: holds no tensor", mend="Save the adapter again after training.")
    _check_ranks(spec.path, config, file)
    file.check_finite()
    return Adapter(spec, config, file)


def check_combination(adapters: Sequence[Adapter]) -> None:
    """Check that the adapters may be scaled and summed as asked.

    Raises:
        MergeError: an adapter whose effect is no plain sum is scaled, or is one of several.
    """
    for adapter in adapters:
        if adapter.is_linear or (len(adapters) == 1 and adapter.weight == 1):
            continue
        asked = f"weight {adapter.weight:g}" if adapter.weight != 1 else f"one of {len(adapters)} adapters"
        raise MergeError(
            f"{adapter.describe()}: {asked}, but its effect depends on the base weight and is no delta to be "
            "scaled or summed",
            mend="Merge it alone, with weight 1. Deltas can be summed for LoRA without DoRA, AdaLoRA, LoHa and LoKr.",
        )


def record_base(adapter: Path, base: Path) -> None:
    """Write into an adapter's folder which base weights it was trained on, so that merging can check it.

    Args:
        adapter: The folder that PEFT wrote.
        base: The checkpoint that it was trained on.
    """
    atomic_write(adapter / BASE_RECORD_NAME, f'{{"weights_digest": "{weights_digest(base)}"}}\n')


def check_recorded_base(adapter: Adapter, base: Checkpoint, *, allow_other_base: bool) -> list[str]:
    """Compare the base with what the adapter recorded of the base it was trained on.

    A recorded hash decides. Without one, names can only be compared when both are hub ids: the adapter's from
    its configuration, the base's from its place in a model cache. Where the folder lay in training says nothing.

    Returns:
        Notes on what could not be compared.

    Raises:
        MergeError: another base was recorded, and `allow_other_base` is not set.
    """
    found, sure = _compare_recorded_base(adapter, base)
    if not sure:
        return [found] if found else []
    if allow_other_base:
        return [f"{found}; merged all the same, as asked"]
    record = adapter.path / BASE_RECORD_NAME
    change = f"remove {record}" if record.exists() else f"correct the base's name and revision in {CONFIG_NAME}"
    raise MergeError(
        f"{adapter.describe()}: {found}",
        mend=f"Merge into the base that the adapter was trained on. If you know that these are the same weights, "
        f"{change}.",
    )


def _compare_recorded_base(adapter: Adapter, base: Checkpoint) -> tuple[str, bool]:
    """Return what differs ('' for nothing), and whether that proves another base."""
    record = adapter.path / BASE_RECORD_NAME
    if record.exists():
        recorded, actual = read_json(record).get("weights_digest"), weights_digest(base.folder)
        return ("", False) if recorded == actual else (
            f"was trained on a base with weights {recorded}, this one has {actual}", True
        )  # fmt: skip
    recorded = str(adapter.config.get("base_model_name_or_path") or "")
    hub_id, commit = _cached_identity(base.folder)
    revision = str(adapter.config.get("revision") or "")
    if hub_id and recorded == hub_id and _is_commit(revision) and revision != commit:
        return f"was trained on revision {revision} of {hub_id}, this base is revision {commit}", True
    if hub_id and _is_hub_id(recorded) and recorded.split("/")[-1].lower() != hub_id.split("/")[-1].lower():
        return f"was trained on {recorded}, this base is {hub_id}", True
    if recorded and recorded not in (hub_id, str(base.folder)):
        return f"{adapter.path} records the base {recorded!r}; whether {base.folder} is the same is not known", False
    return "", False


def _is_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


def _cached_identity(folder: Path) -> tuple[str, str]:
    """Read hub id and commit off a path of a model cache: `…/models--org--name/snapshots/<commit>`."""
    parts = folder.absolute().parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return "", ""


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    if kind in EXACT_KINDS:
        return
    if kind in _PROMPT_KINDS:
        raise MergeError(
            f"{path}: {_PROMPT_KINDS[kind]} cannot be merged: it adds virtual tokens or attention inputs, "
            "no weight of the base changes",
            mend=f"Ship base and adapter side by side, or train again. {_USE_LORA}",
        )
    raise MergeError(
        f"{path}: adapters of kind {kind!r} cannot be merged exactly into single weights",
        mend=f"Kinds that can: {', '.join(sorted(EXACT_KINDS))}. {_USE_LORA}",
    )


def _check_settings(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("auto_map") or config.get("megatron_config"):
        raise CheckpointError(
            f"{path / CONFIG_NAME}: asks for modules of its own to be imported",
            mend="Code that a checkpoint names is never run here: train the adapter with plain PEFT.",
        )
    if config.get("layer_replication"):
        raise MergeError(
            f"{path}: layer_replication builds a deeper model from copies of the base's layers",
            mend="Save the replicated model as a checkpoint of its own and train the adapter on that.",
        )
    start = str(config.get("init_lora_weights"))
    for name, lost in _LOST_STARTS.items():
        if config["peft_type"] == "LORA" and start.startswith(name):
            raise MergeError(
                f"{path}: was started with init_lora_weights={start!r}, which changed the base by {lost}; "
                "the base it belongs to is not in this folder",
                mend="Save the adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
                "which turns it into a plain LoRA of the original base.",
            )


def _check_ranks(path: Path, config: Mapping[str, Any], file: TensorFile) -> None:
    """A rank makes PEFT allocate memory before any weight is looked at, so it must be one that the weights can have."""
    limit = max(4096, *(side for entry in file.entries.values() for side in entry.shape), 0)
    pattern = config.get("rank_pattern")
    named = {name: config.get(name) for name in _SIZES} | (pattern if isinstance(pattern, dict) else {})
    for name, value in named.items():
        if isinstance(value, int) and value > limit:
            raise CheckpointError(
                f"{path / CONFIG_NAME}: {name} is {value}, the largest side of any tensor is {limit}",
                mend="Configuration and weights are of two adapters: copy the adapter again.",
            )


def _no_weights(path: Path) -> CheckpointError:
    pickled = path / "adapter_model.bin"
    if pickled.exists():
        return CheckpointError(
            f"{pickled}: adapter weights as a pickle, which can run code when it is opened",
            mend="Load the adapter where it comes from and save it with safe_serialization=True.",
        )
    return CheckpointError(f"{path / WEIGHTS_NAME}: missing", mend="Give the folder that PEFT wrote.")
