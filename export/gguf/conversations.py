"""Conversations on which chat templates tend to differ: roles, white space, scripts, code, tools, special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Conversation", "conversations"]

Message: TypeAlias = Mapping[str, Any]

_TOOLS: tuple[Mapping[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather of a place, “today” or <later>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "City & country"},
                    "days": {"type": "integer", "minimum": 0},
                    "unit": {"type": "string", "enum": ["°C", "°F"]},
                },
                "required": ["place"],
            },
        },
    },
)
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "unit": "°C"}},
        }
    ],
}
_ANSWER = {
    "role": "tool",
    "name": "get_weather",
    "tool_call_id": "call00001",
    "content": '{"sky": "<clear>", "t": 21.5}',
}
_CODE = "```python\ndef f(x):\n    return {'a': [x ** 2, None]}  # \"{{ x }}\" {% if %}\n```"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What is given to a chat template."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True

    @property
    def is_plain(self) -> bool:
        """Nothing but messages of a role and a text."""
        return self.tools is None and all(message.keys() == {"role", "content"} for message in self.messages)


def conversations(special_tokens: Sequence[str]) -> list[Conversation]:
    """Make conversations, the same for the same arguments.

    Args:
        special_tokens: They are spelled out in what the user says.
    """
    cases: dict[str, Sequence[Message]] = {
        "one turn": [_user("What is the capital of France?")],
        "system": [_system("Answer in one word."), _user("Capital of France?")],
        "several turns": [_user("Hi"), _model("Hello! How can I help?"), _user("Count to 3."), _model("1, 2, 3"),
                          _user("And back?")],
        "system and several turns": [_system("You are terse."), _user("a"), _model("b"), _user("c"), _model("d"),
                                     _user("e")],
        "empty texts": [_system(""), _user(""), _model(""), _user("?")],
        "white space around": [_user("  two before, one after \n"), _model("\n\nyes \t"), _user(" \n ")],
        "scripts": [_user("你好，世界 — Ünïcödé ﬁ 👩‍👩‍👧 🇩🇪 नमस्ते שלום مرحبا"),
                    _model("こんにちは"), _user("é vs e\u0301")],
        "code": [_user(_CODE), _model(_CODE), _user("Again, with \\n and \\\\ and \"quotes\" and 'these'.")],
        "control characters": [_user("a\tb\r\nc\x0bd\u2028e\u00a0f\x1b[0m"), _model("\r"), _user("g")],
        "spelled tokens": [_user(f"Ignore {token} this{token}\n{token} now") for token in special_tokens[:1]]
        or [_user("<s>[INST] <|im_end|></s>")],
        "every special token": [_system("Be " + " ".join(special_tokens)), _user("".join(special_tokens) + " end"),
                                _model(" ".join(special_tokens)), _user("x")],
        "markup": [_user("<b>&amp; 1 < 2 > 0</b> {{ messages }} {% raw %} {# no #} ${x}"),
                   _model("<think>\nhm\n</think>\n\n4"),
                   _user("</think> so?")],
        "two users in turn": [_user("a"), _user("b")],
        "model first": [_model("a"), _user("b")],
    }  # fmt: skip
    result = [Conversation(name=name, messages=messages) for name, messages in cases.items()]
    result.append(Conversation(name="answered", messages=[_user("a"), _model("b")], add_generation_prompt=False))
    asked = [_system("Use tools."), _user("Weather in Zürich?")]
    result.append(Conversation(name="tools", messages=asked, tools=_TOOLS))
    called = [_user("Weather in Zürich?"), _CALL, _ANSWER]
    result.append(Conversation(name="tool call", messages=called, tools=_TOOLS))
    more = [*called, _model("Clear, 21.5 °C."), _user("And tomorrow?")]
    result.append(Conversation(name="tool call and more", messages=more, tools=_TOOLS))
    return result


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _model(text: str) -> Message:
    return {"role": "assistant", "content": text}
