"""Lines that are appended are read once; a file that is written anew is read from its start."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.errors import DataError
from rlhf_ray.viewing.tail import Tail


def parse(path: Path, number: int, line: str) -> tuple[int, str]:
    if line == "bad":
        raise DataError(f"{path.name}:{number} is bad")
    return number, line


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_only_whole_lines_are_taken_and_each_is_parsed_once(tmp_path: Path) -> None:
    parsed: list[int] = []
    path = tmp_path / "log"
    tail = Tail(path, lambda p, number, line: parsed.append(number) or parse(p, number, line))
    assert tail.records() == ()
    append(path, "one\ntw")
    assert tail.records() == ((1, "one"),)
    append(path, "o\n\nthree\n")
    assert tail.records() == ((1, "one"), (2, "two"), (4, "three"))
    assert tail.records() == ((1, "one"), (2, "two"), (4, "three"))
    assert parsed == [1, 2, 4]


def test_a_file_that_was_replaced_is_read_again_even_where_it_is_longer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path, parse)
    append(path, "one\ntwo\n")
    assert len(tail.records()) == 2
    path.write_text("ONE\nTWO\nTHREE\n")
    assert [line for _, line in tail.records()] == ["ONE", "TWO", "THREE"]
    path.write_text("x\n")
    assert tail.records() == ((1, "x"),)
    path.unlink()
    assert (tail.records(), tail.problem) == ((), "")


def test_a_line_that_is_damaged_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, "one\nbad\nthree\n")
    tail = Tail(path, parse)
    assert [line for _, line in tail.records()] == ["one", "three"]
    assert tail.problem == "log:2 is bad"
