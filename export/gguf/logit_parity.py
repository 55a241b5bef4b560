"""Prove that llama.cpp computes what torch computes: the logits of a language model, the states of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compress.load import load_model
from edgesmith.errors import UsageError, VerificationError
from export.divergence import cosine
from export.gguf.tensor_plan import FloatType
from export.gguf.tokenizer_file import TokenizerFile
from export.logit_parity import LogitParity, LogitTolerance, compare_logits
from export.reference import torch_threads
from serve.runtime.llama_library import LlamaContext, LlamaModel

__all__ = ["TOLERANCES", "StateParity", "check_logits", "check_states"]

_MEND = "Do not ship this file. Report the architecture with its config.json."


# The runtime itself computes some functions from half-precision tables, so f32 is not exact either.
TOLERANCES: Mapping[FloatType, LogitTolerance] = {
    "f32": LogitTolerance(mean_kld=2e-5, same_top=0.995),
    "f16": LogitTolerance(mean_kld=3e-5, same_top=0.995),
    "bf16": LogitTolerance(mean_kld=1e-3, same_top=0.97),
}
_MIN_COSINES: Mapping[FloatType, float] = {"f32": 0.99999, "f16": 0.9999, "bf16": 0.999}


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
    tolerance: LogitTolerance | None = None,
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
    pairs = _outputs(checkpoint, gguf_file, _GENERATION, texts, max_tokens, threads)
    return compare_logits(pairs, tolerance or TOLERANCES[dtype], path=gguf_file, engine="llama.cpp", mend=_MEND)


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
    if not result.min_cosine >= _MIN_COSINES[dtype]:
        raise VerificationError(
            f"{gguf_file}: the states of llama.cpp differ from torch's: cosine {result.min_cosine:.6f}, at least "
            f"{_MIN_COSINES[dtype]} was expected",
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
