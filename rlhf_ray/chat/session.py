"""A chat: one conversation a model, which grow together, and what a person can do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_ray.chat.screen import Answer, printable, show
from rlhf_ray.chat.speakers import ChatSampling, Speaker
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.errors import ConfigError, RlhfError
from rlhf_ray.records import Message

HELP = """\
/reset          begin anew        /undo          take the last turn back
/retry          answer again, with another seed
/system TEXT    what the models are told first; without TEXT nothing, and the chat begins anew
/set NAME=VALUE temperature, top_p, top_k, max_tokens, seed; /set alone shows them
/save FILE      write the conversations, one JSON object a model
/quit           or Ctrl-D. Ctrl-C stops an answer; a line that ends with \\ goes on in the next."""


class Session:
    """What is said to one is said to all; each remembers its own answers."""

    def __init__(self, console: Console, speakers: Sequence[Speaker], sampling: ChatSampling, system: str = "") -> None:
        self.console = console
        self.speakers = tuple(speakers)
        self.sampling = sampling
        self._first = (Message("system", system),) if system else ()
        self.histories: list[list[Message]] = [list(self._first) for _ in speakers]
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/undo": self._undo,
            "/retry": self._retry,
            "/system": self._system,
            "/set": self._set,
            "/save": self._save,
            "/help": lambda _: console.print(HELP, markup=False, highlight=False),
        }

    def run(self, read: Callable[[str], str]) -> None:
        """Talk until /quit or the end of input. ``read`` shows a prompt and returns a line; EOFError ends."""
        while True:
            try:
                line = _whole_line(read)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.print()
                continue
            if line.strip() in ("/quit", "/exit"):
                return
            self.take(line)

    def take(self, line: str) -> None:
        """One line of input: a command, or what is said to the models."""
        name, _, rest = line.strip().partition(" ")
        try:
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/") and name.count("/") == 1:
                raise ConfigError("command", name, "is none", "/help lists them")
            elif line.strip():
                self._say(line)
        except RlhfError as error:
            self.console.print(Text(printable(str(error)), "red"), soft_wrap=True)

    def _say(self, text: str) -> None:
        histories = [[*history, Message("user", text)] for history in self.histories]
        streams = [
            (speaker.name, self._stream(speaker, history))
            for speaker, history in zip(self.speakers, histories, strict=True)
        ]
        answers = show(self.console, streams)
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        if not all(_can_go_on(answer) for answer in answers):
            self._note("not all have answered: the turn is taken back")
            return
        for history, answer in zip(histories, answers, strict=True):
            history.append(Message("assistant", answer.text))
        self.histories = histories

    def _stream(self, speaker: Speaker, history: Sequence[Message]) -> Callable[[], Iterator[str]]:
        return partial(speaker.stream, tuple(history), self.sampling)

    # ------------------------------------------------------------------------------------------------------- commands
    def _reset(self, _: str) -> None:
        self.histories = [list(self._first) for _ in self.speakers]
        self._note("a new conversation")

    def _undo(self, _: str) -> None:
        if self._last_said() is None:
            raise ConfigError("/undo", "", "has nothing to take back", "say something first")
        self.histories = [history[:-2] for history in self.histories]
        self._note("the last turn is taken back")

    def _retry(self, _: str) -> None:
        said = self._last_said()
        if said is None:
            raise ConfigError("/retry", "", "has nothing to be answered again", "say something first")
        before = self.histories
        self.histories = [history[:-2] for history in before]
        self._say(said)
        if self._last_said() != said or len(self.histories[0]) < len(before[0]):
            self.histories = before

    def _system(self, text: str) -> None:
        self._first = (Message("system", text),) if text else ()
        self._reset("")

    def _set(self, text: str) -> None:
        known = {field.name: field.type for field in fields(ChatSampling)}
        name, _, value = (part.strip() for part in text.partition("="))
        if name:
            if name not in known:
                raise ConfigError("/set", name, "is no setting", f"choose one of {', '.join(known)}")
            try:
                number: float = int(value) if known[name] == "int" else float(value)
            except ValueError:
                raise ConfigError("/set", text, "must be NAME=NUMBER", "for example /set temperature=1") from None
            self.sampling = replace(self.sampling, **{name: number})  # type: ignore[arg-type]
        self._note(", ".join(f"{name} {value}" for name, value in asdict(self.sampling).items()))

    def _save(self, text: str) -> None:
        if not text:
            raise ConfigError("/save", text, "needs a file", "for example /save chat.jsonl")
        path = Path(text).expanduser()
        if path.exists():
            raise ConfigError("/save", text, "exists already", "name another file")
        try:
            write_jsonl(path, [self._record(place) for place in range(len(self.speakers))])
        except OSError as error:
            raise ConfigError("/save", text, f"cannot be written ({error.strerror})", "name another file") from error
        self._note(f"saved: {text}")

    def _record(self, place: int) -> dict[str, Any]:
        """A conversation as demonstrations are written down, with what made it."""
        messages = [asdict(message) for message in self.histories[place]]
        return {"messages": messages, "model": self.speakers[place].name, "sampling": asdict(self.sampling)}

    def _last_said(self) -> str | None:
        history = self.histories[0]
        return history[-2].content if len(history) >= 2 and history[-1].role == "assistant" else None

    def _note(self, text: str) -> None:
        self.console.print(Text(text, "dim"))


def _can_go_on(answer: Answer) -> bool:
    """Whether a conversation may go on from an answer: one that the reader stopped is an answer as far as it went."""
    return not answer.failed and (not answer.stopped or bool(answer.text))


def _whole_line(read: Callable[[str], str]) -> str:
    lines = [read("you> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read("...> "))
    return "\n".join(lines)
