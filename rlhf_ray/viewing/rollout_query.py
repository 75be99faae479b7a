"""Which rollouts are asked for, and in which order: a page of 50 at a time."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.viewing.rollout_index import RolloutIndex

PAGE = 50
SORTS = {"step": "step", "score": "score", "kl": "kl", "length": "length", "prompt": "prompt_id"}
COLUMNS = "r.id, stage, step, rollout_id, r.prompt_id, kind, shard, place, score, kl, length, finish, failed, alarms"


@dataclass(frozen=True)
class Query:
    """None and empty ask for everything. ``alarm`` is the name of one, or ``*`` for any."""

    stage: str
    step_from: int | None = None
    step_to: int | None = None
    score_from: float | None = None
    score_to: float | None = None
    kl_from: float | None = None
    kl_to: float | None = None
    length_from: int | None = None
    length_to: int | None = None
    kind: str = ""
    finish: str = ""
    alarm: str = ""
    prompt_id: str = ""
    text: str = ""
    sort: str = "step"
    order: str = "desc"
    page: int = 1

    @property
    def _conditions(self) -> tuple[str, list[Any]]:
        parts, values = ["stage = ?"], [self.stage]
        for column in ("step", "score", "kl", "length"):
            for end, sign in (("from", ">="), ("to", "<=")):
                bound = vars(self)[f"{column}_{end}"]
                if bound is not None:
                    parts.append(f"{column} {sign} ?")
                    values.append(bound)
        for column in ("kind", "finish", "prompt_id"):
            if vars(self)[column]:
                parts.append(f"r.{column} = ?")
                values.append(vars(self)[column])
        if self.alarm:
            parts.append("alarms != ''")
        if self.alarm not in ("", "*"):
            parts.append("instr(alarms, ?) > 0")
            values.append(f"\n{self.alarm}\n")
        for word in self.text.split():
            parts.append("(instr(lower(response), lower(?)) > 0 OR instr(lower(prompt), lower(?)) > 0)")
            values += [word, word]
        return " AND ".join(parts), values

    def statements(self) -> tuple[str, str, list[Any]]:
        """What counts, what gives a page, and the values of both."""
        where, values = self._conditions
        texts = "JOIN responses t ON t.id = r.id JOIN prompts p ON p.prompt_id = r.prompt_id"
        needs_text = texts if self.text.split() else ""
        way = "DESC" if self.order == "desc" else "ASC"
        column = SORTS.get(self.sort, "step")
        page = (
            f"SELECT r.id FROM rollouts r {needs_text} WHERE {where} ORDER BY {column} {way}, r.id {way} "
            f"LIMIT {PAGE} OFFSET {PAGE * (max(1, self.page) - 1)}"
        )
        return f"SELECT count(*) FROM rollouts r {needs_text} WHERE {where}", page, values


@dataclass(frozen=True)
class Row:
    """One rollout of a list. ``score`` is None where it could not be scored, ``kl`` where there is no reference."""

    stage: str
    step: int
    rollout_id: str
    prompt_id: str
    kind: str
    shard: int
    place: int
    score: float | None
    kl: float | None
    length: int
    finish: str
    failed: str
    alarms: tuple[str, ...]
    prompt: str
    response: str


@dataclass(frozen=True)
class Page:
    query: Query
    rows: tuple[Row, ...]
    count: int

    @property
    def pages(self) -> int:
        return max(1, -(-self.count // PAGE))

    @property
    def first(self) -> int:
        return PAGE * (self.query.page - 1) + 1


@dataclass(frozen=True)
class Facets:
    """What a stage's rollouts can be filtered by."""

    kinds: tuple[str, ...]
    finishes: tuple[str, ...]
    alarms: tuple[str, ...]
    steps: tuple[int, int]
    count: int


def ask(index: RolloutIndex, query: Query) -> Page:
    """One page of what is asked for; a page beyond the last is the last."""
    counting, paging, values = query.statements()
    with index.connection() as database:
        count = int(database.execute(counting, values).fetchone()[0])
        last = max(1, -(-count // PAGE))
        if query.page > last:
            query = replace(query, page=last)
            _, paging, values = query.statements()
        ids = [row[0] for row in database.execute(paging, values)]
        return Page(query, tuple(_rows(database, ids)), count)


def find(index: RolloutIndex, stage: str, rollout_id: str) -> Row | None:
    with index.connection() as database:
        found = database.execute(
            "SELECT id FROM rollouts WHERE stage = ? AND rollout_id = ? ORDER BY step DESC", (stage, rollout_id)
        ).fetchone()
        return next(iter(_rows(database, [found[0]])), None) if found else None


def facets(index: RolloutIndex, stage: str) -> Facets:
    with index.connection() as database:
        kinds = database.execute("SELECT DISTINCT kind FROM rollouts WHERE stage = ? AND kind != ''", (stage,))
        known = tuple(sorted(row[0] for row in kinds))
        finishes = database.execute("SELECT DISTINCT finish FROM rollouts WHERE stage = ?", (stage,))
        ended = tuple(sorted(row[0] for row in finishes))
        alarmed = database.execute("SELECT DISTINCT alarms FROM rollouts WHERE stage = ? AND alarms != ''", (stage,))
        alarms = tuple(sorted({name for row in alarmed for name in row[0].split("\n") if name}))
        low, high, count = database.execute(
            "SELECT min(step), max(step), count(*) FROM rollouts WHERE stage = ?", (stage,)
        ).fetchone()
    return Facets(known, ended, alarms, (low or 0, high or 0), count)


def stages(index: RolloutIndex) -> list[str]:
    """The stages that have rollouts in the index."""
    with index.connection() as database:
        return [row[0] for row in database.execute("SELECT DISTINCT stage FROM steps ORDER BY stage")]


def _rows(database: sqlite3.Connection, ids: list[int]) -> list[Row]:
    """In the order of ``ids``."""
    marks = ", ".join("?" * len(ids))
    found = database.execute(
        f"SELECT {COLUMNS}, prompt, response FROM rollouts r JOIN responses t ON t.id = r.id "
        f"JOIN prompts p ON p.prompt_id = r.prompt_id WHERE r.id IN ({marks})",
        ids,
    )
    by_id = {}
    for row in found:
        fields = {name: row[name] for name in row.keys() if name != "id"}  # noqa: SIM118 - a row is no mapping
        fields["alarms"] = tuple(name for name in fields["alarms"].split("\n") if name)
        by_id[row["id"]] = Row(**fields)
    return [by_id[number] for number in ids]
