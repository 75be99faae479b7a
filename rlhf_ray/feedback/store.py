"""One store for comparisons: prompts, candidates, annotators and judgements. Nothing is overwritten.

On SQLite by default, on PostgreSQL or another server by its url; several processes may use one store at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, Table, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from rlhf_ray.data.recorded import digest
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import AnnotatorKind, Candidate, Item, Judgement, Kept, ranking_of
from rlhf_ray.feedback.schema import (
    WRITES,
    annotators,
    candidates,
    create_tables,
    items,
    judgements,
    open_engine,
    prompts,
)
from rlhf_ray.records import Message, Ranking, SoftLabel, TextPrompt


def store_url(name: str) -> str:
    """``name`` where it is a database's url; else that of an SQLite file of this name."""
    return name if "://" in name else f"sqlite:///{Path(name).resolve()}"


def require_store(name: str, *, field: str) -> None:
    """Raise ConfigError, naming ``field``, where ``name`` is a file that is not there."""
    if "://" not in name and not Path(name).is_file():
        raise ConfigError(
            field, name, "is no file", "check the path, or make it with `rlhf-ray feedback add` or `feedback import`"
        )


@contextmanager
def open_store(name: str, *, create: bool = False) -> Iterator[PreferenceStore]:
    """The store in a file or at a url. Raises ConfigError where there is none and ``create`` does not ask for one."""
    if not create:
        require_store(name, field="store")
    engine = open_engine(store_url(name))
    try:
        yield PreferenceStore(engine)
    except SQLAlchemyError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{name}: the preference store refuses ({reason:.300})") from error
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Incoming:
    """A judgement of a file. ``corrects`` is the place of another in the same file; ``at`` is empty where not told."""

    judgement: Judgement
    corrects: int | None = None
    at: str = ""


class PreferenceStore:
    """See the module. Every method is one transaction: all of it is on the disk when it returns, or none of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(**{WRITES: True})
        with self._writing.begin() as connection:
            create_tables(connection)

    # -------------------------------------------------------------------------------------------------------- additions
    def add_items(self, new: Iterable[Item]) -> list[str]:
        """Keep items and return their ids. One that is there already is the same item.

        Raises DataError for a prompt whose id is taken by another text.
        """
        with self._writing.begin() as connection:
            return [self._add_item(connection, item) for item in new]

    def add_annotators(self, names: Iterable[str], kind: AnnotatorKind) -> None:
        """Make annotators known. One that is known keeps its kind."""
        with self._writing.begin() as connection:
            for name in names:
                _insert_new(connection, annotators, {"name": name}, {"kind": kind})

    def judge(self, judgement: Judgement) -> int:
        """Keep a judgement and return its id.

        Raises DataError for an item or an annotator that is not there, for ranks that do not fit the item, and for a
        correction of something that is not this annotator's, or is corrected already.
        """
        with self._writing.begin() as connection:
            return self._judge(connection, judgement, _now())

    def add_all(self, new: Iterable[Item], said: Sequence[Incoming], kinds: Mapping[str, AnnotatorKind]) -> int:
        """Keep all of a file or, where one record is wrong, nothing; return how many judgements are new.

        One is old where the same annotator has said the same of the same item (and at the same time, where it is told).
        """
        with self._writing.begin() as connection:
            for item in new:
                self._add_item(connection, item)
            for name, kind in kinds.items():
                _insert_new(connection, annotators, {"name": name}, {"kind": kind})
            ids: list[int] = []
            added = 0
            for incoming in said:
                corrects = None if incoming.corrects is None else ids[incoming.corrects]
                judgement = replace(incoming.judgement, corrects=corrects)
                known = self._said_before(connection, judgement, incoming.at)
                added += known is None
                ids.append(self._judge(connection, judgement, incoming.at or _now()) if known is None else known)
            return added

    def _add_item(self, connection: Connection, item: Item) -> str:
        prompt = item.prompt
        messages = [asdict(message) for message in prompt.messages]
        own = {"messages": messages, "kind": prompt.kind, "facts": dict(prompt.facts)}
        _insert_new(connection, prompts, {"prompt_id": prompt.prompt_id}, own)
        kept = connection.execute(select(prompts).where(prompts.c.prompt_id == prompt.prompt_id)).one()
        if kept.messages != messages:
            raise DataError(f"prompt {prompt.prompt_id!r} stands in the store with another text; give it another id")
        item_id = item_id_of(item)
        rest = {"prompt_id": prompt.prompt_id, "gold_ranks": list(item.gold_ranks)}
        if _insert_new(connection, items, {"item_id": item_id}, rest):
            rows = [_candidate_row(item_id, place, each) for place, each in enumerate(item.candidates)]
            connection.execute(candidates.insert(), rows)
        return item_id

    def _judge(self, connection: Connection, judgement: Judgement, at: str) -> int:
        count = len(connection.execute(select(candidates).where(candidates.c.item_id == judgement.item_id)).all())
        if not count:
            raise DataError(f"item {judgement.item_id!r} is not in the store; add it first")
        if not connection.execute(select(annotators).where(annotators.c.name == judgement.annotator)).all():
            raise DataError(f"annotator {judgement.annotator!r} is not in the store; add it first")
        judgement.require_fit(count)
        if judgement.corrects is not None:
            self._require_own(connection, judgement)
        values = {**asdict(judgement), "at": at}
        values |= {"ranks": list(judgement.ranks), "shown_order": list(judgement.shown_order)}
        values["soft"] = [asdict(label) for label in judgement.soft]
        values["ratings"] = {axis: list(given) for axis, given in judgement.ratings.items()}
        try:
            inserted = connection.execute(judgements.insert().values(values)).inserted_primary_key
        except IntegrityError as error:
            raise DataError(f"judgement {judgement.corrects} is corrected already; correct its correction") from error
        assert inserted is not None
        return int(inserted[0])

    def _said_before(self, connection: Connection, judgement: Judgement, at: str) -> int | None:
        same = (judgements.c.item_id == judgement.item_id) & (judgements.c.annotator == judgement.annotator)
        for row in connection.execute(select(judgements).where(same)):
            kept = _judgement(row)
            if kept.judgement == judgement and at in ("", kept.at):
                return kept.judgement_id
        return None

    def _require_own(self, connection: Connection, judgement: Judgement) -> None:
        corrected = select(judgements).where(judgements.c.judgement_id == judgement.corrects)
        row = connection.execute(corrected).one_or_none()
        if row is None or (row.item_id, row.annotator) != (judgement.item_id, judgement.annotator):
            raise DataError(
                f"judgement {judgement.corrects} is none of {judgement.annotator!r} on item {judgement.item_id!r}; "
                "people correct what they said themselves"
            )

    # ---------------------------------------------------------------------------------------------------------- reading
    def items(self) -> dict[str, Item]:
        """Every item by its id, in the order in which they came."""
        with self._engine.connect() as connection:
            of_item: dict[str, list[Candidate]] = {}
            for row in connection.execute(select(candidates).order_by(candidates.c.item_id, candidates.c.place)):
                of_item.setdefault(row.item_id, []).append(_candidate(row))
            joined = select(items.c.item_id, items.c.gold_ranks, prompts).join(prompts).order_by(items.c.number)
            return {
                row.item_id: Item(_prompt(row), tuple(of_item[row.item_id]), tuple(row.gold_ranks))
                for row in connection.execute(joined)
            }

    def item(self, item_id: str) -> Item:
        """One item. Raises DataError where it is not in the store."""
        with self._engine.connect() as connection:
            own = candidates.c.item_id == item_id
            said = [_candidate(row) for row in connection.execute(select(candidates).where(own).order_by("place"))]
            joined = select(items.c.gold_ranks, prompts).join(prompts).where(items.c.item_id == item_id)
            row = connection.execute(joined).one_or_none()
            if row is None:
                raise DataError(f"item {item_id!r} is not in the store; add it first")
            return Item(_prompt(row), tuple(said), tuple(row.gold_ranks))

    def annotators(self) -> dict[str, AnnotatorKind]:
        """Every annotator's kind by name."""
        with self._engine.connect() as connection:
            return {row.name: row.kind for row in connection.execute(select(annotators).order_by(annotators.c.name))}

    def history(self) -> list[Kept]:
        """Every judgement that was ever made, in order, those that were corrected included."""
        return self._kept(select(judgements))

    def judgement(self, judgement_id: int) -> Kept:
        """One judgement, corrected or not. Raises DataError where it is not in the store."""
        kept = self._kept(select(judgements).where(judgements.c.judgement_id == judgement_id))
        if not kept:
            raise DataError(f"judgement {judgement_id} is not in the store")
        return kept[0]

    def judgements(self) -> list[Kept]:
        """The judgements that count: of each and its corrections the last one."""
        corrected = select(judgements.c.corrects).where(judgements.c.corrects.is_not(None))
        return self._kept(select(judgements).where(judgements.c.judgement_id.not_in(corrected)))

    def rankings(self) -> list[Ranking]:
        """What can be trained on: the judgements that count and rank something, in the order in which they came."""
        known = self.items()
        made = (ranking_of(known[kept.judgement.item_id], kept.judgement) for kept in self.judgements())
        return [ranking for ranking in made if ranking is not None]

    def _kept(self, query: Select[Any]) -> list[Kept]:
        with self._engine.connect() as connection:
            return [_judgement(row) for row in connection.execute(query.order_by(judgements.c.judgement_id))]


