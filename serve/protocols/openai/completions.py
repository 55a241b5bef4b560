"""`POST /v1/completions`: texts that are continued.

Source: OpenAI API reference, "Completions".
"""

from __future__ import annotations

from typing import Any

from serve.http.message import Request
from serve.protocols.openai.answer import answer
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields, wrong_type
from serve.protocols.openai.forms import CompletionForm
from serve.protocols.openai.handling import Asked, Run, json_body, make_call, writing_model
from serve.protocols.openai.options import IGNORED, KNOWN, read_wanted
from serve.protocols.openai.prompts import check_size, settle_length
from serve.protocols.text_models import prepare_prompts
from serve.service import Service

__all__ = ["complete"]

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 64
_MAX_LOGPROBS = 5
_KNOWN = KNOWN | {"prompt", "echo", "suffix", "best_of"}


async def complete(service: Service, request: Request, asked: Asked) -> Run:
    """Read and check a request; what comes back answers it."""
    fields = Fields(await json_body(service, request), known=_KNOWN, ignored=IGNORED)
    call = make_call(service, request, fields, asked)
    prompts = _prompts(fields)
    num_logprobs = fields.whole("logprobs", 0, _MAX_LOGPROBS)
    wanted = read_wanted(fields, service.limits, num_logprobs=num_logprobs)
    fields.refuse({"suffix": ("",)}, "is not supported by this server")
    fields.refuse({"best_of": (wanted.num_choices,)}, "must be the same as n on this server")
    does_echo = fields.flag("echo")
    if does_echo and num_logprobs is not None:
        raise ParameterError("echo together with logprobs is not supported by this server", param="echo")
    if len(prompts) * wanted.num_choices > MAX_PROMPTS:
        raise ParameterError(
            f"{len(prompts)} prompts with n = {wanted.num_choices} ask for {len(prompts) * wanted.num_choices} "
            f"answers; at most {MAX_PROMPTS} are given at a time",
            param="prompt",
        )
    model = writing_model(call)
    for prompt in prompts:
        check_size(model, len(prompt), param="prompt")
    model, counts = await prepare_prompts(call, model, lambda one: [one.count_tokens(prompt) for prompt in prompts])
    most = wanted.max_tokens
    lengths = [
        settle_length(model, count, most, most=min(DEFAULT_MAX_TOKENS, service.limits.max_tokens), param="prompt")
        for count in counts
    ]
    form = CompletionForm(
        has_logprobs=num_logprobs is not None, echoed=prompts if does_echo else (), num_choices=wanted.num_choices
    )
    return lambda: answer(call, model, prompts, lengths, wanted, form)


def _prompts(fields: Fields) -> list[str]:
    value: Any = fields.get("prompt")
    if value is None:
        raise ParameterError("you must provide a prompt", param="prompt", code="missing_parameter")
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise wrong_type("prompt", value, "a string or a list of strings, not an empty one")
    if type(prompts[0]) is int or isinstance(prompts[0], list):
        raise ParameterError("prompts of token numbers are not supported by this server; send texts", param="prompt")
    if len(prompts) > MAX_PROMPTS:
        raise ParameterError(
            f"{len(prompts)} prompts are too many; at most {MAX_PROMPTS} are taken at a time", param="prompt"
        )
    for index, one in enumerate(prompts):
        if not isinstance(one, str):
            raise wrong_type(f"prompt[{index}]", one, "a string")
    return prompts
