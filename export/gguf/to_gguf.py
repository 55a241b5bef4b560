"""Convert a Hugging Face checkpoint to one GGUF file for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint import open_checkpoint, quantization_of, read_json
from compress.memory import PeakMemory
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.progress import SILENT, Progress
from export.gguf.families import family_of
from export.gguf.metadata import Metadata
from export.gguf.model_config import ModelConfig, load_config
from export.gguf.runtime_gaps import runtime_gaps
from export.gguf.special_tokens import chat_templates, generation_defaults, special_tokens
from export.gguf.tensor_plan import FloatType, plan_tensors
from export.gguf.tokenizer_file import TokenizerFile
from export.gguf.vocabulary import Vocabulary, read_vocabulary
from export.gguf.writer import write_file

__all__ = ["GgufExport", "to_gguf"]

# sentence-transformers' pooling flags → llama.cpp's numbers.
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}


@dataclass(frozen=True, kw_only=True)
class GgufExport:
    """What a conversion wrote."""

    path: Path
    architecture: str
    """As llama.cpp calls it."""
    dtype: FloatType
    """Of the matrices; vectors are f32."""
    tokenizer_model: str
    """`gpt2`, `llama`, `t5` or `bert`: llama.cpp's kinds of tokenizers."""
    pre_tokenizer: str
    tokenizer_found_by: str
    """How the two were found."""
    num_tensors: int
    num_parameters: int
    size_bytes: int
    largest_tensor_bytes: int
    """The largest tensor of the file."""
    peak_added_bytes: int
    """Memory at the peak of the conversion, above what the process held before."""
    left_out: tuple[str, ...]
    """What of the checkpoint is not in the file, or not done by llama.cpp."""


def to_gguf(
    checkpoint: Path, out_file: Path, *, dtype: FloatType = "f16", name: str = "", progress: Progress = SILENT
) -> GgufExport:
    """Convert a checkpoint. The same checkpoint gives the same bytes with the same libraries.

    Args:
        checkpoint: Hugging Face folder with safetensors weights and `tokenizer.json`.
        out_file: The new file; it appears when it is complete.
        dtype: For matrices; vectors stay in f32.
        name: The model's name in the file's header; empty for none.
        progress: Told of each tensor.

    Returns:
        What was written and found, and what is left out.

    Raises:
        CheckpointError: the checkpoint is damaged, unsafe or lacks tensors, or its parts are not of one model.
        UnsupportedError: the family, the tokenizer or a setting has no form in GGUF, or the weights are quantized.
        UsageError: the type is none of these.
        StorageError: the file cannot be written.
    """
    if dtype not in ("f32", "f16", "bf16"):
        raise UsageError(f"{dtype!r} cannot be written", mend="Ask for f32, f16 or bf16; others are made from those.")
    config = _load(checkpoint)
    peak = PeakMemory()
    opened = open_checkpoint(checkpoint)
    family = family_of(config)
    settings, rope, unsaid = family.settings(config)
    planned, unused = plan_tensors(opened, config, family, dtype)
    tokenizer = TokenizerFile(checkpoint)
    vocabulary = read_vocabulary(tokenizer, config.integer("vocab_size"))
    header, more = _header(tokenizer, config, vocabulary, name)
    pooling = _pooling(checkpoint) if family.is_encoder else {}
    size_bytes = write_file(
        out_file,
        family.architecture,
        header | {f"{family.architecture}.{key}": value for key, value in (settings | pooling).items()}
        | vocabulary.metadata(),
        checkpoint=opened,
        planned=planned,
        extra=rope.tensors,
        dtype=dtype,
        progress=progress,
    )  # fmt: skip
    return GgufExport(
        path=out_file,
        architecture=family.architecture,
        dtype=dtype,
        tokenizer_model=vocabulary.model,
        pre_tokenizer=vocabulary.pre,
        tokenizer_found_by=vocabulary.found_by,
        num_tensors=len(planned) + len(rope.tensors),
        num_parameters=sum(tensor.num_values for tensor in planned),
        size_bytes=size_bytes,
        largest_tensor_bytes=max(tensor.size_bytes for tensor in planned),
        peak_added_bytes=peak.added_bytes,
        left_out=(*unused, *unsaid, *more, *(gap.note for gap in runtime_gaps(tokenizer))),
    )


def _load(folder: Path) -> ModelConfig:
    """Refuse what cannot be read before a library of models is asked."""
    found = quantization_of(open_checkpoint(folder).config)
    if found:
        raise UnsupportedError(
            f"{folder}: its weights are quantized ({found}); a second rounding would add to the first",
            mend="Merge the adapter into the unquantized base, and convert that.",
        )
    return load_config(folder)


def _header(
    tokenizer: TokenizerFile, config: ModelConfig, vocabulary: Vocabulary, name: str
) -> tuple[Metadata, list[str]]:
    tokens, left_out = special_tokens(tokenizer, config, len(vocabulary.tokens))
    if config.get("type_vocab_size") is not None:
        tokens["tokenizer.ggml.token_type_count"] = config.integer("type_vocab_size")
    named: Metadata = {"general.name": name} if name else {}
    header = named | generation_defaults(tokenizer) | tokens | chat_templates(tokenizer)
    if vocabulary.num_fillers:
        left_out.append(f"{vocabulary.num_fillers:,} rows of the embeddings without a token: named as unused, [PADn]")
    return header, left_out


def _pooling(folder: Path) -> Metadata:
    """How sentence-transformers makes one vector of many; nothing when the checkpoint does not say."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return {}
    settings = read_json(path)
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise UnsupportedError(
            f"{path}: pools by {', '.join(chosen) or 'nothing'}; llama.cpp pools by one of {', '.join(_POOLING)}",
            mend="Remove the file to have the vectors of all tokens.",
        )
    return {"pooling_type": _POOLING[chosen[0]]}