# ----------------------------------------------------------------------------------------------------------------- rows
def item_id_of(item: Item) -> str:
    """The identity of an item: its prompt and its candidates with what made them."""
    parts = [[item.prompt.prompt_id], *(_candidate_row("", i, each).values() for i, each in enumerate(item.candidates))]
    return digest(json.dumps(list(part), sort_keys=True, default=str) for part in parts)[:24]


def _insert_new(connection: Connection, table: Table, key: Mapping[str, Any], rest: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is there; whether it was not. Another process may win the race: then it is there."""
    (column, value), *_ = key.items()
    if connection.execute(select(table).where(table.c[column] == value)).first() is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(table.insert().values({**key, **rest}))
    except IntegrityError:
        return False
    return True


def _candidate_row(item_id: str, place: int, candidate: Candidate) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "place": place,
        "text": candidate.text,
        "model": candidate.model,
        "sampling": dict(candidate.sampling),
        "seed": None if candidate.seed is None else str(candidate.seed),
        "token_ids": list(candidate.token_ids),
    }


def _candidate(row: Row[Any]) -> Candidate:
    seed = None if row.seed is None else int(row.seed)
    return Candidate(row.text, row.model, row.sampling, seed, tuple(row.token_ids))


def _prompt(row: Row[Any]) -> TextPrompt:
    return TextPrompt(row.prompt_id, tuple(Message(**message) for message in row.messages), row.kind, row.facts)


def _judgement(row: Row[Any]) -> Kept:
    judgement = Judgement(
        item_id=row.item_id,
        annotator=row.annotator,
        verdict=row.verdict,
        ranks=tuple(row.ranks),
        ratings={axis: tuple(values) for axis, values in row.ratings.items()},
        reason=row.reason,
        seconds=row.seconds,
        guideline=row.guideline,
        shown_order=tuple(row.shown_order),
        corrects=row.corrects,
        soft=tuple(SoftLabel(**label) for label in row.soft),
        axis=row.axis,
    )
    return Kept(row.judgement_id, row.at, judgement)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
