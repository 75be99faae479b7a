"""An index of a run's saved rollouts: SQLite, made once and then step by step, so that 100,000 answer at once.

It is made from what lies in the run's directory and may be thrown away at any time. Numbers stand apart from texts, so
that what is sorted and counted is small.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_ray.data.jsonl import whole_letters
from rlhf_ray.records import FloatArray, Rollout, Score
from rlhf_ray.rollout_store import MANIFEST, SavedShard, SavedStep
from rlhf_ray.viewing.words import Words

VERSION = 1
SCHEMA = """
CREATE TABLE steps (stage TEXT, step INTEGER, signature TEXT, PRIMARY KEY (stage, step)) WITHOUT ROWID;
CREATE TABLE rollouts (
  id INTEGER PRIMARY KEY, stage TEXT, step INTEGER, rollout_id TEXT, prompt_id TEXT, kind TEXT, shard INTEGER,
  place INTEGER, score REAL, kl REAL, length INTEGER, finish TEXT, failed TEXT, alarms TEXT
);
CREATE TABLE responses (id INTEGER PRIMARY KEY, response TEXT);
CREATE TABLE prompts (prompt_id TEXT PRIMARY KEY, prompt TEXT) WITHOUT ROWID;
CREATE INDEX by_step ON rollouts (stage, step, id);
CREATE INDEX by_score ON rollouts (stage, score, id);
CREATE INDEX by_kl ON rollouts (stage, kl, id);
CREATE INDEX by_length ON rollouts (stage, length, id);
CREATE INDEX by_prompt ON rollouts (stage, prompt_id, step, id);
CREATE INDEX by_rollout ON rollouts (stage, rollout_id);
CREATE INDEX by_kind ON rollouts (stage, kind);
CREATE INDEX by_finish ON rollouts (stage, finish);
CREATE INDEX by_alarm ON rollouts (stage, alarms) WHERE alarms != '';
"""


@dataclass(frozen=True)
class Progress:
    """How many of the steps on the disk are in the index."""

    done: int
    of: int
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        return self.done >= self.of


class RolloutIndex:
    """The index in the file ``path``; ``words`` turn tokens into text. Only one thread calls what changes it."""

    def __init__(self, path: Path, words: Words) -> None:
        self.path, self._words = path, words
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_usable():
            return
        path.unlink()
        with self.connection() as database:
            database.executescript(f"{SCHEMA}PRAGMA user_version = {VERSION};")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own; what is done in the block is done whole or not at all."""
        database = sqlite3.connect(self.path, timeout=30.0)
        database.row_factory = sqlite3.Row
        try:
            with database:
                yield database
        finally:
            database.close()

    def _is_usable(self) -> bool:
        """Whether the file is an index of this version: one that a power cut has damaged is made anew."""
        try:
            with self.connection() as database:
                whole = database.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
                return whole and bool(database.execute("PRAGMA user_version").fetchone()[0] == VERSION)
        except sqlite3.DatabaseError:
            return False

    # -------------------------------------------------------------------------------------------------------- changing
    def known(self) -> dict[tuple[str, int], str]:
        """The steps in the index with the signature of what they were made from."""
        with self.connection() as database:
            rows = database.execute("SELECT stage, step, signature FROM steps")
            return {(row["stage"], row["step"]): row["signature"] for row in rows}

    def add(self, stage: str, directory: Path, kinds: Mapping[str, str]) -> None:
        """Take a saved step in, in place of what it was before. Raises DataError where the step is not whole."""
        seal = signature(directory)
        step = SavedStep(directory)
        shards = [(number, step.shard(number)) for number in range(len(step))]
        number = step.record.step
        with self.connection() as database:
            self._forget(database, stage, number)
            for place, shard in shards:
                self._add_shard(database, stage, number, place, shard, kinds)
            database.execute("INSERT INTO steps VALUES (?, ?, ?)", (stage, number, seal))

    def forget(self, stage: str, step: int) -> None:
        with self.connection() as database:
            self._forget(database, stage, step)

    def mark_alarms(self, alarms: Mapping[str, Mapping[str, str]]) -> None:
        """Set which alarms name which rollouts: by stage, then by rollout id, the alarms' names in one line."""
        with self.connection() as database:
            database.execute("UPDATE rollouts SET alarms = '' WHERE alarms != ''")
            for stage, named in alarms.items():
                rows = ((names, stage, rollout_id) for rollout_id, names in named.items())
                database.executemany("UPDATE rollouts SET alarms = ? WHERE stage = ? AND rollout_id = ?", rows)

    def mark_kinds(self, kinds: Mapping[str, str]) -> None:
        """Set the kinds of prompts that were not known before."""
        with self.connection() as database:
            rows = database.execute("SELECT DISTINCT prompt_id FROM rollouts WHERE kind = ''").fetchall()
            found = [(kinds[row[0]], row[0]) for row in rows if row[0] in kinds]
            for kind, prompt_id in found:
                database.execute("UPDATE rollouts SET kind = ? WHERE prompt_id = ?", (kind, prompt_id))

    def _forget(self, database: sqlite3.Connection, stage: str, step: int) -> None:
        where = "WHERE stage = ? AND step = ?"
        database.execute(f"DELETE FROM responses WHERE id IN (SELECT id FROM rollouts {where})", (stage, step))
        database.execute(f"DELETE FROM rollouts {where}", (stage, step))
        database.execute(f"DELETE FROM steps {where}", (stage, step))

    def _add_shard(
        self,
        database: sqlite3.Connection,
        stage: str,
        step: int,
        number: int,
        shard: SavedShard,
        kinds: Mapping[str, str],
    ) -> None:
        responses = self._words.texts([rollout.response_ids for rollout in shard.rollouts])
        fresh = [r for r in {r.prompt_id: r for r in shard.rollouts}.values() if not _has_prompt(database, r.prompt_id)]
        prompts = self._words.texts([rollout.prompt_ids for rollout in fresh])
        rows = [(r.prompt_id, text) for r, text in zip(fresh, prompts, strict=True)]
        database.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?)", rows)
        for place, (rollout, response) in enumerate(zip(shard.rollouts, responses, strict=True)):
            score = shard.scores[place] if place < len(shard.scores) else None
            values = _row(stage, step, number, place, rollout, score, reference_of(shard, place), kinds)
            marks = ", ".join("?" * len(values))
            values = [whole_letters(value) if isinstance(value, str) else value for value in values]
            added = database.execute(f"INSERT INTO rollouts VALUES (NULL, {marks})", values)
            database.execute("INSERT INTO responses VALUES (?, ?)", (added.lastrowid, response))


