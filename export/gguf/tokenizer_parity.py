"""Prove that llama.cpp splits texts into the tokens that the model was trained on."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from edgesmith.errors import VerificationError
from export.gguf.parity_lines import generate_lines
from export.gguf.runtime_gaps import runtime_gaps
from export.gguf.tokenizer_file import TokenizerFile
from serve.runtime.llama_library import LlamaModel

__all__ = ["TokenizerParity", "check_tokenizer"]

_SHOWN_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class TokenizerParity:
    """What was found equal."""

    num_lines: int
    num_tokens: int
    num_special_tokens: int
    """Special and other added tokens, each of which stood in lines of its own."""
    num_avoided: int = 0
    """Lines among them that llama.cpp tokenizes differently for one of the reasons in `notes`, and that were compared
    without what causes it. All others were compared as they are."""
    notes: tuple[str, ...] = ()
    """What llama.cpp is known to do otherwise with this kind of tokenizer, each with its number of such lines."""


def check_tokenizer(
    checkpoint: Path, gguf_file: Path, *, texts: Iterable[str] = (), num_generated: int = 10_000, seed: int = 0
) -> TokenizerParity:
    """Tokenize lines with `tokenizers` and with llama.cpp, and insist on the same numbers.

    Args:
        checkpoint: Hugging Face folder with `tokenizer.json`.
        gguf_file: What was made from it; only its vocabulary is loaded.
        texts: Real lines, beside those that are generated.
        num_generated: Generated lines; those with special tokens come on top.
        seed: Of the generated lines.

    Returns:
        How much was compared.

    Raises:
        VerificationError: a line differs, or generation would not stop at an end token; the first difference is
            shown.
        CheckpointError: the checkpoint has no sound tokenizer.
        ArtifactError: the file is damaged, or llama.cpp refuses it.
        MissingExtraError: llama-cpp-python is not installed.
    """
    file = TokenizerFile(checkpoint)
    added = [str(token["content"]) for token in file.added]
    gaps = dict.fromkeys(runtime_gaps(file), 0)
    num_lines = num_tokens = num_avoided = 0
    with LlamaModel(gguf_file, vocab_only=True) as model:
        _check_ends(file, model)
        spelled = [*added, *_fillers(file, model)]
        for line in chain(texts, generate_lines(num_generated, special_tokens=spelled, seed=seed)):
            text, expected, found = _tokenize(file, model, line)
            if found != expected and (causes := [gap for gap in gaps if gap.avoid(line) != line]):
                num_avoided += 1
                for gap in causes:
                    gaps[gap] += 1
                text = functools.reduce(lambda done, gap: gap.avoid(done), causes, line)
                text, expected, found = _tokenize(file, model, text)
            if found != expected:
                raise _difference(file, gguf_file, text, expected, found)
            num_lines += 1
            num_tokens += len(expected)
    return TokenizerParity(
        num_lines=num_lines,
        num_tokens=num_tokens,
        num_special_tokens=len(added),
        num_avoided=num_avoided,
        notes=tuple(f"{gap.note} (in {count:,} of {num_lines:,} lines)" for gap, count in gaps.items()),
    )


def _tokenize(file: TokenizerFile, model: LlamaModel, text: str) -> tuple[str, list[int], list[int]]:
    return text, file.tokenizer.encode(text).ids, model.tokenize(text, add_special=True)


def _fillers(file: TokenizerFile, model: LlamaModel) -> list[str]:
    """Names of the first and last number without a token: spelled in a text, they must stay text."""
    missing = sorted(set(range(model.num_tokens)) - file.ids().keys())
    return [f"[PAD{index}]" for index in dict.fromkeys((*missing[:1], *missing[-1:]))]


def _check_ends(file: TokenizerFile, model: LlamaModel) -> None:
    """Generation must stop where the checkpoint's own settings stop it."""
    stated = file.generation.get("eos_token_id")
    for token in stated if isinstance(stated, list) else [stated]:
        if type(token) is int and not model.is_end(token):
            raise VerificationError(
                f"{model.path}: generation would not stop at {file.tokenizer.id_to_token(token)!r} ({token}), where "
                "generation_config.json stops it",
                mend="Name at most three end tokens in generation_config.json.",
            )


def _difference(
    file: TokenizerFile, gguf_file: Path, text: str, expected: list[int], found: list[int]
) -> VerificationError:
    pairs = zip(expected, found, strict=False)
    start = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))
    return VerificationError(
        f"{gguf_file}: llama.cpp tokenizes differently from token {start} on:\n"
        f"    line      {_around(text)}\n"
        f"    expected  {_show(file, expected[start:])}\n"
        f"    llama.cpp {_show(file, found[start:])}",
        mend="Do not ship this file: the model would read other tokens than it was trained on. Report the tokenizer.",
    )


def _around(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def _show(file: TokenizerFile, ids: list[int]) -> str:
    shown = ", ".join(f"{index} {file.tokenizer.id_to_token(index)!r}" for index in ids[:_SHOWN_TOKENS])
    return f"{shown}{', …' if len(ids) > _SHOWN_TOKENS else ''}" or "(nothing)"
