"""A judge's template is a file that others may have written: it is checked, and it runs in a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.template import CompareTemplate
from rlhf_ray.records import Message

ASK = (Message("user", "2 + 2?"),)
WHOLE = "{{ prompt }} {{ response_a }} {{ response_b }} {{ principle }}"


def test_the_built_in_template_shows_prompt_both_responses_and_the_principle() -> None:
    text = CompareTemplate.read("").render(ASK, "four", "five", "Which is true?")
    assert text.index("2 + 2?") < text.index("four") < text.index("five") < text.index("Which is true?")
    assert text.endswith("Reply with one letter, A or B.")
    assert "Which is true?" not in CompareTemplate.read("").render(ASK, "four", "five", "")


def test_a_conversation_is_shown_with_who_says_what() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    shown = CompareTemplate(WHOLE, "t.j2").render(turns, "a", "b", "c")
    assert shown == "User: Hi\n\nAssistant: Hello\n\nUser: Why? a b c"


def test_what_a_response_says_is_never_read_as_a_template() -> None:
    assert "{{ 7 * 7 }}" in CompareTemplate.read("").render(ASK, "{{ 7 * 7 }}", "{% raw %}", "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ prompt }} {{ response_a }}", "does not show the second"),
        ("{{ response_a }} {{ response_b }} {{ principle }}", "does not show the prompt"),
        ("{{ prompt }} {{ response_a }} {{ response_b }}", "does not show the principle"),
        ("{{ prompt }} {{ response_c }}", "'response_c' is undefined"),
        ("{{ prompt", "is no Jinja template"),
        (WHOLE + "{{ prompt.__class__.__mro__ }}", "cannot be filled in"),  # the sandbox
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompareTemplate(source, "t.j2")


def test_a_changed_template_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "t.j2"
    path.write_text(WHOLE)
    first = CompareTemplate.read(str(path)).name
    path.write_text(WHOLE + "!")
    assert first.startswith("t.j2@")
    assert CompareTemplate.read(str(path)).name != first
    with pytest.raises(ConfigError, match="cannot be read"):
        CompareTemplate.read(str(tmp_path / "none.j2"))
