"""Relations between the tokens of a text as attention's queries, keys and values have them (MiniLMv2).

Widths and numbers of heads of teacher and student may differ: vectors are cut anew into relation heads, and what is
compared is how much each token has to do with each other one, which has no width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgesmith.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Attention", "find_attentions", "relation_distances", "relation_heads"]

_TRIPLES = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)
_FUSED = ("qkv", "Wqkv", "c_attn")  # not "qkv_proj": CodeGen's is four blocks of queries, values and keys
_MIN_HEAD_WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Where one layer makes its queries, keys and values: three modules, or one that makes all."""

    name: str
    """Of the module that has them."""
    modules: tuple[nn.Module, ...]

    @contextmanager
    def listening(self) -> Iterator[dict[int, Tensor]]:
        """Keep what the modules give during the block: 0, 1, 2 → queries, keys, values, of shape [B, L, D]."""
        heard: dict[int, Tensor] = {}
        hooks = [module.register_forward_hook(_Ear(index, heard)) for index, module in enumerate(self.modules)]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def split(self, heard: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values from what was heard."""
        if len(self.modules) == 1:
            queries, keys, values = heard[0].chunk(3, dim=-1)
            return queries, keys, values
        return heard[0], heard[1], heard[2]


class _Ear:
    def __init__(self, index: int, heard: dict[int, Tensor]) -> None:
        self._index, self._heard = index, heard

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        self._heard[self._index] = output


def find_attentions(model: PreTrainedModel) -> list[Attention]:
    """Find where each layer makes queries, keys and values, in the order of the layers.

    Raises:
        UnsupportedError: No module of the model has them under a name that is known.
    """
    found = [attention for name, module in model.named_modules() if (attention := _attention_of(name, module))]
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__}: has no queries, keys and values under names that are known "
            f"({', '.join('/'.join(names) for names in _TRIPLES)}, {', '.join(_FUSED)})",
            mend="Set the weight `relation` to 0: learn from predictions and hidden states.",
        )
    return found


def _attention_of(name: str, module: nn.Module) -> Attention | None:
    children = dict(module.named_children())
    for names in _TRIPLES:
        if all(one in children for one in names):
            return Attention(name=name, modules=tuple(children[one] for one in names))
    for one in _FUSED:
        width = _out_width(children.get(one))
        if width and width == 3 * _in_width(children[one]):  # thirds; grouped ones are told apart by nothing
            return Attention(name=name, modules=(children[one],))
    return None


def _out_width(module: nn.Module | None) -> int:
    return int(getattr(module, "out_features", None) or getattr(module, "nf", None) or 0)


def _in_width(module: nn.Module) -> int:
    return int(getattr(module, "in_features", None) or getattr(module, "nx", None) or 0)


def relation_heads(widths: Sequence[int]) -> int:
    """The most heads into which all widths can be cut, each at least 16 wide; 1 where none can.

    Source: Wang et al.: MiniLMv2, 2021, section 3.2 and table 6: more relation heads than attention heads are
    better; 48 of 768 features are 16 each.

    >>> relation_heads([768, 384]), relation_heads([384, 312]), relation_heads([32, 32])
    (24, 12, 2)
    """
    most = math.gcd(*widths)
    limit = max(1, min(widths) // _MIN_HEAD_WIDTH)
    return max(heads for heads in range(1, limit + 1) if most % heads == 0)


def relation_distances(student_BLD: Tensor, teacher_BLE: Tensor, mask_BL: Tensor, *, causal: bool) -> Tensor:
    """KL(teacher's relations ‖ student's) of each token, averaged over relation heads; 0 at padding.

    Args:
        student_BLD: Queries, keys or values.
        teacher_BLE: The teacher's; the width may be another.
        mask_BL: 1 at tokens, 0 at padding.
        causal: Whether a token has to do with earlier ones only, as in language models.

    Returns:
        Shape [B, L].

    Source: Wang et al.: MiniLMv2, 2021, section 3.1, equations 6 and 7.
    """
    heads = relation_heads([student_BLD.shape[-1], teacher_BLE.shape[-1]])
    length = mask_BL.shape[1]
    seen_BLL = mask_BL.bool()[:, None, :].expand(-1, length, -1)
    if causal:
        seen_BLL = seen_BLL & torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    # A token of padding has to do with itself at least: a row of nothing has no softmax.
    seen_BLL = seen_BLL | torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    student_BRLL = _log_relations(student_BLD, heads, seen_BLL)
    teacher_BRLL = _log_relations(teacher_BLE, heads, seen_BLL)
    terms_BRLL = teacher_BRLL.exp() * (teacher_BRLL - student_BRLL)
    distances_BL = terms_BRLL.masked_fill(~seen_BLL[:, None], 0).sum(dim=-1).mean(dim=1)
    return distances_BL * mask_BL


def _log_relations(vectors_BLD: Tensor, heads: int, seen_BLL: Tensor) -> Tensor:
    """Logarithms of scaled dot-product relations, of shape [B, R, L, L]."""
    rows, length, width = vectors_BLD.shape
    heads_BRLW = vectors_BLD.view(rows, length, heads, width // heads).transpose(1, 2)
    products_BRLL = heads_BRLW @ heads_BRLW.transpose(-1, -2) / math.sqrt(width // heads)
    lowest = torch.finfo(products_BRLL.dtype).min
    return torch.log_softmax(products_BRLL.masked_fill(~seen_BLL[:, None], lowest), dim=-1)
