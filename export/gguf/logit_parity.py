"""Prove that llama.cpp computes what torch computes: the logits of a language model, the states of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgesmith.errors import UsageError, VerificationError
from export.divergence import cosine, kl_divergence, same_top_label
from export.gguf.tensor_plan import FloatType
from export.gguf.tokenizer_file import TokenizerFile
from export.load import load_model
from export.reference import torch_threads
from serve.runtime.llama_library import LlamaContext, LlamaModel

__all__ = ["TOLERANCES", "LogitParity", "StateParity", "Tolerance", "check_logits", "check_states"]

_MEND = "Do not ship this file. Report the architecture with its config.json."


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a sound conversion may be from its checkpoint."""

    mean_kld: float
    """In nats a token."""
    same_top: float
    """Share of tokens whose likeliest successor is the same."""
    min_cosine: float
    """Of hidden states."""


# The runtime itself computes some functions from half-precision tables, so f32 is not exact either.
TOLERANCES: Mapping[FloatType, Tolerance] = {
    "f32": Tolerance(mean_kld=2e-5, same_top=0.995, min_cosine=0.99999),
    "f16": Tolerance(mean_kld=3e-5, same_top=0.995, min_cosine=0.9999),
    "bf16": Tolerance(mean_kld=1e-3, same_top=0.97, min_cosine=0.999),
}


@dataclass(frozen=True, kw_only=True)
class LogitParity:
    """How near the two sets of logits are, over all tokens."""

    num_tokens: int
    mean_kld: float
    """Kullback–Leibler divergence of llama.cpp from torch, in nats a token."""
    max_kld: float
    same_top: float
    """Share of tokens whose likeliest successor is the same."""


@dataclass(frozen=True, kw_only=True)
class StateParity:
    """How near the hidden states are, over all tokens."""

    num_tokens: int
    min_cosine: float


@dataclass(frozen=True)
class _Kind:
    """What `load_model` asks about a task."""

    name: str
    model_class: str
    output_names: tuple[str, ...]


_GENERATION = _Kind("text-generation", "AutoModelForCausalLM", ("logits",))
_STATES = _Kind("feature-extraction", "AutoModel", ("last_hidden_state",))


def check_logits(
    checkpoint: Path,
    gguf_file: Path,
    *,
    texts: Sequence[str],
    dtype: FloatType,
    max_tokens: int = 512,
    tolerance: Tolerance | None = None,
    threads: int = 1,
) -> LogitParity:
    """Read texts with both, compare the logits after every token.

    Args:
        checkpoint: Hugging Face folder.
        gguf_file: What was made from it.
        texts: Real texts, as the model meets them; each is cut to `max_tokens`.
        dtype: Of the file; decides the tolerance.
        max_tokens: Longest text.
        tolerance: Instead of the type's own.
        threads: Of both.

    Returns:
        The figures.

    Raises:
        VerificationError: they are further apart than the type explains.
        UsageError: the texts have fewer than two tokens.
        ArtifactError: llama.cpp refuses the file.
    """
    bound = TOLERANCES[dtype] if tolerance is None else tolerance
    klds: list[NDArray[np.float64]] = []
    tops: list[NDArray[np.bool_]] = []
    for expected, found in _outputs(checkpoint, gguf_file, _GENERATION, texts, max_tokens, threads):
        klds.append(kl_divergence(expected, found))
        tops.append(same_top_label(expected, found))
    kld, top = np.concatenate(klds), np.concatenate(tops)
    result = LogitParity(
        num_tokens=len(kld), mean_kld=float(kld.mean()), max_kld=float(kld.max()), same_top=float(top.mean())
    )
    # Not "more than": a NaN must fail.
    if not result.mean_kld <= bound.mean_kld or result.same_top < bound.same_top:
        raise VerificationError(
            f"{gguf_file}: the logits of llama.cpp differ from torch's: mean KLD {result.mean_kld:.3g} (at most "
            f"{bound.mean_kld:g}), same top token {result.same_top:.2%} (at least {bound.same_top:.2%}), "
            f"{result.num_tokens} tokens",
            mend=_MEND,
        )
    return result


def check_states(
    checkpoint: Path,
    gguf_file: Path,
    *,
    texts: Sequence[str],
    dtype: FloatType,
    max_tokens: int = 256,
    threads: int = 1,
) -> StateParity:
    """Read texts with both, compare the last hidden state of every token: for encoders.

    Args, returns and raises as `check_logits`.
    """
    pairs = _outputs(checkpoint, gguf_file, _STATES, texts, max_tokens, threads)
    angles = np.concatenate([cosine(expected, found) for expected, found in pairs])
    result = StateParity(num_tokens=len(angles), min_cosine=float(angles.min()))
    if not result.min_cosine >= TOLERANCES[dtype].min_cosine:
        raise VerificationError(
            f"{gguf_file}: the states of llama.cpp differ from torch's: cosine {result.min_cosine:.6f}, at least "
            f"{TOLERANCES[dtype].min_cosine} was expected",
            mend=_MEND,
        )
    return result


def _outputs(
    checkpoint: Path, gguf_file: Path, kind: _Kind, texts: Sequence[str], max_tokens: int, threads: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Both models' outputs of each text, each of shape [tokens, width]."""
    tokenizer = TokenizerFile(checkpoint).tokenizer
    ids = [tokenizer.encode(text).ids[:max_tokens] for text in texts]
    ids = [one for one in ids if one]
    if sum(map(len, ids)) < 2:
        raise UsageError("the texts have fewer than two tokens", mend="Give real text.")
    states = kind is _STATES
    model = load_model(checkpoint, kind, attention="eager")
    pairs = []
    with (
        LlamaModel(gguf_file) as other,
        LlamaContext(other, num_tokens=max(map(len, ids)), threads=threads, states=states) as context,
        torch.inference_mode(),
        torch_threads(threads),
    ):
        for one in ids:
            outputs = model(input_ids=torch.tensor([one]), return_dict=True)
            expected = outputs.last_hidden_state if states else outputs.logits
            pairs.append((expected[0].float().numpy(), context.run(one)))
    return pairs
