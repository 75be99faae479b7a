"""What a terminal is shown: nothing that steers it, one answer as it comes, two side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from rlhf_ray.chat.screen import printable, show
from rlhf_ray.errors import RlhfError


def console() -> Console:
    return Console(file=io.StringIO(), width=80, height=20, highlight=False, color_system=None)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain äß漢 \N{PILE OF POO}\n\tnext", "plain äß漢 \N{PILE OF POO}\n\tnext"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten \x08\x7f \x9b31m", r"over\x0dwritten \x08\x7f \x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("hid\u200bden \U000e0041 \u2028", r"hid\u200bden \U000e0041 \u2028"),
        ("\ud800", r"\ud800"),
        ("\N{MAN}\u200d\N{PERSONAL COMPUTER}", "\N{MAN}\u200d\N{PERSONAL COMPUTER}"),
    ],
)
def test_what_would_steer_a_terminal_or_hide_is_escaped(text: str, safe: str) -> None:
    assert printable(text) == safe


def pieces(*parts: str) -> Iterator[str]:
    yield from parts


def test_one_answer_is_shown_as_it_comes_and_never_as_markup() -> None:
    on = console()
    answers = show(on, [("a", lambda: pieces("[bold]", "Hi\x1b[0m", " [/nothing]"))])
    assert shown(on) == "[bold]Hi\\x1b[0m [/nothing]\n"
    assert answers[0].text == "[bold]Hi\x1b[0m [/nothing]"


def test_two_answers_stand_side_by_side() -> None:
    on = console()
    answers = show(on, [("left", lambda: pieces("one ", "two")), ("right\x1b", lambda: pieces("three"))])
    assert [answer.text for answer in answers] == ["one two", "three"]
    line = next(line for line in shown(on).splitlines() if "one two" in line)
    assert "three" in line
    assert "right\\x1b" in shown(on)


def test_a_failure_is_told_beside_what_was_said() -> None:
    def failing() -> Iterator[str]:
        yield "begun"
        raise RlhfError("the endpoint is gone")

    on = console()
    answers = show(on, [("a", failing), ("b", lambda: pieces("whole"))])
    assert (answers[0].text, answers[0].failed) == ("begun", "the endpoint is gone")
    assert (answers[1].text, answers[1].failed) == ("whole", "")
    assert "the endpoint is gone" in shown(on)


def test_ctrl_c_ends_an_answer_and_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    on = console()
    written = on.print

    def interrupted(*arguments: object, **others: object) -> None:
        if "two" in str(arguments):
            raise KeyboardInterrupt
        written(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(on, "print", interrupted)
    answers = show(on, [("a", lambda: pieces("one ", "two", "three"))])
    assert (answers[0].text, answers[0].stopped) == ("one two", True)
