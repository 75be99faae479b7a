"""Graded answers of two models to the same held-out prompts, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rlhf_ray.errors import DataError
from rlhf_ray.metrics.evaluation import (
    ALL_KINDS,
    PRINCIPAL_GRADE,
    Comparison,
    GradedResponse,
    compare,
    read_graded,
)
from rlhf_ray.metrics.report_tables import format_change, format_value, measure, tone_of
from rlhf_ray.viewing.run import Run

PAGE = 20
EVALUATION = "evaluation"
SORTS = ("gain", "loss", "score", "kl", "prompt")


@dataclass(frozen=True)
class Model:
    """One file of graded answers. ``key`` names it in addresses: the run's number and the file below its directory."""

    key: str
    label: str
    path: Path


@dataclass(frozen=True)
class Both:
    """One prompt and what each of the two answered; ``gain`` is right minus left, by gold or else by score."""

    left: GradedResponse
    right: GradedResponse
    gain: float | None


@dataclass(frozen=True)
class Measured:
    """A measure of both models, as text."""

    label: str
    unit: str
    change: str
    interval: str
    tone: str


@dataclass(frozen=True)
class SideBySide:
    rows: tuple[Both, ...]
    count: int
    page: int
    kinds: tuple[str, ...]
    measured: tuple[Measured, ...]
    wins: int
    ties: int
    losses: int
    problem: str = ""

    @property
    def pages(self) -> int:
        return max(1, -(-self.count // PAGE))


def models(runs: Sequence[Run]) -> list[Model]:
    """Every model of every run that answered held-out prompts."""
    found = []
    for run in runs:
        files = sorted({p for pattern in (EVALUATION, f"*/{EVALUATION}") for p in run.root.glob(f"{pattern}/*.jsonl")})
        for path in sorted(files, key=lambda p: (p.parent, p.stem != "sft", p.stem)):
            below = path.relative_to(run.root)
            rounds = [part.replace("_", " ") for part in below.parts[:-2]]
            label = " · ".join([*([run.name] if len(runs) > 1 else []), *rounds, path.stem])
            found.append(Model(f"{run.number}:{below.as_posix()}", label, path))
    return found


def side_by_side(
    left: Model, right: Model, *, kind: str = "", text: str = "", sort: str = "gain", page: int = 1
) -> SideBySide:
    """A page of what both answered. A file that is damaged gives no rows and says why."""
    try:
        ours, theirs = read(left.path), read(right.path)
    except (DataError, OSError) as error:
        return SideBySide((), 0, 1, (), (), 0, 0, 0, str(error))
    rows = paired(ours, theirs)
    kinds = tuple(sorted({row.left.kind for row in rows if row.left.kind}))
    words = text.lower().split()
    chosen = [row for row in rows if (not kind or row.left.kind == kind) and all(word in _text(row) for word in words)]
    chosen.sort(key=lambda row: _order(row, sort))
    page = min(max(1, page), max(1, -(-len(chosen) // PAGE)))
    measured, whole = _measured(left.path, right.path, kind)
    wins, ties, losses = (whole.wins, whole.ties, whole.losses) if whole else (0, 0, 0)
    shown = tuple(chosen[PAGE * (page - 1) : PAGE * page])
    return SideBySide(shown, len(chosen), page, kinds, measured, wins, ties, losses)


def paired(left: Sequence[GradedResponse], right: Sequence[GradedResponse]) -> list[Both]:
    """The first answers to each prompt together, then the second ones; what only one answered is left out."""
    answers: dict[str, list[GradedResponse]] = defaultdict(list)
    for response in reversed(right):
        answers[response.prompt_id].append(response)
    rows = []
    for response in left:
        if answers[response.prompt_id]:
            other = answers[response.prompt_id].pop()
            rows.append(Both(response, other, _gain(response, other)))
    return rows


def _gain(left: GradedResponse, right: GradedResponse) -> float | None:
    if PRINCIPAL_GRADE in left.grades and PRINCIPAL_GRADE in right.grades:
        return right.grades[PRINCIPAL_GRADE] - left.grades[PRINCIPAL_GRADE]
    return None if left.score is None or right.score is None else right.score - left.score


def _order(row: Both, sort: str) -> tuple[float, str]:
    values = {
        "gain": -(row.gain if row.gain is not None else float("-inf")),
        "loss": row.gain if row.gain is not None else float("inf"),
        "score": -(row.right.score if row.right.score is not None else float("-inf")),
        "kl": -row.right.kl,
        "prompt": 0.0,
    }
    return values.get(sort, 0.0), row.left.prompt_id


def _text(row: Both) -> str:
    return f"{row.left.prompt_text}\n{row.left.response_text}\n{row.right.response_text}".lower()


def read(path: Path) -> tuple[GradedResponse, ...]:
    """The graded answers of a file, read again when it has changed. Raises DataError, and OSError for no file."""
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int) -> tuple[GradedResponse, ...]:
    return tuple(read_graded(path))


def _measured(left: Path, right: Path, kind: str) -> tuple[tuple[Measured, ...], Comparison | None]:
    states = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in (left, right)]
    compared = _compared(*states)
    whole = compared.get(kind or ALL_KINDS)
    if whole is None:
        return (), None
    rows = []
    for name, difference in whole.differences.items():
        shown, (change, interval) = measure(name), format_change(name, difference)
        rows.append(Measured(shown.label, shown.unit, change, interval, tone_of(name, difference)))
    return tuple(rows), whole


@lru_cache(maxsize=16)
def _compared(left: tuple[Path, int, int], right: tuple[Path, int, int]) -> Mapping[str, Comparison]:
    try:
        return compare(_read(*right), _read(*left))
    except DataError:  # they were given different prompts: what both have is shown, nothing is summed up
        return {}


def marks(response: GradedResponse) -> list[tuple[str, str]]:
    """What is measured of an answer, as short texts by name."""
    shown = [(measure(name).label, format_value(name, value)) for name, value in response.grades.items()]
    if response.score is not None:
        shown.append(("Score", format_value("score", response.score)))
    shown += [("KL", format_value("kl_per_response", response.kl)), ("Tokens", str(response.num_tokens))]
    return shown if response.finished else [*shown, ("Not finished", "")]
