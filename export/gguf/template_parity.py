"""Prove that the chat template in a GGUF file makes the texts and tokens that the model was trained on."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.quiet import quiet_libraries
from edgesmith.errors import ArtifactError, CheckpointError, UsageError, VerificationError
from export.gguf.conversations import Conversation, conversations
from export.gguf.special_tokens import read_templates
from export.gguf.tokenizer_file import TokenizerFile
from serve.runtime.chat_template import render_chat
from serve.runtime.gguf_file import GgufFile
from serve.runtime.llama_library import LlamaModel, load_library

__all__ = ["ChatTemplateParity", "check_chat_template"]

_KEY = "tokenizer.chat_template"
_MEND = "Do not ship this file: a chat would give the model other tokens than it was trained on."


@dataclass(frozen=True, kw_only=True)
class ChatTemplateParity:
    """What was found equal."""

    templates: tuple[str, ...]
    """Their names, `default` first; empty when the checkpoint has none."""
    num_rendered: int
    """Renderings that were compared, over all templates."""
    num_refused: int
    """Conversations that a template refuses on both sides, such as a system message where it knows none."""
    num_tokens: int
    builtin: str
    """Whether llama.cpp's own code, which its C interface uses instead of the template, does the same."""


def check_chat_template(
    checkpoint: Path, gguf_file: Path, *, more: Sequence[Sequence[Mapping[str, Any]]] = ()
) -> ChatTemplateParity:
    """Render conversations with transformers and with the template from the file; compare texts and tokens.

    Args:
        checkpoint: Hugging Face folder.
        gguf_file: What was made from it; only its vocabulary is loaded.
        more: Conversations of your own, beside those that are made here: lists of messages.

    Returns:
        How much was compared.

    Raises:
        VerificationError: a template is missing from the file, or a text or its tokens differ; the first difference is
            shown.
        CheckpointError: transformers cannot load the tokenizer.
        ArtifactError: the file is damaged or its template hostile, or llama.cpp refuses it.
        MissingExtraError: llama-cpp-python or Jinja is not installed.
    """
    file = TokenizerFile(checkpoint)
    expected = read_templates(file)
    special = [str(token["content"]) for token in file.added if token.get("special")]
    cases = conversations(special)
    cases += [Conversation(name=f"your conversation {index}", messages=one) for index, one in enumerate(more, start=1)]
    with LlamaModel(gguf_file, vocab_only=True) as model:
        found = _templates_of(model.file)
        if found.keys() != expected.keys():
            raise VerificationError(
                f"{gguf_file}: has the chat templates {', '.join(found) or '(none)'}, the checkpoint "
                f"{', '.join(expected) or '(none)'}",
                mend="Convert the checkpoint again.",
            )
        if not found:
            return ChatTemplateParity(
                templates=(), num_rendered=0, num_refused=0, num_tokens=0, builtin="there is no chat template"
            )
        comparison = _Comparison(checkpoint, file, model)
        for name, template in found.items():
            comparison.compare(name, template, cases)
        builtin = _builtin(found, cases, comparison)
    return ChatTemplateParity(
        templates=tuple(found),
        num_rendered=comparison.num_rendered,
        num_refused=comparison.num_refused,
        num_tokens=comparison.num_tokens,
        builtin=builtin,
    )


def _templates_of(file: GgufFile) -> dict[str, str]:
    """As the file has them, `default` first."""
    return {
        key.removeprefix(_KEY).removeprefix(".") or "default": value
        for key, value in sorted(file.metadata.items())
        if (key == _KEY or key.startswith(f"{_KEY}.")) and isinstance(value, str)
    }


