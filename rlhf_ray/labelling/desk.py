"""The desk: hands out items, keeps half-made answers, takes judgements in, and takes them back.

Every method is safe to call again. A page that is loaded twice shows the same item; an answer that is sent twice is one
judgement, because it names the state of the item that it answers (``base``) and that state has passed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from rlhf_ray.config.labelling import MANAGER, LabellingConfig
from rlhf_ray.errors import DataError
from rlhf_ray.feedback.records import Judgement
from rlhf_ray.feedback.schema import WRITES, open_engine
from rlhf_ray.feedback.store import PreferenceStore, require_store, store_url
from rlhf_ray.labelling import tables
from rlhf_ray.labelling.access import Person, names_with_link, new_link, person_of
from rlhf_ray.labelling.answers import UNDONE, draft_of, fields_of, judgement_of
from rlhf_ray.labelling.assignment import Lease, Progress, Question, next_item, progress, shown_order
from rlhf_ray.labelling.errors import AnswerError
from rlhf_ray.labelling.guidelines import Guidelines
from rlhf_ray.labelling.overview import Overview, overview
from rlhf_ray.labelling.tables import Draft, Head
from rlhf_ray.records import Message

Outcome: TypeAlias = Literal["kept", "kept_before"]
MINUTE = 60.0
GONE = "This item is not in hand any more. What you answered before is safe; load the page again."


@dataclass(frozen=True)
class Task:
    """What is shown: a prompt, and responses by place. ``base`` is the judgement that an answer will correct."""

    item_id: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    base: int | None
    draft: Draft


@dataclass(frozen=True)
class Place:
    """Where an annotator is: the task in hand, if any is left, and what could be taken back."""

    task: Task | None
    progress: Progress
    last: int | None  # the judgement that "undo" takes back


class Desk:
    """See the module. One desk a server; several servers may stand on one store."""

    def __init__(
        self,
        engine: Engine,
        settings: LabellingConfig,
        guidelines: Guidelines,
        *,
        only: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.guidelines = settings, guidelines
        self._only, self._clock = only, clock
        self._lease_s = MINUTE * settings.assignment.lease_minutes
        self._store = PreferenceStore(engine)
        self._engine, self._writing = engine, engine.execution_options(**{WRITES: True})
        self._asked: list[Question] = []
        self._newest = 0  # the number of the last item among them
        self._one_at_a_time = threading.Lock()  # between looking at what was said and adding to it
        self._store.add_annotators(settings.annotators, "human")
        self._require_people()
        with self._writing.begin() as connection:
            tables.create_tables(connection)
            tables.keep_guidelines(connection, guidelines.version, guidelines.text)

    # --------------------------------------------------------------------------------------------------------- people
    def new_link(self, name: str) -> str:
        """Return a new token for an annotator or the manager; an earlier one is void."""
        with self._writing.begin() as connection:
            return new_link(connection, name)

    def names_with_link(self) -> set[str]:
        """Who has a link already."""
        with self._engine.connect() as connection:
            return names_with_link(connection)

    def annotators_with_link(self) -> set[str]:
        return self.names_with_link() - {MANAGER}

    def person(self, token: str) -> Person | None:
        """Who comes with this token; None where it is nobody's."""
        with self._engine.connect() as connection:
            return person_of(connection, token)

    # ------------------------------------------------------------------------------------------------------ labelling
    def place(self, annotator: str) -> Place:
        """Hand an item out, or the one that is in hand already, and say how far the annotator is."""
        now = self._clock()
        with self._queue() as connection:
            questions, heads = self._questions(connection), tables.read_heads(connection)
            standing, leases = tables.standing_of(heads), tables.read_leases(connection)
            rules = self.settings.assignment
            item_id = next_item(questions, standing, leases, annotator=annotator, rules=rules, now=now)
            if item_id is None:
                tables.drop_lease(connection, annotator)
            else:
                self._lease(connection, annotator, item_id, leases, now)
            done = progress(questions, standing, leases, annotator=annotator, rules=rules, now=now)
            draft = Draft() if item_id is None else tables.read_draft(connection, annotator, item_id)
        task = None if item_id is None else self._task(annotator, item_id, _head(heads, annotator, item_id), draft)
        return Place(task, done, _last(heads, annotator))

    def keep_draft(self, annotator: str, item_id: str, revision: int, fields: Mapping[str, str]) -> None:
        """Keep a half-made answer, and the item in hand."""
        now = self._clock()
        kept = Draft(revision, self._draft(item_id, fields))
        with self._queue() as connection:
            head = _head(tables.read_heads(connection), annotator, item_id)
            if head is not None and not head.undone:
                return  # the draft of an answer that has arrived before it
            tables.write_draft(connection, annotator, item_id, kept)
            leases = tables.read_leases(connection)
            if any((lease.annotator, lease.item_id) == (annotator, item_id) for lease in leases):
                self._lease(connection, annotator, item_id, leases, now)

    def submit(
        self, annotator: str, item_id: str, base: int | None, verdict: str, fields: Mapping[str, str]
    ) -> Outcome:
        """Keep a judgement, once. Raises AnswerError for one that is not complete."""
        now = self._clock()
        with self._one_at_a_time:
            with self._engine.connect() as connection:
                head = _head(tables.read_heads(connection), annotator, item_id)
                lease = next((each for each in tables.read_leases(connection) if each.annotator == annotator), None)
            if (head.judgement_id if head else None) != base:
                if head is None or head.undone:
                    raise AnswerError(GONE)
                return "kept_before"
            since = lease.since if lease is not None and lease.item_id == item_id else now - self._lease_s
            judgement = self._judgement(annotator, item_id, base, verdict, fields, at_most_s=now - since)
            self._store.judge(judgement)
            # A crash here leaves a lease and a draft of an answered item behind: neither is looked at again.
            with self._writing.begin() as connection:
                tables.drop_draft(connection, annotator, item_id)
                if lease is not None and lease.item_id == item_id:
                    tables.drop_lease(connection, annotator)
        return "kept"

    def undo(self, annotator: str, judgement_id: int) -> bool:
        """Take the last answer back: a correction says so, and the item is in hand again as it was answered.

        Whether it was; it is not where something else is the annotator's last answer by now.
        """
        now = self._clock()
        with self._one_at_a_time:
            with self._engine.connect() as connection:
                if _last(tables.read_heads(connection), annotator) != judgement_id:
                    return False
            said = self._store.judgement(judgement_id).judgement
            order = shown_order(said.item_id, annotator, len(self._known(said.item_id)))
            # In hand first, then free: in between, somebody else would get it.
            with self._queue() as connection:
                self._lease(connection, annotator, said.item_id, tables.read_leases(connection), now)
                tables.drop_draft(connection, annotator, said.item_id)
                again = Draft(1, fields_of(said, order, self.settings.axes))
                tables.write_draft(connection, annotator, said.item_id, again)
            taken_back = replace(
                said, verdict="skipped", ranks=(), ratings={}, reason=UNDONE, seconds=None, corrects=judgement_id
            )
            self._store.judge(taken_back)
        return True

    # ------------------------------------------------------------------------------------------------------- watching
    def overview(self) -> Overview:
        """What the manager sees."""
        now = self._clock()
        with self._engine.connect() as connection:
            questions, leases = self._questions(connection), tables.read_leases(connection)
            heads = tables.read_heads(connection)
        people = {name for name, kind in self._store.annotators().items() if kind == "human"}
        return overview(
            self._store.items(),
            [kept for kept in self._store.judgements() if kept.judgement.annotator in people],
            questions=questions,
            standing=tables.standing_of(heads),
            leases=leases,
            people=sorted(people),
            rules=self.settings.assignment,
            now=now,
        )

    def size(self) -> int:
        """How many items can be asked."""
        with self._engine.connect() as connection:
            return len(self._questions(connection))

    # -------------------------------------------------------------------------------------------------------- helpers
    @contextmanager
    def _queue(self) -> Iterator[Connection]:
        with self._writing.begin() as connection:
            tables.lock_queue(connection)
            yield connection

    def _questions(self, connection: Connection) -> list[Question]:
        """What can be asked. Items only ever come, so that all are known where the newest is."""
        newest = tables.newest_item(connection)
        if newest != self._newest:
            known = tables.read_questions(connection)
            self._asked = [each for each in known if not self._only or each.item_id in self._only]
            self._newest = newest
        return self._asked

    def _lease(self, connection: Connection, annotator: str, item_id: str, leases: list[Lease], now: float) -> None:
        """Hold an item from now on for a lease's time; the time that it has been held already counts on."""
        held = next((each for each in leases if (each.annotator, each.item_id) == (annotator, item_id)), None)
        since = held.since if held else now
        tables.write_lease(connection, Lease(annotator, item_id, since, now + self._lease_s))

    def _task(self, annotator: str, item_id: str, head: Head | None, draft: Draft) -> Task:
        item = self._store.item(item_id)
        order = shown_order(item_id, annotator, len(item.candidates))
        responses = tuple(item.candidates[candidate].text for candidate in order)
        return Task(item_id, item.prompt.messages, responses, head.judgement_id if head else None, draft)

    def _draft(self, item_id: str, fields: Mapping[str, str]) -> dict[str, str]:
        count = len(self._known(item_id))
        return draft_of(fields, count=count, num_axes=len(self.settings.axes))

    def _judgement(
        self, annotator: str, item_id: str, base: int | None, verdict: str, fields: Mapping[str, str], at_most_s: float
    ) -> Judgement:
        return judgement_of(
            fields,
            verdict=verdict,
            item_id=item_id,
            annotator=annotator,
            order=shown_order(item_id, annotator, len(self._known(item_id))),
            axes=self.settings.axes,
            scale=self.settings.scale,
            guideline=self.guidelines.version,
            at_most_s=at_most_s,
            corrects=base,
        )

    def _known(self, item_id: str) -> tuple[object, ...]:
        try:
            return self._store.item(item_id).candidates
        except DataError as error:
            raise AnswerError(GONE) from error

    def _require_people(self) -> None:
        kinds = self._store.annotators()
        for name in self.settings.annotators:
            if kinds[name] != "human":
                raise DataError(
                    f"annotator {name!r} is of the kind {kinds[name]!r} in this store, not human; choose another name"
                )


@contextmanager
def open_desk(name: str, settings: LabellingConfig, guidelines: Guidelines, *, only: frozenset[str]) -> Iterator[Desk]:
    """The desk on the store in a file or at a url. Raises ConfigError where there is none, DataError where it fails."""
    require_store(name, field="STORE")
    engine = open_engine(store_url(name))
    try:
        yield Desk(engine, settings, guidelines, only=only)
    except SQLAlchemyError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{name}: the preference store refuses ({reason:.300})") from error
    finally:
        engine.dispose()


def _head(heads: list[Head], annotator: str, item_id: str) -> Head | None:
    return next((each for each in heads if (each.annotator, each.item_id) == (annotator, item_id)), None)


def _last(heads: list[Head], annotator: str) -> int | None:
    """The annotator's newest judgement that is not taken back already."""
    own = [each.judgement_id for each in heads if each.annotator == annotator and not each.undone]
    return own[-1] if own else None