def _has_prompt(database: sqlite3.Connection, prompt_id: str) -> bool:
    return database.execute("SELECT 1 FROM prompts WHERE prompt_id = ?", (prompt_id,)).fetchone() is not None


def _row(
    stage: str,
    step: int,
    shard: int,
    place: int,
    rollout: Rollout,
    score: Score | None,
    reference: FloatArray | None,
    kinds: Mapping[str, str],
) -> list[object]:
    total = total_of(score)
    kl = None if reference is None else float(np.sum(rollout.rollout_logprobs - reference))
    return [
        stage,
        step,
        rollout.rollout_id,
        rollout.prompt_id,
        kinds.get(rollout.prompt_id, ""),
        shard,
        place,
        total if total is not None and math.isfinite(total) else None,
        kl if kl is not None and math.isfinite(kl) else None,
        len(rollout.response_ids),
        rollout.finish_reason,
        score.failed if score else "",
        "",
    ]


def total_of(score: Score | None) -> float | None:
    """All that a response earns, on its way and at its end; None where it was not scored."""
    if score is None or score.failed:
        return None
    return score.total + sum(value for _, value in score.step_rewards)


def reference_of(shard: SavedShard, place: int) -> FloatArray | None:
    """The reference's log-probabilities [R] of the tokens that were sampled; None where they were not saved."""
    if not isinstance(shard.reference, tuple):
        return None
    reference = shard.reference[place]
    if reference.ndim == 1:
        return reference
    ids = shard.rollouts[place].response_ids  # of whole distributions [R, V], those of the sampled tokens
    picked: FloatArray = reference[np.arange(len(ids)), ids]
    return picked


def signature(directory: Path) -> str:
    """Changes when a step is saved again."""
    state = (directory / MANIFEST).stat()
    return json.dumps([state.st_mtime_ns, state.st_size])