class _Comparison:
    """One checkpoint's tokenizer beside one file's."""

    def __init__(self, checkpoint: Path, file: TokenizerFile, model: LlamaModel) -> None:
        from transformers import AutoTokenizer

        self.num_rendered = self.num_refused = self.num_tokens = 0
        self.file, self.model = file, model
        try:
            with quiet_libraries():
                self.theirs = AutoTokenizer.from_pretrained(
                    str(checkpoint), local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # the library raises classes of many kinds
            raise CheckpointError(
                f"{checkpoint}: transformers cannot load its tokenizer: {error}",
                mend="Get the tokenizer again from the model's source.",
            ) from error
        self.bos, self.eos = (self.model.special_text(role) for role in ("bos", "eos"))

    def compare(self, name: str, template: str, cases: Sequence[Conversation]) -> None:
        """All conversations with one template."""
        rendered = 0
        for case in cases:
            text = self.render(template, case)  # first: it refuses what would harm
            expected = self._render_theirs(name, case)
            if isinstance(text, UsageError) and isinstance(expected, Exception):
                self.num_refused += 1
            elif not isinstance(text, str) or text != expected:
                raise self._differs(name, case, expected, text)
            else:
                self._compare_tokens(name, case, text)
                rendered += 1
        self.num_rendered += rendered
        if not rendered:
            raise VerificationError(
                f"{self.model.path}: the chat template {name!r} renders none of {len(cases)} conversations",
                mend="Repair chat_template.jinja, or remove it if the model is none for chats.",
            )

    def render(self, template: str, case: Conversation) -> str | UsageError:
        """What our renderer makes of it, or why it does not."""
        try:
            return render_chat(
                template,
                case.messages,
                add_generation_prompt=case.add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
                tools=case.tools,
            )
        except UsageError as error:
            return error
        except ArtifactError as error:
            raise ArtifactError(f"{self.model.path}: {error.message}", mend=error.mend) from error

    def _render_theirs(self, name: str, case: Conversation) -> str | Exception:
        stored = self.theirs.chat_template
        template = stored[name] if isinstance(stored, dict) else stored
        try:
            return str(
                self.theirs.apply_chat_template(
                    [dict(message) for message in case.messages],
                    tools=None if case.tools is None else [dict(tool) for tool in case.tools],
                    chat_template=template,
                    add_generation_prompt=case.add_generation_prompt,
                    tokenize=False,
                )
            )
        except Exception as error:  # noqa: BLE001 - a template may raise what it likes: compared with ours
            return error

    def _compare_tokens(self, name: str, case: Conversation, text: str) -> None:
        expected = self.file.tokenizer.encode(text, add_special_tokens=False).ids
        found = self.model.tokenize(text, add_special=False)
        self.num_tokens += len(expected)
        if found != expected:
            pairs = zip(expected, found, strict=False)
            start = next((index for index, (one, other) in enumerate(pairs) if one != other), len(found))
            raise VerificationError(
                f"{self.model.path}: llama.cpp tokenizes the chat {case.name!r} of the template {name!r} differently "
                f"from token {start} on: {found[start : start + 6]} instead of {expected[start : start + 6]}\n"
                f"    {text!r}",
                mend=_MEND,
            )

    def _differs(self, name: str, case: Conversation, expected: object, found: object) -> VerificationError:
        return VerificationError(
            f"{self.model.path}: the chat template {name!r} renders {case.name!r} differently:\n"
            f"    transformers {_shown(expected, found)}\n"
            f"    the file     {_shown(found, expected)}",
            mend=_MEND,
        )


def _shown(text: object, other: object) -> str:
    """From shortly before the first difference on."""
    if not isinstance(text, str):
        return f"refuses: {text.message if isinstance(text, UsageError) else text}"
    start = 0
    if isinstance(other, str):
        pairs = zip(text, other, strict=False)
        start = next((index for index, (one, two) in enumerate(pairs) if one != two), min(len(text), len(other)))
    start = max(0, start - 20)
    return f"{'…' if start else ''}{text[start : start + 120]!r}"


def _builtin(templates: Mapping[str, str], cases: Sequence[Conversation], comparison: _Comparison) -> str:
    """Compare llama.cpp's code for well-known templates, on messages of a role and a text."""
    template = templates.get("default")
    if template is None:
        return "there is no default chat template"
    plain = [case for case in cases if case.is_plain]
    differs: list[str] = []
    num_compared = 0
    for case in plain:
        expected, found = comparison.render(template, case), _apply_builtin(template, case)
        if found is None:
            return "llama.cpp has no code of its own for it, and needs a renderer for the template"
        if isinstance(expected, str):
            num_compared += 1
            if expected not in (found, comparison.bos + found):
                differs.append(case.name)
    if differs:
        return (
            f"llama.cpp's own code for it renders {len(differs)} of {num_compared} conversations differently, such as "
            f"{differs[0]!r}: use the template"
        )
    return f"llama.cpp's own code for it renders {num_compared} conversations alike"


def _apply_builtin(template: str, case: Conversation) -> str | None:
    """The text without the first token; None when llama.cpp does not recognize the template.

    Source: `llama_chat_apply_template` in https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
    """
    library = load_library()
    stored = [(str(one["role"]).encode(), str(one["content"]).encode()) for one in case.messages]
    messages = (library.llama_chat_message * len(stored))(*(library.llama_chat_message(*pair) for pair in stored))
    size = 4096 + 2 * sum(len(role) + len(text) for role, text in stored)
    for _ in range(2):
        buffer = ctypes.create_string_buffer(size)
        length = library.llama_chat_apply_template(
            template.encode(), messages, len(stored), case.add_generation_prompt, buffer, size
        )
        if length < 0:
            return None
        if length <= size:
            return buffer.raw[:length].decode("utf-8", errors="replace")
        size = length
    return None
