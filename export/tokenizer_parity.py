"""Prove that the thin runtime's tokenizer is the one that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from compress.quiet import quiet_libraries
from edgesmith.errors import UnsupportedError, VerificationError
from edgesmith.tasks.tokenization import TextEncoder

__all__ = ["check_tokenizer"]


def check_tokenizer(checkpoint: Path, encoder: TextEncoder, texts: Sequence[tuple[str, str | None]]) -> int:
    """Encode texts with transformers' own tokenizer of a checkpoint and with ours, and insist on equal arrays.

    Args:
        checkpoint: Hugging Face folder.
        encoder: Ours, as the artifact will use it.
        texts: Texts or pairs of texts.

    Returns:
        How many were compared.

    Raises:
        UnsupportedError: transformers cannot load the checkpoint's tokenizer.
        VerificationError: an array differs; the message shows the text and the first difference.
    """
    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise UnsupportedError(
                f"{checkpoint}: transformers cannot load its tokenizer: {str(error).splitlines()[0]}",
                mend="Save the tokenizer beside the model with `tokenizer.save_pretrained`.",
            ) from error
        for first, second in texts:
            given = [first.lower(), second and second.lower()] if encoder.settings.lowercase else [first, second]
            expected = tokenizer(
                given[0],
                given[1],
                truncation=True,
                max_length=encoder.settings.max_length,
                return_token_type_ids="token_type_ids" in encoder.settings.input_names,
            )
            arrays = encoder.encode([(first, second)])
            for name in encoder.settings.input_names:
                ours, theirs = arrays[name][0].tolist(), list(expected[name])
                if ours != theirs:
                    raise VerificationError(_describe(name, ours, theirs, first), mend=_MEND)
    return len(texts)


_MEND = (
    "transformers builds this tokenizer from its configuration, not from tokenizer.json: save it again with "
    "`AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)`."
)


def _describe(name: str, ours: list[int], theirs: list[int], text: str) -> str:
    position = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)
    where = f"at position {position}: {ours[position]}, not {theirs[position]}" if position >= 0 else "in length"
    return (
        f"tokenizer.json does not give what transformers' tokenizer gives: {name} differs {where} "
        f"({len(ours)} tokens against {len(theirs)}) in {text[:60]!r}"
    )
