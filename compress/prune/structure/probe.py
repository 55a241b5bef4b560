"""Find a model's dimensions by changing its configuration and looking at which tensors change shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.prune.rebuild import change_config, get_setting
from compress.prune.structure.layout import Dimension, Side, Site
from compress.skeleton import build_skeleton
from edgesmith.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DIMENSIONS", "Probed", "probe_dimension", "tensors_of"]

DIMENSIONS = ("ffn", "heads", "hidden", "channels")

_FFN = (
    "intermediate_size", "hidden_dim", "d_ff", "n_inner", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim",
    "decoder_ffn_dim", "dim_feedforward",
)  # fmt: skip
_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A dimension whose tensors are known, but not yet how they belong together."""

    dimension: Dimension
    sites: tuple[Site, ...]
    unit_counts: tuple[int, ...]
    """What may be a unit: so many in the whole width."""


def probe_dimension(model: PreTrainedModel, name: str) -> list[Probed]:
    """Find a dimension; several where each stage of a CNN has a width of its own.

    Args:
        model: Of transformers, with real weights.
        name: One of `DIMENSIONS`.

    Raises:
        UnsupportedError: the model has no such dimension, or it cannot be changed on its own; the message says
            which setting and which tensors are in the way.
    """
    found: list[Probed] = []
    done: set[str] = set()
    complaints: list[str] = []
    for candidates in _candidates(model, name):
        if next(iter(candidates[0].settings)) in done:
            continue
        reasons = []
        for candidate in candidates:
            try:
                found.append(_probe(model, candidate))
            except _ProbeError as error:
                reasons.append(f"{' with '.join(candidate.settings)}: {error}")
                continue
            done.update(candidate.settings)
            break
        else:
            complaints += reasons[:1]
    if complaints or not found:
        raise _unknown(model, name, complaints)
    return found


