"""Chat templates are rendered as their authors meant, and get nowhere else, whatever they try."""

from __future__ import annotations

import sys
import tracemalloc
from datetime import datetime
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed")

from edgesmith.errors import ArtifactError, UsageError
from serve.runtime.chat_template import MAX_TEMPLATE_BYTES, check_template, render_chat

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def render(template: str, messages: list[dict[str, Any]] | None = None, **settings: Any) -> str:
    given: dict[str, Any] = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    return render_chat(template, TURNS if messages is None else messages, **(given | settings))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}{% endfor %}",
         "<s>[user] Hi</s>[assistant] Hello</s>"),
        ("{% for m in messages %}\n    {% if loop.last %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}", "Hello\n"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
         "3"),
        ("{% for m in messages[::-1] %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
         "Hello"),
        ("{% macro say(m) %}<{{ m.content|upper }}>{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
         "<HI><HELLO>"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "HiHello"),
        ("{{ {'a': ['<&>', 1.5, none, true], 'ü': 'é'}|tojson }}", '{"a": ["<&>", 1.5, null, true], "ü": "é"}'),
        ("{{ messages[0]|tojson(indent=2) }}", '{\n  "role": "user",\n  "content": "Hi"\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2025"),
        ("{{ messages|map(attribute='content')|join(', ') }}{{ '%s-%02d' % ('a', 7) }}{{ '{:>4}'.format('x') }}",
         "Hi, Hello" "a-07" "   x"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ 'lo' in messages[1].content }}", "1True"),
        ("{% if tools is defined and tools is none %}no tools{% endif %}{{ missing }}", "no tools"),
        ("{{ messages[0].content.split('i')[0] ~ 7 ~ none }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
         "H7None" "rolecontent"),
        ("{% for n in range(3) %}{{ loop.length }}{{ loop.revindex }}{% endfor %}", "333231"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.first }}{% endfor %}", "1True"),
        ("{{ [1, 2] + [3] == [1, 2, 3] and (1, 2) != [1, 2] and 1 < 2 <= 2 }}", "True"),
        ("{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ dict(a=1).get('a') }}", "ababab" "1024" "3" "1"),
        ("{{ thinking }}|{{ messages[0].reasoning_content }}", "yes|"),
    ],
)  # fmt: skip
def test_templates_do_what_they_say(template: str, text: str) -> None:
    now = datetime(2025, 2, 3)
    assert render(template, now=now, variables={"thinking": "yes"}) == text
    check_template(template)


def test_a_value_of_none_counts_as_missing() -> None:
    template = "{% for m in messages %}{{ m.content is defined }}{{ m.reasoning_content }}{% endfor %}"
    assert render(template, [{"role": "user", "content": None, "reasoning": "so"}]) == "Falseso"


DOUBLE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x|length }}"


