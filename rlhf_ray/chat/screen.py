"""What a model says, as a terminal may be shown it: one answer as it comes, or two side by side."""

from __future__ import annotations

import queue
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlhf_ray.errors import RlhfError

SHOWN = "\n\t"
JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # emoji and some scripts need them
Stream = Callable[[], Iterator[str]]


def printable(text: str) -> str:
    """``text`` with everything escaped that would steer a terminal, or hide or turn what is read.

    These are control characters (ESC, carriage return, C1), lone surrogates, and format characters: direction
    overrides, tags, zero width ones but for joiners. A letter stays what it is.
    """
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text)


def _is_harmless(character: str) -> bool:
    if character in SHOWN or character in JOINERS:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


@dataclass
class Answer:
    """``failed`` says why there is no answer, or no more of it; ``stopped`` that it was cut off by the reader."""

    text: str = ""
    failed: str = ""
    stopped: bool = False


def show(console: Console, streams: Sequence[tuple[str, Stream]]) -> list[Answer]:
    """Show the answers of (name, stream) as they come, side by side where there are several; Ctrl-C ends them.

    Each stream runs in a thread of its own, so that the slower one holds nobody up.
    """
    answers = [Answer() for _ in streams]
    live = Live(console=console, transient=True, refresh_per_second=8) if len(streams) > 1 else None
    with live or nullcontext(), closing(_pieces([stream for _, stream in streams], answers)) as pieces:
        try:
            for place, piece in pieces:
                answers[place].text += piece
                if live is None:
                    console.print(Text(printable(piece)), end="", soft_wrap=True)
                else:
                    live.update(_side_by_side(console, streams, answers, whole=False))
        except KeyboardInterrupt:
            for answer in answers:
                answer.stopped = True
    if live is None:
        console.print("" if not answers[0].stopped else " ...")
        if answers[0].failed:
            console.print(Text(printable(answers[0].failed), "red"))
    else:
        console.print(_side_by_side(console, streams, answers, whole=True))
    return answers


def _pieces(streams: Sequence[Stream], answers: Sequence[Answer]) -> Generator[tuple[int, str], None, None]:
    """(place, piece) as they come from all streams; failures are noted in ``answers``. Closing it stops them."""
    waiting: queue.Queue[tuple[int, str | None]] = queue.Queue()
    stop = threading.Event()

    def run(place: int, stream: Stream) -> None:
        try:
            for piece in stream():
                if stop.is_set():
                    return
                waiting.put((place, piece))
        except RlhfError as error:
            answers[place].failed = str(error)
        except Exception as error:  # noqa: BLE001 -- a thread that dies in silence would leave the reader waiting
            answers[place].failed = f"{type(error).__name__}: {error}"
        finally:
            waiting.put((place, None))

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in enumerate(streams)]
    for thread in threads:
        thread.start()
    left = len(threads)
    try:
        while left:
            place, piece = waiting.get()
            if piece is None:
                left -= 1
            else:
                yield place, piece
    finally:
        stop.set()


def _side_by_side(
    console: Console, streams: Sequence[tuple[str, Stream]], answers: Sequence[Answer], *, whole: bool
) -> Table:
    """A column a model; while it is written no more than the screen's height of it, the end."""
    grid = Table.grid(expand=True)
    for _ in streams:
        grid.add_column(ratio=1)
    lines = max(4, console.height - 6)
    cells = []
    for (name, _), answer in zip(streams, answers, strict=True):
        text = printable(answer.text) + (" ..." if answer.stopped else "")
        shown = text if whole else "\n".join(text.splitlines()[-lines:])
        body = Text(shown + ("\n" if shown and answer.failed else ""))
        body.append(printable(answer.failed), "red")
        cells.append(Panel(body, title=Text(printable(name)), title_align="left"))
    grid.add_row(*cells)
    return grid
