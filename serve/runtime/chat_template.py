"""Render the chat template that a model carries, as transformers does, without trusting it.

Source: https://huggingface.co/docs/transformers/main/en/chat_templating_writing
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgesmith.errors import ArtifactError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["MAX_TEMPLATE_BYTES", "check_template", "render_chat"]

MAX_TEMPLATE_BYTES = 1 << 18
MAX_OUTPUT_CHARACTERS = 1 << 24
MAX_STEPS = 4_000_000
TRIAL_STEPS = 200_000
_OLDEST_JINJA = (3, 1, 6)  # older ones have holes
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MEND = "Do not use this file: get the model again from where it was made, or write a chat template of your own."
_TRIALS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "a"}],
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ],
)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    bos_token: str,
    eos_token: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> str:
    """Turn a conversation into the text that the model reads.

    The template runs in a sandbox: it reaches no internals of Python, and loops, texts and lists are limited.

    Args:
        template: In Jinja's language, at most 256 KiB.
        messages: Each with `role`, and `content` or what else the template reads; plain JSON values. A value of None
            counts as missing.
        add_generation_prompt: End with what starts the model's answer.
        bos_token: Text of the token that starts a text; empty if there is none.
        eos_token: Text of the token that ends one.
        tools: JSON schemas of functions that the model may call.
        variables: More that the template may read, such as `enable_thinking`.
        now: For templates that ask for the date; by default the clock's.

    Returns:
        The text. Tokenize it without adding a first token: the template writes its own.

    Raises:
        UsageError: the template refuses the conversation, or cannot render it.
        ArtifactError: the template is damaged, tries to escape its sandbox, or does absurdly much.
        MissingExtraError: Jinja is not installed.
    """
    values = _values(messages, tools, bos_token, eos_token, now) | {"add_generation_prompt": add_generation_prompt}
    more = {key: _plain(value) for key, value in (variables or {}).items()}
    return _run(_compiled(template), values | more, MAX_STEPS)


def _values(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    bos_token: str,
    eos_token: str,
    now: datetime | None,
) -> dict[str, Any]:
    """What a template can read."""
    date = now or datetime.now().astimezone().replace(tzinfo=None)
    return {
        "messages": [_message(message) for message in messages],
        "tools": None if tools is None else [_plain(tool) for tool in tools],
        "documents": None,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "strftime_now": lambda layout: date.strftime(str(layout)[:200]),
    }


def check_template(template: str) -> None:
    """Refuse a template that is damaged, or that tries to escape its sandbox.

    It is read, and run on two small conversations. That it refuses them, or fails on them, is no fault.

    Raises:
        ArtifactError: see above.
        MissingExtraError: Jinja is not installed.
    """
    _check_once(template)


@functools.lru_cache(maxsize=32)
def _check_once(template: str) -> None:
    for messages in _TRIALS:
        try:
            values = _values(messages, None, "<s>", "</s>", None) | {"add_generation_prompt": True}
            _run(_compiled(template), values, TRIAL_STEPS)
        except UsageError as error:
            if isinstance(error, MissingExtraError):
                raise


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    if len(template.encode("utf-8", errors="replace")) > MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"the chat template is longer than {MAX_TEMPLATE_BYTES:,} bytes", mend=_MEND)
    sandbox = _sandbox()
    import jinja2
    from jinja2.exceptions import SecurityError

    try:
        return sandbox.from_string(template)  # type: ignore[no-any-return]
    except SecurityError as error:
        raise _escapes(error) from error
    except jinja2.TemplateSyntaxError as error:
        raise ArtifactError(f"the chat template is damaged in line {error.lineno}: {error}", mend=_MEND) from error
    except Exception as error:  # the compiler's own, such as too deep a nesting
        raise ArtifactError(f"the chat template cannot be compiled: {error}", mend=_MEND) from error


@functools.cache
def _sandbox() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError(
            "Jinja is not installed, which chat templates need",
            mend="Install it with `pip install 'edgesmith[gguf]'`.",
        ) from error
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit()) < _OLDEST_JINJA:
        raise MissingExtraError(
            f"Jinja {jinja2.__version__} is too old to run the templates of strangers",
            mend="Install a current one with `pip install --upgrade jinja2`.",
        )
    from serve.runtime.template_sandbox import Sandbox

    return Sandbox(_to_json)


def _run(template: Template, values: Mapping[str, Any], steps: int) -> str:
    from jinja2.exceptions import SecurityError

    from serve.runtime.template_budget import BUDGET, Budget
    from serve.runtime.template_sandbox import RefusedConversation

    token = BUDGET.set(Budget(steps))
    pieces: list[str] = []
    left = MAX_OUTPUT_CHARACTERS
    try:
        for piece in template.generate(values):
            left -= len(piece)
            if left < 0:
                raise SecurityError(f"it writes more than {MAX_OUTPUT_CHARACTERS:,} characters")  # noqa: TRY301
            pieces.append(piece)
    except RefusedConversation as error:
        raise UsageError(
            f"the chat template refuses this conversation: {error}",
            mend="Give the messages that the model was made for.",
        ) from error
    except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
        raise _escapes(error) from error
    except Exception as error:  # whatever the template's own code runs into
        raise UsageError(
            f"the chat template cannot render this conversation: {type(error).__name__}: {error}",
            mend="Give every message what the template reads: role and content, as texts.",
        ) from error
    finally:
        BUDGET.reset(token)
    return "".join(pieces)


def _escapes(error: Exception) -> ArtifactError:
    return ArtifactError(f"the chat template is hostile: {str(error) or type(error).__name__}", mend=_MEND)


def _message(message: Mapping[str, Any]) -> Any:
    """A message in plain values; what the model thought has several names."""
    if not isinstance(message, Mapping):
        raise UsageError(f"a message is a mapping with role and content, not a {type(message).__name__}")
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    thought = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if thought is None else {"thinking": thought, **plain, "reasoning_content": thought}


def _plain(value: Any) -> Any:
    """Refuse what has methods that a template could call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    raise UsageError(f"a chat template reads texts, numbers, lists and mappings, not a {type(value).__name__}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML would read as markup."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