def doubling(start: str, step: str) -> str:
    return DOUBLE.replace("START", start).replace("STEP", step)


ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by name": "{{ ''['__class__'] }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "class by pieces": "{{ ''|attr('__cla' ~ 'ss__') }}",
    "class by mapping": "{{ ['']|map(attribute='__cla' ~ 'ss__')|list }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals by pieces": "{{ raise_exception['__glo' ~ 'bals__'] }}",
    "context": "{{ self._TemplateReference__context }}",
    "method resolution": "{{ namespace.mro() }}",
    "frame of a generator": "{{ (messages|map('list')).gi_frame }}",
    "code of a macro": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "change of the messages": "{{ messages.append(1) }}",
    "change of a message": "{{ messages[0].update({'role': 'system'}) }}",
    "hidden name": "{% set ns = namespace(__class__=1) %}",
    "bytes": "{{ (5).to_bytes(99999999999, 'big') }}",
    "encoding": "{{ 'a'.encode('idna') }}",
}
LONG = "{% set k = 'k' * 100_000 %}"
# What asks for more memory than its own text shows; each was let through, or stopped only when the memory was taken.
SWELLING = {
    "percent by name": LONG + "{% set x = '%(k)s' * 4000 % {'k': k} %}",
    "percent by name in a filter": LONG + "{% set x = ('%(k)s' * 4000)|format(k=k) %}",
    "percent of widths": "{% set x = '%(k)999s' * 20_000 % {'k': 1} %}",
    "percent of widths by star": "{% set x = '%*d' * 20_000 % ((999, 1) * 20_000) %}",
    "percent of numbers": "{% set x = '%(k)f' * 60_000 % {'k': 10.0 ** 308} %}",
    "percent behind brackets": "{% set x = '%((a)b)999999999d' % {'(a)b': 1} %}",
    "format": LONG + "{% set x = ('{0}' * 4000).format(k) %}",
    "format by name": LONG + "{% set x = ('{k}' * 4000).format_map({'k': k}) %}",
    "replace": LONG + "{% set x = k.replace('k', k) %}",
    "replace by filter": LONG + "{% set x = k|replace(old='k', new=k) %}",
    "replace of nothing": LONG + "{% set x = k.replace('', k) %}",
    "join": LONG + "{% set x = k.join(['a'] * 4000) %}",
    "join by filter": LONG + "{% set x = (['a'] * 4000)|join(attribute=0, d=k) %}",
    "joined texts": LONG + "{% set x = ''.join([k] * 4000) %}",
    "repeated text": LONG + "{% set x = k * 4000 %}",
    "repeated list": "{% set x = [1, 2, 3] * 10_000_000 %}",
    "parts of a text": "{% set x = (',' * 9_000_000).split(',') %}",
    "words of a text": "{% set x = ('a ' * 4_000_000).split() %}",
    "lines of a text": "{% set x = ('\\n' * 9_000_000).splitlines() %}",
    "characters of a text": "{% set x = ('a' * 9_000_000)|list %}",
    "long number": "{% set x = ([1" + "0" * 4000 + "] * 90_000)|join %}",
    "long number of a text": "{% set x = ([('1' * 4000)|int] * 90_000)|join %}",
    "concatenation": "{% set x = 'a' * 9_000_000 %}{% set y = x ~ x ~ x ~ x ~ x ~ x ~ x ~ x ~ x ~ x %}",
}
BOMBS = {
    "long range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that skip": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "nested loops over a generator": ""
    "{% for a in range(99999) %}{% for b in range(9999)|map('abs') %}{% endfor %}{% endfor %}",
    "text times number": "{{ 'a' * 10 ** 10 }}",
    "number times list": "{{ 10 ** 10 * [1] }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "huge numbers": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "centre": "{{ 'a'|center(10000000000) }}",
    "centre in a mapping": "{{ ['a']|map('center', 10000000000)|list }}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "zeros": "{{ 'a'.zfill(10000000000) }}",
    "indentation": "{{ 'a\nb'|indent(10000000000) }}",
    "indentation of JSON": "{{ messages|tojson(indent=1000) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent with precision": "{{ '%.9999999999f' % 1 }}",
    "percent with a star": "{{ '%*d' % (999999999, 1) }}",
    "percent by filter": "{{ '%9999999999d'|format(1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 9999999999) }}",
    "rounding": "{{ 1.5|round(999999999) }}",
    "batches": "{{ [1]|batch(999999999, 0)|list }}",
    "sum of lists": "{{ [[1], [2]]|sum(start=[]) }}",
    "doubling by ~": doubling("'aaaaaaaa'", "ns.x ~ ns.x"),
    "doubling by +": doubling("'aaaaaaaa'", "ns.x + ns.x"),
    "doubling a list": doubling("[1]", "ns.x + ns.x"),
    "doubling by replace": doubling("'aa'", "ns.x.replace('a', 'aa')"),
    "doubling by the filter replace": doubling("'aa'", "ns.x|replace('a', 'aa')"),
    "doubling by join": doubling("'aaaa'", "ns.x.join(ns.x)"),
    "doubling by the filter join": doubling("'aaaa'", "ns.x|join(ns.x)"),
    "doubling by format": doubling("'aaaa'", "'{0}{0}'.format(ns.x)"),
    "doubling by percent": doubling("'aaaa'", "'%s%s' % (ns.x, ns.x)"),
    "laughs in lists": doubling("[1]", "[ns.x, ns.x]"),
    "laughs in tuples": doubling("[1]", "(ns.x, ns.x)"),
    "laughs in mappings": doubling("1", "{'a': ns.x, 'b': ns.x}"),
    "laughs in calls": doubling("1", "dict(a=ns.x, b=ns.x)"),
    "laughs in arguments": "{% macro m() %}{% set ns.x = varargs %}{% endmacro %}{% set ns = namespace(x=1) %}"
    "{% for i in range(60) %}{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    "text in a block": "{% set x %}{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "comparisons": "{% set x = range(99999)|list %}{% for i in x %}{% if x == messages %}{% endif %}{% endfor %}",
    "tests": "{% set x = range(99999)|list %}{% for i in x %}{% if x is eq messages %}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", [*ESCAPES, *BOMBS])
def test_a_hostile_template_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="the chat template is hostile: ") as caught:
        check_template((ESCAPES | BOMBS)[name])
    assert "get the model again" in caught.value.mend


