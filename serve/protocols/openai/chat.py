"""`POST /v1/chat/completions`: conversations that a model goes on with.

Source: OpenAI API reference, "Chat completions".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesmith.errors import UnsupportedError, UsageError
from serve.http.message import Request
from serve.models.text_model import TextModel
from serve.protocols.openai.answer import answer
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields
from serve.protocols.openai.forms import ChatForm
from serve.protocols.openai.handling import Asked, Run, json_body, make_call, unsupported, writing_model
from serve.protocols.openai.messages import read_messages
from serve.protocols.openai.options import IGNORED, KNOWN, read_wanted
from serve.protocols.openai.prompts import check_size, settle_length
from serve.protocols.openai.response_format import read_response_format
from serve.protocols.text_models import prepare_prompts
from serve.service import Service

__all__ = ["chat"]

_MAX_LOGPROBS = 20
_KNOWN = KNOWN | {
    "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice", "functions",
    "function_call", "modalities", "audio", "prediction", "web_search_options", "moderation", "reasoning_effort",
    "verbosity",
}  # fmt: skip
_IGNORED = IGNORED | {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store",
}  # fmt: skip
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "moderation": (),
    "reasoning_effort": ("none",), "verbosity": ("medium",),
}  # fmt: skip


async def chat(service: Service, request: Request, asked: Asked) -> Run:
    """Read and check a request; what comes back answers it."""
    fields = Fields(await json_body(service, request), known=_KNOWN, ignored=_IGNORED)
    call = make_call(service, request, fields, asked)
    messages = read_messages(fields.get("messages"))
    fields.refuse(_REFUSED, "is not supported by this server")
    num_logprobs = _num_logprobs(fields)
    wanted = read_wanted(
        fields,
        service.limits,
        num_logprobs=num_logprobs,
        json_schema=await read_response_format(fields.get("response_format")),
        length_names=("max_completion_tokens", "max_tokens"),
    )
    model = writing_model(call)
    check_size(model, sum(len(message["content"]) for message in messages), param="messages")
    model, (prompt, num_prompt) = await prepare_prompts(call, model, lambda one: _render(one, messages))
    most = settle_length(model, num_prompt, wanted.max_tokens, most=service.limits.max_tokens, param="messages")
    form = ChatForm(has_logprobs=num_logprobs is not None)
    return lambda: answer(call, model, [prompt], [most], wanted, form)


def _num_logprobs(fields: Fields) -> int | None:
    num_likely = fields.whole("top_logprobs", 0, _MAX_LOGPROBS)
    if fields.flag("logprobs"):
        return num_likely or 0
    if num_likely is not None:
        raise ParameterError("top_logprobs is only allowed when logprobs is true", param="top_logprobs")
    return None


def _render(model: TextModel, messages: list[dict[str, Any]]) -> tuple[str, int]:
    """The conversation as the model reads it, and its number of tokens."""
    try:
        prompt = model.chat_prompt(messages)
    except UnsupportedError as error:
        raise unsupported(error, "messages") from error
    except UsageError as error:
        raise ParameterError(error.message, param="messages", mend=error.mend) from error
    return prompt, model.count_tokens(prompt)
