"""What was found out is kept: over a kill in the middle of a line, and by all that decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.suite import SuiteConfig
from rlhf_ray.errors import DataError
from rlhf_ray.records import Message
from rlhf_ray.suites.kept import Kept, Response, response_key

ASKED = (Message("user", "q"),)
SUITE = SuiteConfig(name="s")


def test_half_a_line_is_cut_off_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep/answers.jsonl"
    kept = Kept(path)
    kept.append("a", {"text": "é", "num_tokens": 2, "finished": True})
    kept.close()
    path.write_bytes(path.read_bytes() + b'{"key": "b", "val')
    again = Kept(path)
    assert again.response("a") == Response("é", 2, True)
    assert "b" not in again
    again.append("b", {"text": "", "num_tokens": 1, "finished": False})
    again.close()
    last = Kept(path)
    assert last.response("b") == Response("", 1, False)
    last.close()


def test_a_damaged_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": "a", "value": {}}\n{"key": 1}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl:2: is no kept result"):
        Kept(path)


def test_an_answer_depends_on_who_is_asked_what_and_how_and_not_on_how_it_is_graded() -> None:
    plain = response_key({"content": "x"}, ASKED, SUITE, 0)
    assert response_key({"content": "x"}, ASKED, replace(SUITE, name="t", samples=4, graders=("task",)), 0) == plain
    others = [
        response_key({"content": "y"}, ASKED, SUITE, 0),
        response_key({"content": "x"}, (Message("user", "other"),), SUITE, 0),
        response_key({"content": "x"}, ASKED, replace(SUITE, temperature=0.5), 0),
        response_key({"content": "x"}, ASKED, replace(SUITE, seed=1), 0),
        response_key({"content": "x"}, ASKED, SUITE, 1),
    ]
    assert len({plain, *others}) == 6