@pytest.mark.parametrize("name", SWELLING)
def test_memory_is_paid_for_before_it_is_taken(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="the chat template is hostile: "):
            check_template(SWELLING[name])
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_formats_of_honest_templates_are_free_of_charge() -> None:
    template = (
        "{{ '%s|%5.1f|%-4d' % (messages[0].content, 1.25, 7) }} {{ '%(a)s%(a)s'|format(a='b') }} "
        "{{ '{0:>4}{0}{x}'.format(1, x=2) }} {{ 'a, b'.split(', ')|join('+') }} {{ 'aXa'.replace('X', '--') }}"
    )
    assert render(template, [{"role": "user", "content": "c" * 100_000}]) == (
        "c" * 100_000 + "|  1.2|7    bb    112 a+b a--a"
    )


@pytest.mark.parametrize("name", [*ESCAPES, "long range", "text times number", "doubling by ~", "laughs in lists"])
def test_a_hostile_template_is_refused_when_it_is_rendered(name: str) -> None:
    with pytest.raises(ArtifactError, match="the chat template is hostile: "):
        render((ESCAPES | BOMBS)[name])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "damaged in line 1"),
        ("\n\n{{ 'a'|random }}", "damaged in line 3: No filter named 'random'"),
        ("{{" + "(" * 50_000 + ")" * 50_000 + "}}", "cannot be compiled"),
        ("{{ 1" + " + 1" * 20_000 + " }}", "cannot be compiled"),
        ("{{" * 9999, "cannot be compiled|damaged"),
        ("a" * (MAX_TEMPLATE_BYTES + 1), "longer than 262,144 bytes"),
    ],
)
def test_a_damaged_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        render(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refuses this conversation: Roles must alternate"),
        ("{{ messages[0].name.first }}", "cannot render this conversation: UndefinedError: .*'name'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages|tojson(sort_keys=1) + 1 }}", "TypeError"),
    ],
)
def test_a_conversation_that_a_template_cannot_render_is_no_fault_of_the_template(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render(template)
    check_template(template)


def test_only_plain_values_reach_a_template() -> None:
    with pytest.raises(UsageError, match="not a module"):
        render("{{ messages[0].content }}", [{"role": "user", "content": sys}])
    with pytest.raises(UsageError, match="not a object"):
        render("{{ tools }}", tools=[{"function": object()}])


def test_a_long_conversation_is_no_bomb() -> None:
    template = (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}{% set text = m.content|trim %}"
        "{{ '<|' + m.role + '|>' + text ~ '\n' }}"
        "{% if loop.index0 > ns.last and m.tool_calls is defined %}{{ m.tool_calls|tojson }}{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 2000} for _ in range(500)]
    assert len(render(template, messages)) == 500 * (len("<|user|>\n") + 9999)
