"""Tables of a preference store. They only grow: SQLite refuses to change or delete what people have said."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from rlhf_ray.errors import ConfigError

VERSION = 2
BUSY_S = 30
WRITES = "writes"  # the execution option of connections that will write

metadata = MetaData()

about = Table("about", metadata, Column("version", Integer, primary_key=True))

prompts = Table(
    "prompts",
    metadata,
    Column("prompt_id", String(64), primary_key=True),
    Column("messages", JSON, nullable=False),
    Column("kind", Text, nullable=False),
    Column("facts", JSON, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("number", Integer, primary_key=True),  # the order in which items came
    Column("item_id", String(64), unique=True, nullable=False),
    Column("prompt_id", ForeignKey("prompts.prompt_id"), nullable=False, index=True),
    Column("gold_ranks", JSON, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("item_id", ForeignKey("items.item_id"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("sampling", JSON, nullable=False),
    Column("seed", String(24)),  # as text: a seed may have 64 bits, and no database's integer is that long unsigned
    Column("token_ids", JSON, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("kind", String(16), nullable=False),
)

judgements = Table(
    "judgements",
    metadata,
    Column("judgement_id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.item_id"), nullable=False, index=True),
    Column("annotator", ForeignKey("annotators.name"), nullable=False, index=True),
    Column("verdict", String(16), nullable=False),
    Column("ranks", JSON, nullable=False),
    Column("ratings", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seconds", Float),
    Column("guideline", Text, nullable=False),
    Column("shown_order", JSON, nullable=False),
    Column("corrects", ForeignKey("judgements.judgement_id"), unique=True),  # a judgement is corrected once: then its
    Column("at", String(40), nullable=False),  # correction may be
    Column("soft", JSON, nullable=False),
    Column("axis", Text, nullable=False),
    CheckConstraint("verdict IN ('ranked', 'all_bad', 'skipped', 'flagged')"),
)

ONLY_GROWS = "a preference store only grows: add a correction"


def open_engine(url: str) -> Engine:
    """Connect to ``sqlite:///FILE``, ``postgresql+DRIVER://...`` or another database that SQLAlchemy knows.

    SQLite writes ahead (WAL) and waits for other writers; a commit is on the disk when it returns.
    Raises ConfigError for a url that is none.
    """
    try:
        engine = create_engine(make_url(url))
    except (ArgumentError, ImportError) as error:
        raise ConfigError(
            "store", url, f"cannot be opened ({error})", "write sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions when it thinks fit; see _begin
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={1000 * BUSY_S}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    """Writers queue up before they read, or two might decide on what both have seen. Readers wait for nobody."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def create_tables(connection: Connection) -> None:
    """Make what is missing. Raises ConfigError for a store of another version."""
    metadata.create_all(connection)
    if connection.dialect.name == "sqlite":
        for table in (prompts, items, candidates, annotators, judgements):
            for verb in ("UPDATE", "DELETE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER IF NOT EXISTS keep_{table.name}_{verb.lower()} BEFORE {verb} ON {table.name} "
                    f"BEGIN SELECT RAISE(ABORT, '{ONLY_GROWS}'); END"
                )
    found = connection.execute(about.select()).scalars().all()
    if not found:
        connection.execute(about.insert().values(version=VERSION))
    elif list(found) != [VERSION]:
        raise ConfigError(
            "store", str(connection.engine.url), f"has version {found}, this program {VERSION}", "export it there"
        )
