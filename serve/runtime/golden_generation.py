"""A golden answer of a text-generating artifact: what it wrote when it was made, so that any device can check itself.

It is `golden/generation.json` of an artifact: a prompt, the likeliest next tokens one after the other, how clearly
each won, and the processor and engine that chose them. An equal processor with an equal engine must choose the same
tokens; another one rounds otherwise, and may choose otherwise where it was close.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import atomic_write, storage_errors
from serve.runtime.generation import GenerationEngine

__all__ = [
    "GENERATION_FILE",
    "GenerationCheck",
    "GoldenGeneration",
    "check_golden_generation",
    "processor_kind",
    "read_golden_generation",
    "write_golden_generation",
]

GENERATION_FILE = "golden/generation.json"
PROMPT = "The capital of France is"
NUM_TOKENS = 12
_MAX_BYTES = 1 << 20
_CLOSE = 0.25
"""Difference of logits below which another processor may choose the other token."""
_FLAGS = frozenset(
    {"avx", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "f16c", "fma"}
    | {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"}
)


class GoldenGeneration(BaseModel):
    """The content of `golden/generation.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: int = Field(default=1, ge=1, le=1)
    prompt: str
    prompt_tokens: tuple[int, ...] = Field(strict=False, min_length=1, max_length=4096)
    """As the model reads the prompt."""
    tokens: tuple[int, ...] = Field(strict=False, min_length=1, max_length=4096)
    """The likeliest next token after the prompt, after the prompt and it, and so on."""
    margins: tuple[float, ...] = Field(strict=False)
    """Of each: its logit less that of the second likeliest."""
    text: str
    """What the engine wrote by itself, asked for as many tokens."""
    close: float = Field(default=_CLOSE, ge=0.0, allow_inf_nan=False)
    """Margin up to which a processor of another kind may choose another token."""
    processor: str
    engine: str

    @model_validator(mode="after")
    def _check_lengths(self) -> GoldenGeneration:
        if len(self.margins) != len(self.tokens):
            raise ValueError(f"{len(self.margins)} margins of {len(self.tokens)} tokens")
        return self


@dataclass(frozen=True, kw_only=True)
class GenerationCheck:
    """How an engine did on the golden answer.

    Attributes:
        passed: Whether it chose the same tokens, or on a processor of another kind others only where it was close.
        num_tokens: Tokens compared.
        num_agreeing: Tokens from the start until the first one chosen otherwise.
        is_same_machine: Whether processor and engine are of the kind that made the answer.
        reason: What is wrong or different, in words; empty if nothing is.
    """

    passed: bool
    num_tokens: int
    num_agreeing: int
    is_same_machine: bool
    reason: str = ""


def processor_kind() -> str:
    """Name what decides how a processor rounds: its architecture and vector instructions, `x86_64 avx avx2 fma`."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = sorted(_FLAGS.intersection(listed[1].split())) if listed else []
    return " ".join([platform.machine() or os.name, *flags])


def write_golden_generation(
    folder: Path, engine: GenerationEngine, *, prompt: str = PROMPT, num_tokens: int = NUM_TOKENS
) -> GoldenGeneration:
    """Let an engine answer, and write its answer into an artifact's folder.

    The text is read once for every token of the answer, so prompt and answer should be short.

    Args:
        folder: Of the artifact, before its manifest is written.
        engine: That will run the artifact.
        prompt: As the model reads it.
        num_tokens: Of the answer, at least 1.

    Raises:
        UsageError: Prompt and answer do not fit into the model's context.
        StorageError: The folder cannot be written.
    """
    if num_tokens < 1:
        raise UsageError(f"num_tokens is {num_tokens}; it must be at least 1")
    prompt_tokens = engine.tokenize(prompt)
    read, margins = list(prompt_tokens), list[float]()
    for _ in range(num_tokens):
        logits = engine.logits(read, first=len(read) - 1)[-1]
        second, first = np.partition(logits, -2)[-2:]
        read.append(int(logits.argmax()))
        margins.append(round(float(first) - float(second), 4))
    in_one_pass = engine.logits(read[:-1], first=len(prompt_tokens) - 1).argmax(axis=-1)
    agrees = np.equal(in_one_pass, read[len(prompt_tokens) :])  # a batch of another size may round a tie otherwise
    num_tokens = max(1, num_tokens if agrees.all() else int(agrees.argmin()))
    golden = GoldenGeneration(
        prompt=prompt,
        prompt_tokens=tuple(prompt_tokens),
        tokens=tuple(read[len(prompt_tokens) :][:num_tokens]),
        margins=tuple(margins[:num_tokens]),
        text=_write(engine, prompt, num_tokens),
        processor=processor_kind(),
        engine=engine.name,
    )
    atomic_write(folder / GENERATION_FILE, golden.model_dump_json(indent=1) + "\n")
    return golden


def read_golden_generation(artifact: Artifact) -> GoldenGeneration | None:
    """The golden answer of an artifact; None if it has none (a model file made by someone else).

    Raises:
        ArtifactError: It is damaged.
    """
    if not any(entry.path == GENERATION_FILE for entry in artifact.manifest.files):
        return None
    path = artifact.file(GENERATION_FILE)
    with storage_errors(path):
        if path.stat().st_size > _MAX_BYTES:
            raise ArtifactError(f"{path}: has {path.stat().st_size:,} bytes; a golden answer has at most 1 MiB")
        content = path.read_bytes()
    try:
        return GoldenGeneration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{path}: is damaged: {first['msg']}", mend="Make the artifact again.") from error


def check_golden_generation(artifact: Artifact, engine: GenerationEngine) -> GenerationCheck | None:
    """Read an artifact's golden answer in one pass and compare what the engine finds likeliest at each token.

    An engine of the same kind must write the same text by itself, too.

    Returns:
        None if the artifact has no golden answer.

    Raises:
        ArtifactError: The golden answer is damaged, or of another vocabulary.
    """
    golden = read_golden_generation(artifact)
    if golden is None:
        return None
    is_same = (golden.processor, golden.engine) == (processor_kind(), engine.name)
    tokens = engine.tokenize(golden.prompt)
    if tuple(tokens) != golden.prompt_tokens:
        return _fail(golden, is_same, "the prompt is split into other tokens than when the artifact was made")
    if max(*golden.tokens, *tokens) >= engine.num_vocabulary or min(*golden.tokens, *tokens) < 0:
        raise ArtifactError(f"{artifact.path}: its golden answer has tokens that its model does not know")
    logits = engine.logits([*tokens, *golden.tokens[:-1]], first=len(tokens) - 1)
    if not np.isfinite(logits).all():
        return _fail(golden, is_same, "the logits are not finite")
    chosen = logits.argmax(axis=-1)
    wrong = [index for index, token in enumerate(golden.tokens) if token != chosen[index]]
    clear = [index for index in wrong if is_same or golden.margins[index] > golden.close]
    reason = ""
    if clear:
        reason = f"token {clear[0] + 1} of {len(golden.tokens)} is {chosen[clear[0]]}, not {golden.tokens[clear[0]]}"
    elif wrong:
        reason = f"{len(wrong)} of {len(golden.tokens)} tokens differ where it was close, on {processor_kind()}"
    elif is_same and (text := _write(engine, golden.prompt, len(golden.tokens))) != golden.text:
        clear, reason = [len(golden.tokens)], f"it writes {text[:80]!r}, not {golden.text[:80]!r}"
    return GenerationCheck(
        passed=not clear,
        num_tokens=len(golden.tokens),
        num_agreeing=wrong[0] if wrong else len(golden.tokens),
        is_same_machine=is_same,
        reason=reason,
    )


def _fail(golden: GoldenGeneration, is_same_machine: bool, reason: str) -> GenerationCheck:
    return GenerationCheck(
        passed=False, num_tokens=len(golden.tokens), num_agreeing=0, is_same_machine=is_same_machine, reason=reason
    )


def _write(engine: GenerationEngine, prompt: str, num_tokens: int) -> str:
    return "".join(chunk.text for chunk in engine.generate(prompt, max_tokens=num_tokens))
