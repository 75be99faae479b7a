"""A chat by its commands: what each model remembers, what is saved, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_ray.chat.session import Session
from rlhf_ray.chat.speakers import ChatSampling
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Message


class Echo:
    """Says what it was told last, with its own name, the number of messages and the seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[list[str]] = []

    def stream(self, messages: Sequence[Message], sampling: ChatSampling) -> Iterator[str]:
        self.asked.append([message.content for message in messages])
        if messages[-1].content == "fail":
            raise RlhfError("no answer")
        yield f"{self.name} {len(messages)} "
        yield f"seed {sampling.seed}"


def session(*names: str, system: str = "") -> tuple[Session, list[Echo]]:
    speakers = [Echo(name) for name in names]
    console = Console(file=io.StringIO(), width=100, highlight=False, color_system=None)
    return Session(console, speakers, ChatSampling(), system), speakers


def shown(of: Session) -> str:
    assert isinstance(of.console.file, io.StringIO)
    return of.console.file.getvalue()


def test_both_are_told_the_same_and_remember_their_own_answers() -> None:
    chat, (first, second) = session("a", "b", system="Be kind.")
    chat.take("hello")
    chat.take("and?")
    assert first.asked[1] == ["Be kind.", "hello", "a 2 seed 0", "and?"]
    assert second.asked[1] == ["Be kind.", "hello", "b 2 seed 0", "and?"]
    assert chat.histories[1][-1] == Message("assistant", "b 4 seed 1")


def test_reset_undo_and_retry() -> None:
    chat, (only,) = session("a", system="s")
    chat.take("one")
    chat.take("two")
    chat.take("/undo")
    assert [message.content for message in chat.histories[0]] == ["s", "one", "a 2 seed 0"]
    chat.take("/retry")
    assert [message.content for message in chat.histories[0]] == ["s", "one", "a 2 seed 2"]
    chat.take("/reset")
    assert [message.content for message in chat.histories[0]] == ["s"]
    chat.take("/undo")
    assert "has nothing to take back" in shown(chat)
    chat.take("/system other")
    chat.take("three")
    assert only.asked[-1] == ["other", "three"]


def test_a_turn_that_failed_is_taken_back() -> None:
    chat, _ = session("a")
    chat.take("one")
    before = [list(history) for history in chat.histories]
    chat.take("fail")
    assert chat.histories == before
    assert "no answer" in shown(chat)


def test_settings_change_while_talking() -> None:
    chat, _ = session("a")
    chat.take("/set temperature=1.5")
    chat.take("/set max_tokens=7")
    assert (chat.sampling.temperature, chat.sampling.max_tokens) == (1.5, 7)
    for wrong, message in (
        ("/set heat=1", "is no setting"),
        ("/set top_k=x", "must be NAME=NUMBER"),
        ("/set temperature=-1", "must not be negative"),
        ("/sav x", "/help lists them"),
    ):
        chat.take(wrong)
        assert message in shown(chat)


def test_save_writes_each_conversation_as_a_demonstration(tmp_path: Path) -> None:
    chat, _ = session("a", "b")
    chat.take("hello")
    target = tmp_path / "chat.jsonl"
    chat.take(f"/save {target}")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["a", "b"]
    assert rows[1]["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "b 1 seed 0"},
    ]
    chat.take(f"/save {target}")
    chat.take(f"/save {tmp_path}/none/x.jsonl")
    assert "exists already" in shown(chat)
    assert "cannot be written" in shown(chat)


@pytest.mark.parametrize("end", ["/quit", ""])
def test_a_chat_ends_by_a_command_or_with_its_input_and_lines_can_go_on(end: str) -> None:
    lines = iter(["hello\\", "world", "", *([end] if end else [])])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    chat, (only,) = session("a")
    chat.run(read)
    assert only.asked == [["hello\nworld"]]
