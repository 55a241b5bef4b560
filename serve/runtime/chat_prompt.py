"""A conversation as the text that an artifact's model reads: its own chat template, its own special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.files import storage_errors
from serve.runtime.chat_template import render_chat
from serve.runtime.generation import GenerationEngine

if TYPE_CHECKING:
    from serve.runtime.llama_library import LlamaModel

__all__ = ["Chat", "chat_prompt", "read_chat"]

_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What a model's files say of conversations.

    Attributes:
        template: In Jinja's language; empty where the model has none.
        bos: Text of the token that starts a text; empty if there is none.
        eos: Text of the token that ends one.
        adds_bos: Whether the engine adds the first token by itself.
        path: Of the artifact, for messages.
    """

    template: str
    bos: str
    eos: str
    adds_bos: bool = False
    path: str = ""

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write a conversation down; see `chat_prompt`."""
        if not self.template:
            raise UnsupportedError(
                f"{self.path}: has no chat template", mend="Give it the text to continue instead of a conversation."
            )
        text = render_chat(self.template, messages, add_generation_prompt=True, bos_token=self.bos, eos_token=self.eos)
        return text.removeprefix(self.bos) if self.bos and self.adds_bos else text


def read_chat(artifact: Artifact, engine: GenerationEngine) -> Chat:
    """Read what is needed to write many conversations down.

    Args:
        artifact: Its files hold the template.
        engine: Opened from it; not asked again later.

    Raises:
        ArtifactError: A file is damaged.
    """
    chat = _of_gguf(artifact, engine) if artifact.kind == "gguf" else _of_folder(artifact.folder)
    adds_bos = engine.tokenize("a")[:1] != engine.tokenize("a", add_special=False)[:1]
    return replace(chat, adds_bos=adds_bos, path=str(artifact.path))


def chat_prompt(artifact: Artifact, engine: GenerationEngine, messages: Sequence[Mapping[str, Any]]) -> str:
    """Write a conversation down as the model reads it, up to where its answer begins.

    The token that starts every text is left to the engine where that adds it.

    Args:
        artifact: Its files hold the template.
        engine: Opened from it.
        messages: Each with `role` and `content`.

    Raises:
        UnsupportedError: The model has no chat template.
        UsageError: The template refuses the conversation.
        ArtifactError: The template is hostile, or a file is damaged.
    """
    return read_chat(artifact, engine).prompt(messages)


def _of_gguf(artifact: Artifact, engine: GenerationEngine) -> Chat:
    """As the opened file has it, or the file itself where the engine holds another one."""
    from serve.runtime.gguf_engine import LlamaEngine
    from serve.runtime.llama_library import LlamaModel

    if isinstance(engine, LlamaEngine):
        return _of_model(engine.model)
    path = artifact.path if artifact.path.is_file() else artifact.folder / "model.gguf"
    with LlamaModel(path, vocab_only=True) as model:
        return _of_model(model)


def _of_model(model: LlamaModel) -> Chat:
    template = str(model.file.metadata.get("tokenizer.chat_template", ""))
    return Chat(template=template, bos=model.special_text("bos"), eos=model.special_text("eos"))


def _of_folder(folder: Path) -> Chat:
    """As Hugging Face's folders have it."""
    config = _read(folder / "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    template = config.get("chat_template", "")
    if path.is_file():
        with storage_errors(path):
            template = path.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):  # several, by name
        named = {str(one.get("name")): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default", "")
    return Chat(
        template=str(template or ""), bos=_content(config.get("bos_token")), eos=_content(config.get("eos_token"))
    )


def _content(token: Any) -> str:
    """A special token is a text, or an object with one."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with storage_errors(path):
        if path.stat().st_size > _MAX_BYTES:
            raise ArtifactError(f"{path}: has {path.stat().st_size:,} bytes; such a file has at most 16 MiB")
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: is no JSON: {error}", mend="Get the model again from where it was made."
        ) from error
    return found if isinstance(found, dict) else {}
