"""The comparisons that the reward model learned from, and what it says of the held-out ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_ray.data.jsonl import read_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.preferences import OPINIONS_FILE
from rlhf_ray.viewing.run import Run

PAGE = 20
SPLITS = ("heldout", "train")


@dataclass(frozen=True)
class Response:
    """``rank`` is the annotator's, from 1; ``score`` the reward model's, None where it was not asked."""

    text: str
    rank: int
    score: float | None


@dataclass(frozen=True)
class Judged:
    """One annotator's ranking of the responses to a prompt, the best first.

    ``agreed`` of ``decided`` pairs are those in which the reward model prefers the same response.
    """

    prompt_id: str
    prompt: str
    kind: str
    axis: str
    annotator: str
    responses: tuple[Response, ...]
    decided: int
    agreed: float | None


@dataclass(frozen=True)
class Asked:
    """Which of them to show. ``only``: agreed, disagreed, or empty for all."""

    place: str
    split: str = "heldout"
    kind: str = ""
    annotator: str = ""
    only: str = ""
    text: str = ""
    page: int = 1


@dataclass(frozen=True)
class JudgedPage:
    rows: tuple[Judged, ...]
    count: int
    page: int
    kinds: tuple[str, ...]
    annotators: tuple[str, ...]
    has_opinions: bool
    problem: str = ""

    @property
    def pages(self) -> int:
        return max(1, -(-self.count // PAGE))


def places(run: Run) -> list[str]:
    """The directories with comparisons, rounds included."""
    found = {p.parent for d in ("*", "*/*") for p in run.root.glob(f"{d}/rankings_*.jsonl")}
    return sorted(path.relative_to(run.root).as_posix() for path in found)


def judged_page(run: Run, asked: Asked) -> JudgedPage:
    """A page of rankings; a damaged file gives none and says why."""
    directory = run.root / asked.place
    path = directory / f"rankings_{asked.split}.jsonl"
    opinions = directory.parent / "reward_model" / OPINIONS_FILE
    try:
        every = _judged(_state(path), _state(opinions) if asked.split == "heldout" else None)
    except (DataError, OSError) as error:
        return JudgedPage((), 0, 1, (), (), False, str(error))
    words = asked.text.lower().split()
    chosen = [row for row in every if _is_asked_for(row, asked, words)]
    page = min(max(1, asked.page), max(1, -(-len(chosen) // PAGE)))
    return JudgedPage(
        tuple(chosen[PAGE * (page - 1) : PAGE * page]),
        len(chosen),
        page,
        tuple(sorted({row.kind for row in every if row.kind})),
        tuple(sorted({row.annotator for row in every})),
        any(row.agreed is not None for row in every),
    )


def _is_asked_for(row: Judged, asked: Asked, words: Sequence[str]) -> bool:
    is_known = row.agreed is not None and row.decided > 0
    if asked.only and not (is_known and (row.agreed == row.decided) == (asked.only == "agreed")):
        return False
    text = "\n".join([row.prompt, *(response.text for response in row.responses)]).lower()
    return (
        asked.kind in ("", row.kind) and asked.annotator in ("", row.annotator) and all(word in text for word in words)
    )


State = tuple[Path, int, int]


def _state(path: Path) -> State | None:
    if not path.is_file():
        return None
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _judged(rankings: State | None, opinions: State | None) -> tuple[Judged, ...]:
    if rankings is None:
        return ()
    scores: dict[int, Sequence[float]] = {}
    made: list[Judged] = []
    record = None
    try:
        for record in read_jsonl(opinions[0]) if opinions is not None else ():
            scores[int(str(record.value["ranking"]))] = [float(score) for score in _list(record.value, "scores")]
        for record in read_jsonl(rankings[0]):
            made.append(judged(record.value, scores.get(len(made))))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        where = record.where if record is not None else rankings[0]
        raise DataError(f"{where} cannot be understood ({type(error).__name__}: {error})") from error
    return tuple(made)


def judged(row: Mapping[str, object], scores: Sequence[float] | None) -> Judged:
    """A line of ``rankings_*.jsonl`` with the reward model's scores of its responses."""
    texts = [str(text) for text in _list(row, "responses")]
    ranks = [int(rank) for rank in _list(row, "ranks")]
    if len(ranks) != len(texts):
        raise ValueError(f"{len(texts)} responses have {len(ranks)} ranks")
    messages = "\n".join(str(message["content"]) for message in _list(row, "messages"))
    of = scores if scores is not None and len(scores) == len(texts) else None
    order = sorted(range(len(texts)), key=lambda i: (ranks[i], -of[i] if of else 0.0))
    shown = {rank: number for number, rank in enumerate(sorted(set(ranks)), start=1)}
    pairs = [(i, j) for i in order for j in order if ranks[i] < ranks[j]]
    agreed = sum(1.0 if of[i] > of[j] else 0.5 if of[i] == of[j] else 0.0 for i, j in pairs) if of else None
    return Judged(
        str(row.get("prompt_id", "")),
        messages,
        str(row.get("kind", "")),
        str(row.get("axis", "")),
        str(row.get("annotator", "")),
        tuple(Response(texts[i], shown[ranks[i]], of[i] if of else None) for i in order),
        len(pairs),
        agreed,
    )


def chance(better: float, worse: float) -> float:
    """How sure the reward model is that the first is better: sigmoid of the difference of scores."""
    return 0.5 * (1.0 + math.tanh((better - worse) / 2))


def _list(row: Mapping[str, object], name: str) -> list[Any]:
    value = row[name]
    if not isinstance(value, list):
        raise TypeError(f"{name} is no list")
    return value
