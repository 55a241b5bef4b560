"""The chat template that a GGUF file carries makes what transformers makes, in text and in tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.errors import ArtifactError, CheckpointError, VerificationError
from export.gguf.conversations import conversations
from export.gguf.template_parity import ChatTemplateParity, check_chat_template
from export.gguf.to_gguf import GgufExport, to_gguf
from serve.runtime.gguf_file import read_gguf

from .conftest import SPECIAL, TINY, save_model, save_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As the families' own templates do it, in short.
TEMPLATES = {
    "chatml": CHATML,
    "llama 3": """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|im_start|>system\n\nToday Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {{- "You have access to the following functions.\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- eos_token }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|im_start|>' + message['role'] + '\n\n'+ message['content'] | trim + eos_token }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|im_start|>assistant\n\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n\n' }}
{%- endif %}
""",
    "qwen 3": """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}
        {%- else %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "smollm 3": """{# the macro comes first #}
{%- macro say(role, text='') -%}
    {% if text %}<|im_start|>{{ role }}
{{ text }}<|im_end|>
    {% endif %}
{%- endmacro -%}
{% for message in messages if message.role != 'tool' %}
    {% if message.role == 'assistant' %}
        {% generation %}{{ say('assistant', message.content) }}{% endgeneration %}
    {% elif loop.index0 > 100 %}{% break %}
    {% else %}{{ say(message.role, text=message.content) }}{% endif %}
{% endfor %}
{% for key, value in (messages[0] | dictsort) %}{{ '%-9s' | format(key) }}
{{ value | upper | replace('A', '@') }}{% endfor %}
{{ messages | map(attribute='role') | unique | join('/') }}
{{ messages | selectattr('role', 'eq', 'user') | list | count }}
{%- if add_generation_prompt %}{{ "\n<|im_start|>assistant\n" }}{% endif %}""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("chat")
    save_model(folder, transformers.LlamaConfig(**(TINY | {"num_hidden_layers": 1})))
    save_tokenizer(folder)
    return folder


Converter = Callable[..., GgufExport]


@pytest.fixture
def convert(folder: Path, tmp_path: Path) -> Converter:
    """Give the small model a chat template, and others by name; convert it."""

    def run(template: str, **others: str) -> GgufExport:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        listed = [{"name": name, "template": one} for name, one in {"default": template, **others}.items()]
        settings["chat_template"] = listed if others else template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return to_gguf(folder, tmp_path / "model.gguf", dtype="f32")

    return run


def check(folder: Path, done: GgufExport) -> ChatTemplateParity:
    return check_chat_template(folder, done.path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_renders_them(name: str, convert: Converter, folder: Path) -> None:
    result = check(folder, convert(TEMPLATES[name]))
    assert result.num_rendered + result.num_refused == len(conversations(SPECIAL)) >= 18
    assert result.num_rendered >= (6 if name == "gemma" else 15)
    assert result.num_tokens > 500
    assert result.templates == ("default",)


def test_the_runtimes_own_code_is_reported(
    convert: Converter, folder: Path, smollm2_gguf: Path, smollm2_folder: Path
) -> None:
    assert "renders 15 conversations alike" in check(folder, convert(CHATML)).builtin
    assert "has no code of its own" in check(folder, convert("{{ messages[0].content }}")).builtin
    # SmolLM2's template puts a system message first where there is none; the runtime's code for its marks does not.
    result = check_chat_template(smollm2_folder, smollm2_gguf)
    assert result.num_rendered == 18
    assert "differently, such as 'one turn': use the template" in result.builtin


def test_templates_by_name_are_compared_too(convert: Converter, folder: Path) -> None:
    done = convert(CHATML, tool_use=TEMPLATES["qwen 3"])
    result = check(folder, done)
    assert result.templates == ("default", "tool_use")
    assert result.num_rendered == 36
    assert read_gguf(done.path).metadata["tokenizer.chat_template.tool_use"] == TEMPLATES["qwen 3"]


def test_your_own_conversations_are_compared(convert: Converter, folder: Path) -> None:
    done = convert(CHATML)
    more = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b", "reasoning": "c"}]]
    assert check_chat_template(folder, done.path, more=more).num_rendered == check(folder, done).num_rendered + 2


def test_another_template_in_the_file_is_found(convert: Converter, folder: Path) -> None:
    done = convert(CHATML)
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("'<|im_end|>' + '\\n'", "'<|im_end|>'"))
    with pytest.raises(
        VerificationError, match=r"'default' renders 'one turn' differently:\n +transformers …'.*France"
    ):
        check(folder, done)


def test_a_template_that_the_file_lacks_is_found(convert: Converter, folder: Path) -> None:
    done = convert(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(CHATML)
    try:
        with pytest.raises(VerificationError, match="chat templates default, the checkpoint default, tool_use"):
            check(folder, done)
    finally:
        (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
        (folder / "additional_chat_templates").rmdir()


def test_a_template_that_renders_nothing_is_refused(convert: Converter, folder: Path) -> None:
    done = convert("{{ raise_exception('never') }}")
    with pytest.raises(VerificationError, match="'default' renders none of 18 conversations"):
        check(folder, done)


def test_tokens_that_differ_are_found(convert: Converter, folder: Path) -> None:
    done = convert(CHATML)
    path = folder / "tokenizer.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]]}  # fmt: skip
    path.write_text(json.dumps(content))
    try:
        with pytest.raises(VerificationError, match=r"tokenizes the chat .* differently from token \d+ on"):
            check_chat_template(folder, done.path, more=[[{"role": "user", "content": "in 1849, 1851, 12"}]])
    finally:
        path.write_text(whole)


def test_a_model_without_a_template_needs_none(convert: Converter, folder: Path) -> None:
    result = check(folder, convert(""))
    assert (result.templates, result.num_rendered) == ((), 0)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__ }}", "hostile: it reaches for '__class__'"),
        ("{{ ''|attr('__cla' ~ 'ss__') }}", "hostile: it reaches for '__class__' of a str"),
        ("{{ 'a' * 10 ** 10 }}", "hostile: it does more than 200,000 steps"),
        ("{% if %}", "damaged in line 1"),
    ],
)
def test_a_hostile_template_is_not_converted(template: str, message: str, convert: Converter) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(template)


def test_a_hostile_template_is_found_before_the_runtime_opens_the_file(convert: Converter, folder: Path) -> None:
    done = convert(CHATML)
    hostile = "{{ ''.__class__.__mro__ }}{#".ljust(len(CHATML) - 2) + "#}"
    done.path.write_bytes(done.path.read_bytes().replace(CHATML.encode(), hostile.encode()))
    with pytest.raises(ArtifactError, match="hostile: it reaches for '__mro__'"):
        check(folder, done)
