"""Chat templates: those of real models in small, and those of somebody who wishes us ill."""

from __future__ import annotations

import sys
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.templates import OUTPUT_CHARACTERS_MAX, TEMPLATE_CHARACTERS_MAX, ChatTemplate, TemplateFailed

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""
# What templates of models are seen to do, each in one line.
IDIOMS = {
    "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}": "<s>[INST] Hi [/INST]",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "1",
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{{ turn(messages[0]) }}": "<user>Hi",
    "{{ messages[0].content.split('i')[0] ~ 'o' }}": "Ho",
    "{{ messages[0]['content'].replace('H', 'h') }}": "hi",
    "{% for m in messages[-1:] %}{{ m.role | upper }}{% endfor %}": "USER",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}": "Hi",
    "{{ messages | tojson }}": '[{"role": "user", "content": "Hi"}]',
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}.": ".",
    "{% if tools is not none and tools | length > 0 %}tools{% endif %}{% if x is defined %}x{% endif %}.": ".",
    "{{ 7 % 2 }}{{ '%' if messages | length % 2 == 1 }}{{ 2 * 3 }}": "1%6",
    "{% set text %}a{{ messages[0].role }}{% endset %}{{ text }}": "auser",
    "{{ messages[0].get('name', 'nobody') }}": "nobody",
    "{{ 'ab'[::-1] }}{{ [1, 2] + [3] }}": "ba[1, 2, 3]",
    "{{ strftime_now('%') | length }}{{ messages[0].content.startswith('H') }}": "1True",
}
ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception['__globals__'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''|attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | join }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ lipsum() }}",
    "{{ cycler('a') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ 'a'.encode() }}",
    "{{ (1).to_bytes(1) }}",
    "{{ '%s' % messages }}",
    "{{ 'x' | [:](1) }}",
)
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% for i in range(9999) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endfor %}{% endmacro %}{{ m(9) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(25) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
)
LARGE = (
    "{{ 'x' * 10 ** 9 }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ ('f' * 3) | int(base=16) }}",
    "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ 'x'.zfill(999999999) }}",
    "{{ 'x' | center(999999999) }}",
    "{{ 'x' | indent(999999999) }}",
    "{{ 1.5 | round(999999999) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ range(999999999) | list }}",
    "{{ messages | tojson(indent=999999999) | length }}{{ 'x' * 9 }}",
)  # fmt: skip


def rendered(source: str) -> str:
    """What a template makes of a chat of one word."""
    return ChatTemplate(source, TOKENS).render([("user", "Hi")])


def test_a_chat_is_rendered_up_to_where_the_answer_begins() -> None:
    template = ChatTemplate(CHATML, TOKENS)
    turns = [("system", " Be brief. "), ("user", "Hi")]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(turns) == expected
    assert template.render(turns) == expected


@pytest.mark.parametrize(("source", "expected"), IDIOMS.items())
def test_what_templates_of_models_do_is_allowed(source: str, expected: str) -> None:
    assert rendered(source) == expected


def test_a_template_may_refuse_what_it_is_given() -> None:
    with pytest.raises(TemplateFailed, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_behind_the_values_is_reached(source: str) -> None:
    try:
        said = rendered(source)
    except TemplateFailed:
        return
    assert said == ""


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_does_not_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infernet.engines.templates._RENDER_SECONDS", 0.2)
    began_s = time.monotonic()
    with pytest.raises(TemplateFailed, match="takes too long"):
        rendered(source)
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("source", LARGE)
def test_a_template_makes_no_more_than_it_may(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateFailed):
            rendered(source)
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_many_large_texts_are_no_way_around_the_limit() -> None:
    text = "x" * 1_000_000
    source = "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = ns.l + [text[1:]] %}{% endfor %}"
    source = "{% set text = messages[0].content %}" + source
    with pytest.raises(TemplateFailed, match="makes too much"):
        ChatTemplate(source, TOKENS).render([("user", text)])


def test_a_text_of_many_words_is_not_cut_into_all_of_them() -> None:
    with pytest.raises(TemplateFailed, match="too long"):
        ChatTemplate("{{ messages[0].content.split() | length }}", TOKENS).render([("user", "a " * 500_000)])


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{",
        "{{ x | shell }}",
        "(" * 50_000,
        "{{" + "(" * 50_000,
        "{%if 1%}" * 3000,
        "x" * (TEMPLATE_CHARACTERS_MAX + 1),
    ],
)
def test_what_is_no_template_is_refused_when_it_is_loaded(source: str) -> None:
    try:
        template = ChatTemplate(source, TOKENS)
    except TemplateFailed:
        return
    # Brackets alone are text.
    assert template.render([("user", "Hi")]) == source


def test_whoever_traced_this_thread_still_does() -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        rendered(CHATML)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=6))
def test_what_people_write_is_text_and_no_template(turns: list[tuple[str, str]]) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}", TOKENS)
    assert template.render(turns) == "".join(f"{role}:{content}\n" for role, content in turns)


@given(st.text(alphabet="{%}|~+*()[].'x0123456789 nforingsetm=", max_size=80))
def test_any_template_renders_or_fails_and_does_no_more(body: str) -> None:
    for source in (body, "{{" + body + "}}", "{% for m in messages %}{{ m" + body + "}}{% endfor %}"):
        try:
            assert len(rendered(source)) <= OUTPUT_CHARACTERS_MAX
        except TemplateFailed:
            continue
