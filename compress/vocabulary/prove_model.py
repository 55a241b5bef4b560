"""Proof that a trimmed model computes what the original does, and what the smaller softmax does to perplexity."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.checkpoint import read_json
from compress.load import load_model
from edgesmith.errors import VerificationError

__all__ = ["ModelProof", "Perplexity", "prove_model"]

_TOLERANCE = 1e-5
"""Relative to the largest output: sums of float32 in another order differ by so much, weights that were mixed up by
far more."""
_WINDOW = 128
_MAX_WINDOWS = 8
_MAX_VALUES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Of a causal language model, on the tokens that were compared."""

    before: float
    """The original's, which gives some probability to every token of its own vocabulary."""
    before_on_kept: float
    """The original's, when it may choose only among the tokens that stay: what `after` is to be compared with."""
    after: float
    """The trimmed model's. It can only be below `before`: tokens that are gone take no probability any more. That is
    no better model, and no figure to compare across vocabularies."""
    kept_probability: float
    """Share of the original's probability that lay on tokens that stay; a geometric mean, so that `before` times it
    is `before_on_kept`."""
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelProof:
    """How far the outputs of a trimmed model are from the original's."""

    max_abs_diff: float
    """Largest difference of any output, of logits for the tokens that stay."""
    max_abs_output: float
    tolerance: float
    """What the difference had to stay within."""
    num_tokens: int
    """Compared, from the corpus."""
    outputs: tuple[str, ...]
    perplexity: Perplexity | None


@dataclass(frozen=True)
class _Kind:
    """What `load_model` asks about a task."""

    model_class: str
    output_names: tuple[str, ...]
    name: str = "trim-vocabulary"


def prove_model(
    before: Path, after: Path, model_class: type[Any], kept: NDArray[np.int64], tokens: NDArray[np.int64]
) -> ModelProof:
    """Run both models in float32 on tokens of the corpus, one after the other, and compare all outputs.

    Args:
        before: The original checkpoint.
        after: The trimmed one.
        model_class: Of transformers.
        kept: Old ids, rising.
        tokens: New ids of some text.

    Raises:
        VerificationError: an output differs by more than rounding explains.
    """
    windows = _windows(tokens, len(kept), _longest(before))
    is_bare = model_class.__name__.endswith("Model") and not model_class.__name__.endswith("LMHeadModel")
    kind = _Kind(model_class.__name__, ("last_hidden_state",) if is_bare else ("logits",))
    expected, lost = _run(before, kind, torch.from_numpy(kept)[windows], kept)
    found, _ = _run(after, kind, windows, None)
    difference = max(float((expected[name] - found[name]).abs().max()) for name in expected)
    scale = max(float(value.abs().max()) for value in expected.values())
    proof = ModelProof(
        max_abs_diff=difference,
        max_abs_output=scale,
        tolerance=_TOLERANCE * max(1.0, scale),
        num_tokens=windows.numel(),
        outputs=tuple(expected),
        perplexity=_perplexity(model_class, expected, found, windows, lost),
    )
    if not difference <= proof.tolerance:
        raise VerificationError(
            f"the trimmed model's outputs differ by {difference:.3g}, allowed is {proof.tolerance:.3g}",
            mend="The model uses token ids in a way that is not known here: leave the step trim-vocabulary out.",
        )
    return proof


def _longest(folder: Path) -> int:
    """Tokens that the model can read at once, as far as a window needs them."""
    config = read_json(folder / "config.json")
    limits = [config.get(name) for name in ("max_position_embeddings", "n_positions")]
    # Two fewer: RoBERTa's kin number positions from behind the padding token's id, which is 1.
    return min([_WINDOW, *(max(limit - 2, 1) for limit in limits if isinstance(limit, int) and limit > 0)])


def _windows(tokens: NDArray[np.int64], num_kept: int, longest: int) -> Tensor:
    """Cut text into windows of at most so many tokens, evenly spread, of shape [num, length]."""
    length = min(longest, len(tokens))
    most = max(1, min(_MAX_WINDOWS, _MAX_VALUES // (num_kept * length), len(tokens) // length))
    starts = np.arange(most) * ((len(tokens) - length) // max(1, most - 1) if most > 1 else 0)
    return torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))


def _run(
    folder: Path, kind: _Kind, windows: Tensor, kept: NDArray[np.int64] | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run one model.

    Returns:
        Its outputs by name; with `kept`, logits of those tokens alone, and how much larger the log of the sum over all
        of them was, of shape [windows, length].
    """
    model = load_model(folder, kind)
    num_rows = model.get_input_embeddings().num_embeddings
    found: dict[str, list[Tensor]] = {}
    sums: list[Tensor] = []
    for window in windows:
        given = {"input_ids": window[None]}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = window[None]
        with torch.no_grad():
            outputs = model(**given)
        for name, value in outputs.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            if kind.output_names == ("last_hidden_state",) and name != "last_hidden_state":
                continue
            if kept is not None and value.shape[-1] == num_rows:
                stay = value[..., torch.from_numpy(kept)]
                if name == "logits":
                    sums.append((torch.logsumexp(value, -1) - torch.logsumexp(stay, -1))[0])
                value = stay
            found.setdefault(name, []).append(value)
    del model
    gc.collect()
    return {name: torch.cat(values) for name, values in found.items()}, torch.stack(sums) if sums else None


def _perplexity(
    model_class: type[Any],
    expected: dict[str, Tensor],
    found: dict[str, Tensor],
    windows: Tensor,
    lost: Tensor | None,
) -> Perplexity | None:
    if lost is None or not model_class.__name__.endswith(("ForCausalLM", "LMHeadModel")) or windows.shape[1] < 2:
        return None
    loss = float(lost[:, :-1].double().mean())
    same, after = (_mean_loss(outputs["logits"], windows) for outputs in (expected, found))
    return Perplexity(
        before=float(np.exp(same + loss)),
        before_on_kept=float(np.exp(same)),
        after=float(np.exp(after)),
        kept_probability=float(np.exp(-loss)),
        num_tokens=lost[:, :-1].numel(),
    )


def _mean_loss(logits: Tensor, windows: Tensor) -> float:
    """Mean negative log-probability of each window's next tokens, in nats."""
    scores = torch.log_softmax(logits[:, :-1].double(), -1).gather(-1, windows[:, 1:, None])
    return float(-scores.mean())
