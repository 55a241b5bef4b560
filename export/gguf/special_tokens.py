"""Special tokens, chat templates and generation defaults of a checkpoint, in the words of GGUF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgesmith.errors import ArtifactError, CheckpointError, UnsupportedError
from edgesmith.files import storage_errors
from export.gguf.metadata import Metadata
from export.gguf.model_config import ModelConfig
from export.gguf.tokenizer_file import TokenizerFile
from serve.runtime.chat_template import MAX_TEMPLATE_BYTES, check_template

__all__ = ["chat_templates", "generation_defaults", "read_templates", "special_tokens"]

# Role in a tokenizer's settings → key, whose spelling is the format's.
_ROLES: Mapping[str, str] = {
    "bos": "bos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Setting of generation_config.json → key.
_SAMPLING: Mapping[str, str] = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def special_tokens(file: TokenizerFile, config: ModelConfig, num_tokens: int) -> tuple[Metadata, list[str]]:
    """Which tokens have a role, and which are put around every text.

    A text ends at any of the tokens that the generation defaults name; GGUF has room for three.

    Raises:
        CheckpointError: a token has a number that the vocabulary does not reach.
        UnsupportedError: the tokenizer puts other tokens around a text than the first and the last.
    """
    settings: Metadata = {}
    left_out: list[str] = []
    for role, key in _ROLES.items():
        index = file.unknown_id if role == "unk" else file.special_id(role)
        if index is None and role in ("bos", "pad"):
            index = _config_id(file, config, role)
        if index is not None:
            settings[f"tokenizer.ggml.{key}"] = _checked(file, role, index, num_tokens)
    ends = list(_ends(file, config))
    for key, index in zip(_END_KEYS, ends, strict=False):
        settings[f"tokenizer.ggml.{key}"] = _checked(file, "eos", index, num_tokens)
    left_out += [f"the end token number {index}: the format has room for three" for index in ends[len(_END_KEYS) :]]
    return settings | _frame(file, settings), left_out


def _config_id(file: TokenizerFile, config: ModelConfig, role: str) -> int | None:
    for value in (file.generation.get(f"{role}_token_id"), config.get(f"{role}_token_id")):
        if type(value) is int and value >= 0:
            return value
    return None


def _ends(file: TokenizerFile, config: ModelConfig) -> Iterator[int]:
    """End tokens, the tokenizer's own first."""
    stated = file.generation.get("eos_token_id", config.get("eos_token_id"))
    listed = stated if isinstance(stated, list) else [stated]
    if any(index is not None and type(index) is not int for index in listed):
        raise CheckpointError(
            f"{file.folder}: eos_token_id is {stated!r}, expected a number or a list of numbers",
            mend="Repair generation_config.json, or config.json where there is none.",
        )
    own = file.special_id("eos")
    yield from dict.fromkeys(index for index in (own, *listed) if type(index) is int and index >= 0)


def _checked(file: TokenizerFile, role: str, index: int, num_tokens: int) -> int:
    if not 0 <= index < num_tokens:
        raise CheckpointError(
            f"{file.folder}: the {role} token has the number {index}, the vocabulary {num_tokens} tokens",
            mend="The configuration and the tokenizer are not of one model: get both from one source.",
        )
    return index


def _frame(file: TokenizerFile, settings: Metadata) -> Metadata:
    """Flags for the tokens that are put before and after a text."""
    before, after = file.frame()
    first = settings.get("tokenizer.ggml.bos_token_id")
    last = settings.get("tokenizer.ggml.eos_token_id")
    cls, sep = settings.get("tokenizer.ggml.cls_token_id"), settings.get("tokenizer.ggml.seperator_token_id")
    extra: Metadata = {}
    if file.kind == "WordPiece" and (before, after) == ([cls], [sep]):
        # The runtime frames with the first and last token's roles, whatever a tokenizer of this kind calls them.
        extra = {"tokenizer.ggml.bos_token_id": before[0], "tokenizer.ggml.eos_token_id": after[0]}
        first, last = before[0], after[0]
    if before not in ([], [first]) or after not in ([], [last]):
        raise UnsupportedError(
            f"{file.path}: puts the tokens {before} before and {after} after a text; GGUF can only put the first "
            f"({first!r}) and the last token ({last!r}) there",
            mend="Set bos_token and eos_token in tokenizer_config.json to the tokens that the post-processor adds.",
        )
    return extra | {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}


def chat_templates(file: TokenizerFile) -> Metadata:
    """The chat template, and others by their names.

    Raises:
        CheckpointError: a template is no text, too long, damaged, or tries to escape its sandbox.
    """
    templates = read_templates(file)
    for name, template in templates.items():
        try:
            check_template(template)
        except ArtifactError as error:
            raise CheckpointError(
                f"{file.folder}: {name}: {error.message}",
                mend="Repair the chat template, or take the tokenizer of a source that you trust.",
            ) from error
    settings: Metadata = {}
    others = sorted(name for name in templates if name != "default")
    if others:
        settings["tokenizer.chat_templates"] = others
        settings |= {f"tokenizer.chat_template.{name}": templates[name] for name in others}
    if templates.get("default"):
        settings["tokenizer.chat_template"] = templates["default"]
    return settings


def read_templates(file: TokenizerFile) -> dict[str, str]:
    """Read the chat templates of a checkpoint by their names, `default` first, without judging them.

    Raises:
        CheckpointError: a template is no text, or too long.
    """
    stored = file.settings.get("chat_template")
    templates: dict[str, Any] = {}
    if isinstance(stored, str):
        templates["default"] = stored
    elif isinstance(stored, list):
        templates |= {str(one.get("name")): one.get("template") for one in stored if isinstance(one, Mapping)}
    paths = {"default": file.folder / "chat_template.jinja"}
    paths |= {path.stem: path for path in sorted((file.folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in paths.items():
        if path.is_file():
            with storage_errors(path):
                templates[name] = path.read_bytes()[: MAX_TEMPLATE_BYTES + 1].decode("utf-8", errors="replace")
    for name, template in templates.items():
        if not isinstance(template, str) or len(template.encode()) > MAX_TEMPLATE_BYTES or not name.isidentifier():
            raise CheckpointError(
                f"{file.folder}: the chat template {name!r} is no text of at most {MAX_TEMPLATE_BYTES:,} bytes, or its "
                "name is not one of letters, digits and underscores",
                mend="Get the tokenizer again from the model's source.",
            )
    return {
        name: templates[name] for name in sorted(templates, key=lambda one: (one != "default", one)) if templates[name]
    }


def generation_defaults(file: TokenizerFile) -> Metadata:
    """How the model's makers sample from it; nothing when it decodes greedily."""
    if not file.generation.get("do_sample"):
        return {}
    settings: Metadata = {}
    for key, name in _SAMPLING.items():
        value = file.generation.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            settings[f"general.sampling.{name}"] = int(value) if key == "top_k" else float(value)
    return settings