def tensors_of(model: PreTrainedModel) -> dict[str, Any]:
    """All parameters and saved buffers by name, in the order of modules, tied ones once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    saved = set(model.state_dict())
    for prefix, module in model.named_modules():
        for owned in (module._parameters, module._buffers):
            for own, value in owned.items():
                name = f"{prefix}.{own}" if prefix else own
                if value is not None and name in saved and id(value) not in seen:
                    seen.add(id(value))
                    found[name] = value
    return found


class _ProbeError(Exception):
    """A setting that cannot be changed by itself."""


def _unknown(model: PreTrainedModel, name: str, complaints: list[str]) -> UnsupportedError:
    kind = f"{type(model).__name__} ({model.config.model_type})"
    if complaints:
        return UnsupportedError(
            f"{kind}: its {name} cannot be pruned: {'; '.join(complaints)}",
            mend="Prune another dimension (ffn, heads, hidden, channels), or whole layers with num_layers.",
        )
    if name == "heads" and get_setting(model.config, _HEADS) is not None:
        return UnsupportedError(
            f"{kind}: its heads cannot be pruned by themselves: its config has no head_dim, so a head's size is hidden "
            "width / heads",
            mend="Prune `hidden`: whole heads leave together with the width.",
        )
    return UnsupportedError(
        f"{kind}: its config has no field for {name} that can be made smaller",
        mend="Prune another dimension (ffn, heads, hidden, channels), or whole layers with num_layers.",
    )


def _candidates(model: PreTrainedModel, name: str) -> Iterator[list[Dimension]]:
    """Yield, for each width of that name, the settings to try together, in the order to try them."""
    config = model.config

    def candidate(settings: Mapping[str, int], fixed: Mapping[str, int] | None = None) -> Dimension:
        return Dimension(name=name, settings=settings, fixed=fixed or {}, step=1)

    match name:
        case "ffn":
            for field in _FFN:
                if size := _ffn_size(config, field):
                    yield [candidate({field: size})]
        case "heads" if head_dim := _head_dim(model):
            yield [candidate(_heads(config), head_dim)]
        case "hidden" if isinstance(get_setting(config, "hidden_size"), int):
            hidden, head_dim = _sizes(config, ["hidden_size"]), _head_dim(model)
            base = hidden if head_dim else hidden | _heads(config)
            fixed = head_dim | _fixed_ffn(config)
            yield [candidate(settings, fixed) for settings in (base, *_with_ties(config, base, "hidden_size"))]
        case "channels":
            for field, size in _channel_fields(config).items():
                base = {field: size}
                yield [candidate(settings) for settings in (base, *_with_ties(config, base, field))]


def _heads(config: Any) -> dict[str, int]:
    heads = _sizes(config, [_HEADS, _KV_HEADS])
    if heads.get(_KV_HEADS) == 1 and heads.get(_HEADS) != 1:  # one head of keys for all queries stays
        del heads[_KV_HEADS]
    return heads


def _head_dim(model: PreTrainedModel) -> dict[str, int]:
    """The size of a head where the configuration can state it; empty where it is always hidden width / heads."""
    config = model.config
    heads = _heads(config)
    if not heads:
        return {}
    stated, width = get_setting(config, "head_dim"), get_setting(config, "hidden_size")
    head_dim = stated if isinstance(stated, int) else width // heads[_HEADS] if isinstance(width, int) else 0
    fixed = {"head_dim": head_dim}
    try:
        probed = _probe(model, Dimension(name="heads", settings=heads, fixed=fixed, step=1))
    except _ProbeError:
        return {}
    # Where head_dim is ignored, a table of one column a head may still change.
    return fixed if any(site.length == heads[_HEADS] * head_dim for site in probed.sites) else {}


def _sizes(config: Any, names: list[str]) -> dict[str, int]:
    values = {name: get_setting(config, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _ffn_size(config: Any, field: str) -> int | None:
    text = config.get_text_config()
    if not hasattr(text, field):
        return None
    value = getattr(text, field)
    if value is None and field == "n_inner":  # of GPT-2: four times the width
        return 4 * int(text.hidden_size)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fixed_ffn(config: Any) -> dict[str, int]:
    """Of GPT-2: the inner width, which would shrink with the hidden one unless it is stated."""
    text = config.get_text_config()
    return {"n_inner": 4 * int(text.hidden_size)} if getattr(text, "n_inner", 0) is None else {}


def _channel_fields(config: Any) -> dict[str, int]:
    widths = getattr(config, "hidden_sizes", None)
    if not isinstance(widths, list | tuple) or not all(isinstance(width, int) for width in widths):
        return {}
    fields = {f"hidden_sizes[{index}]": width for index, width in enumerate(widths)}
    stem = getattr(config, "embedding_size", None)
    return ({"embedding_size": stem} if isinstance(stem, int) else {}) | fields


def _with_ties(config: Any, settings: Mapping[str, int], field: str) -> list[dict[str, int]]:
    """The settings together with others of the same value: one more, then all of them."""
    size = settings[field]
    values = {**_channel_fields(config)}
    for name, value in config.get_text_config().to_dict().items():
        common = next((key for key, own in config.attribute_map.items() if own == name), name)
        if isinstance(value, int) and not isinstance(value, bool) and "token" not in name and "vocab" not in name:
            values[common] = value
    same = {name: value for name, value in values.items() if value == size and name not in settings}
    ties = [{**settings, name: value} for name, value in same.items()]
    return [*ties, {**settings, **same}] if len(same) > 1 else ties


def _probe(model: PreTrainedModel, candidate: Dimension) -> Probed:
    settings = candidate.settings
    common = math.gcd(*settings.values())
    if common < 2:
        raise _ProbeError(f"there is one unit only ({_shown(settings)})")
    shapes = {key: tuple(value.shape) for key, value in tensors_of(model).items()}
    errors = []
    for smaller in dict.fromkeys((common // 2, common // 3, common // 4, common - 1, common - 2, common - 4)):
        if smaller < 1:
            continue
        changes = {field: value // common * smaller for field, value in settings.items()} | dict(candidate.fixed)
        try:
            sites = _changed_sites(model, changes, shapes, smaller, common)
        except _ProbeError as error:
            errors.append(error)
            continue
        size = candidate.size
        step = math.lcm(size // common, *(size // math.gcd(size, site.length) for site in sites))
        widths = sorted(settings.values(), reverse=True)
        counts = (common,) if candidate.name == "heads" else tuple(dict.fromkeys(widths))
        exact = not any(_is_norm(model, site) for site in sites)
        return Probed(dimension=replace(candidate, step=step, is_exact=exact), sites=tuple(sites), unit_counts=counts)
    raise errors[0]


def _shown(changes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _changed_sites(
    model: PreTrainedModel, changes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], part: int, whole: int
) -> list[Site]:
    try:
        skeleton = build_skeleton(change_config(model.config, changes), type(model))
    except (ValueError, TypeError, CheckpointError) as error:
        raise _ProbeError(f"{_shown(changes)}: {str(error).splitlines()[0]}") from error
    changed = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    if different := set(model.state_dict()) ^ set(changed):
        raise _ProbeError(f"{_shown(changes)} adds or removes tensors such as {min(different)}")
    owners = {name: (index, module) for index, (name, module) in enumerate(model.named_modules())}
    sites = []
    for name, shape in shapes.items():
        index, module = owners[name.rpartition(".")[0]]
        for axis, (length, other) in enumerate(zip(shape, changed[name], strict=True)):
            if length == other:
                continue
            if other * whole != length * part:
                raise _ProbeError(
                    f"only a part of {name} (axis {axis}: {length} → {other}) changes with {_shown(changes)}"
                )
            side = _side(module, name.rpartition(".")[2], axis)
            sites.append(Site(tensor=name, axis=axis, length=length, side=side, module=index))
    if not sites:
        raise _ProbeError(f"{_shown(changes)} changes no tensor")
    return sites


def _is_norm(model: PreTrainedModel, site: Site) -> bool:
    """Whether a tensor scales a norm that spans the width: a batch norm treats every channel by itself."""
    owner, _, own = site.tensor.rpartition(".")
    module = model.get_submodule(owner)
    vector = own == "weight" and module.get_parameter("weight").ndim == 1
    return vector and not isinstance(module, nn.modules.batchnorm._BatchNorm)


def _side(module: nn.Module, own_name: str, axis: int) -> Side:
    if own_name != "weight":
        return "out"
    if isinstance(module, Conv1D):  # of GPT-2: the transpose of a linear layer
        return "in" if axis == 0 else "out"
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        return "in" if axis == 1 else "out"
    return "out"
