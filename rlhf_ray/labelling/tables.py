"""What the page remembers beside the judgements: who has what in hand, half-made answers, links, guidelines.

These tables stand in the same database as the preference store and are none of it: rows here come and go, while what
people have said only grows. Dropping them loses half-made answers and links, and no judgement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    select,
)

from rlhf_ray.feedback.schema import annotators, candidates, judgements
from rlhf_ray.feedback.schema import items as stored_items
from rlhf_ray.labelling.answers import MAX_RESPONSES, UNDONE
from rlhf_ray.labelling.assignment import Lease, Question, Standing

metadata = MetaData()

leases = Table(
    "labelling_leases",
    metadata,
    Column("annotator", String(200), primary_key=True),  # nobody has two items in hand
    Column("item_id", String(64), nullable=False, index=True),
    Column("since", Float, nullable=False),  # seconds since 1970
    Column("until", Float, nullable=False),
)

drafts = Table(
    "labelling_drafts",
    metadata,
    Column("annotator", String(200), primary_key=True),
    Column("item_id", String(64), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("fields", JSON, nullable=False),
)

links = Table(
    "labelling_links",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
)

guidelines = Table(
    "labelling_guidelines",
    metadata,
    Column("version", String(64), primary_key=True),
    Column("text", Text, nullable=False),
)


@dataclass(frozen=True)
class Draft:
    """A half-made answer. The page counts ``revision`` up with every change, so that the newer of two is known."""

    revision: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """The judgement that counts of one annotator on one item."""

    judgement_id: int
    item_id: str
    annotator: str
    verdict: str
    by_person: bool
    undone: bool


def create_tables(connection: Connection) -> None:
    metadata.create_all(connection)


def lock_queue(connection: Connection) -> None:
    """Let nobody else hand out items until this transaction ends. On SQLite, who writes has that already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {leases.name} IN EXCLUSIVE MODE")


# ---------------------------------------------------------------------------------------------------------- standing
def read_questions(connection: Connection) -> list[Question]:
    """The items of the store that can be ranked on a page, in the order in which they came."""
    count = select(func.count()).where(candidates.c.item_id == stored_items.c.item_id).scalar_subquery()
    rankable = select(stored_items).where(count.between(2, MAX_RESPONSES)).order_by(stored_items.c.number)
    return [Question(row.item_id, bool(row.gold_ranks)) for row in connection.execute(rankable)]


def newest_item(connection: Connection) -> int:
    """The number of the item that came last; 0 where there is none."""
    return connection.execute(select(func.max(stored_items.c.number))).scalar() or 0


def read_heads(connection: Connection) -> list[Head]:
    """The judgements that count, without their content, in the order in which they came."""
    corrected = select(judgements.c.corrects).where(judgements.c.corrects.is_not(None))
    of_judgement = ("judgement_id", "item_id", "annotator", "verdict", "reason", "corrects")
    query = (
        select(*(judgements.c[name] for name in of_judgement), annotators.c.kind)
        .join(annotators, annotators.c.name == judgements.c.annotator)
        .where(judgements.c.judgement_id.not_in(corrected))
        .order_by(judgements.c.judgement_id)
    )
    return [
        Head(
            row.judgement_id,
            row.item_id,
            row.annotator,
            row.verdict,
            by_person=row.kind == "human",
            undone=row.verdict == "skipped" and row.reason == UNDONE and row.corrects is not None,
        )
        for row in connection.execute(query)
    ]


def standing_of(heads: list[Head]) -> Standing:
    """Who has answered what, people only. A skipped item is as open as before to everybody else."""
    answered: dict[str, set[str]] = {}
    closed: dict[str, set[str]] = {}
    for head in heads:
        if not head.by_person or head.undone:
            continue
        closed.setdefault(head.item_id, set()).add(head.annotator)
        if head.verdict != "skipped":
            answered.setdefault(head.item_id, set()).add(head.annotator)
    return Standing(
        {item_id: frozenset(names) for item_id, names in answered.items()},
        {item_id: frozenset(names) for item_id, names in closed.items()},
    )


# ---------------------------------------------------------------------------------------------------------- leases
def read_leases(connection: Connection) -> list[Lease]:
    return [
        Lease(row.annotator, row.item_id, row.since, row.until)
        for row in connection.execute(select(leases).order_by(leases.c.annotator))
    ]


def write_lease(connection: Connection, lease: Lease) -> None:
    """Put an item into an annotator's hands, and out of them what was there."""
    drop_lease(connection, lease.annotator)
    row = {"annotator": lease.annotator, "item_id": lease.item_id, "since": lease.since, "until": lease.until}
    connection.execute(leases.insert().values(row))


def drop_lease(connection: Connection, annotator: str) -> None:
    connection.execute(delete(leases).where(leases.c.annotator == annotator))


# ---------------------------------------------------------------------------------------------------------- drafts
def read_draft(connection: Connection, annotator: str, item_id: str) -> Draft:
    row = connection.execute(select(drafts).where(_draft(annotator, item_id))).one_or_none()
    return Draft() if row is None else Draft(row.revision, row.fields)


def write_draft(connection: Connection, annotator: str, item_id: str, draft: Draft) -> None:
    """Keep a draft unless a newer one is there: what is late on its way must not undo what came after it."""
    if read_draft(connection, annotator, item_id).revision > draft.revision:
        return
    drop_draft(connection, annotator, item_id)
    own = {"revision": draft.revision, "fields": dict(draft.fields)}
    connection.execute(drafts.insert().values({"annotator": annotator, "item_id": item_id, **own}))


def drop_draft(connection: Connection, annotator: str, item_id: str) -> None:
    connection.execute(delete(drafts).where(_draft(annotator, item_id)))


def _draft(annotator: str, item_id: str) -> ColumnElement[bool]:
    return (drafts.c.annotator == annotator) & (drafts.c.item_id == item_id)


# --------------------------------------------------------------------------------------------------------- guidelines
def keep_guidelines(connection: Connection, version: str, text: str) -> None:
    """Keep the text that a judgement's ``guideline`` names."""
    if connection.execute(select(guidelines).where(guidelines.c.version == version)).first() is None:
        connection.execute(guidelines.insert().values(version=version, text=text))
