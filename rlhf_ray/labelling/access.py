"""Who may come in: one secret link a person, of which only a hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from sqlalchemy import Connection, delete, select

from rlhf_ray.config.labelling import MANAGER
from rlhf_ray.labelling.tables import links

Role: TypeAlias = Literal["annotator", "manager"]
TOKEN_BYTES = 32  # nobody guesses 256 bits, so a plain hash of them keeps them


@dataclass(frozen=True)
class Person:
    """Somebody who came in by a link."""

    name: str
    role: Role


def new_link(connection: Connection, name: str) -> str:
    """Make a token for a person and return it, the only time that anybody sees it. An earlier one is void from now."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    role: Role = "manager" if name == MANAGER else "annotator"
    connection.execute(delete(links).where(links.c.name == name))
    connection.execute(links.insert().values(name=name, role=role, token_hash=_hashed(token)))
    return token


def names_with_link(connection: Connection) -> set[str]:
    return set(connection.execute(select(links.c.name)).scalars())


def person_of(connection: Connection, token: str) -> Person | None:
    """Who has this token; None where nobody has."""
    row = connection.execute(select(links).where(links.c.token_hash == _hashed(token))).one_or_none()
    return None if row is None else Person(row.name, cast(Role, row.role))


def form_secret(token: str) -> str:
    """What every form must carry: only a page that was made for the holder of the cookie can know it."""
    return hmac.new(token.encode(), b"form", hashlib.sha256).hexdigest()


def is_form_secret(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), form_secret(token).encode())


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
