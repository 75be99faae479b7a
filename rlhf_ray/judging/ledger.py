"""Every question and its answer, one JSON object a line, kept as it comes in: the record, the cache and the bill.

A line is written in one piece and handed to the system before the next question is asked, so that a process which is
killed loses nothing that was answered. Half a line at the end, from a machine that lost power, is cut off when the file
is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_ray.data.jsonl import cut_half_line, read_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.judging.questions import Answer, Question, Usage


def key_of(question: Question, identity: Mapping[str, object]) -> str:
    """The identity of a question to somebody: equal keys have equal answers."""
    asked = [
        dict(identity),
        question.purpose,
        [asdict(message) for message in question.messages],
        question.prompt.prompt_id,
        list(question.responses),
        question.principle.name if question.principle else "",
        question.vote,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Ledger:
    """An append-only file with what was asked and answered. One process writes at a time."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the file at ``path``. Raises DataError, with its line, for one that is damaged."""
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(path)
        self.path = path
        self.usage = Usage()
        self._answers: dict[str, Answer] = {}
        for record in read_jsonl(path) if path.exists() else ():
            self._take(dict(record.value), record.where)
        self._file = path.open("ab", buffering=0)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def append(self, key: str, question: Question, answer: Answer) -> None:
        """Keep an answer: it is with the system when this returns, and on the disk after :meth:`flush`."""
        line = json.dumps({"key": key, "at": _now(), **readable(question), **_plain(answer)}, ensure_ascii=False)
        self._file.write(line.encode("utf-8", "replace") + b"\n")
        self._answers[key] = answer
        self.usage += answer.usage

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _take(self, row: dict[str, Any], where: str) -> None:
        try:
            usage = Usage(int(row["tokens_read"]), int(row["tokens_written"]))
            self._answers[row["key"]] = Answer(row["answer"], usage, row["masses"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: is no answer of a judge ({error!r}); move the file away to ask anew") from error
        self.usage += usage


def readable(question: Question) -> dict[str, Any]:
    """What people want to see of a question."""
    return {
        "purpose": question.purpose,
        "prompt_id": question.prompt.prompt_id,
        "kind": question.prompt.kind,
        "principle": question.principle.name if question.principle else "",
        "vote": question.vote,
        "responses": list(question.responses),
        "messages": [asdict(message) for message in question.messages],
    }


def _plain(answer: Answer) -> dict[str, Any]:
    usage = {"tokens_read": answer.usage.read, "tokens_written": answer.usage.written}
    return {"answer": answer.text, "masses": dict(answer.masses), **usage}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
