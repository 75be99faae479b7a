"""From an address to what is asked for: numbers that are numbers, names that exist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from starlette.exceptions import HTTPException

from rlhf_ray.viewing.preferences import SPLITS, Asked
from rlhf_ray.viewing.rollout_query import SORTS, Query

Params = Mapping[str, str]
MAX_WHOLE = 2**53


def whole(params: Params, name: str, default: int | None = None) -> int | None:
    """A whole number; refuses what is none."""
    text = params.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise _refused(name, text, "is no whole number") from None
    if abs(value) > MAX_WHOLE:
        raise _refused(name, text[:40], "is too large")
    return value


def number(params: Params, name: str) -> float | None:
    """A finite number; refuses what is none."""
    text = params.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _refused(name, text[:40], "is no number")
    return value


def choice(params: Params, name: str, choices: Sequence[str], default: str = "") -> str:
    """One of ``choices``; refuses any other."""
    text = params.get(name, "") or default
    if text != default and text not in choices:
        raise _refused(name, text[:40], f"is none of {', '.join(choices) or 'no choices'}")
    return text


def page(params: Params) -> int:
    return max(1, whole(params, "page") or 1)


def rollout_query(params: Params, stage: str) -> Query:
    """What the form of the rollouts asks for."""
    return Query(
        stage,
        **{f"{name}_{end}": whole(params, f"{name}_{end}") for name in ("step", "length") for end in ("from", "to")},  # type: ignore[arg-type]
        **{f"{name}_{end}": number(params, f"{name}_{end}") for name in ("score", "kl") for end in ("from", "to")},  # type: ignore[arg-type]
        **{name: params.get(name, "") for name in ("kind", "finish", "alarm", "prompt_id", "text")},  # type: ignore[arg-type]
        sort=choice(params, "sort", list(SORTS), "step"),
        order=choice(params, "order", ("asc", "desc"), "desc"),
        page=page(params),
    )


def judged_query(params: Params, places: Sequence[str]) -> Asked:
    """What the form of the preferences asks for."""
    return Asked(
        choice(params, "place", places, places[0] if places else ""),
        choice(params, "split", SPLITS, "heldout"),
        params.get("kind", ""),
        params.get("annotator", ""),
        choice(params, "only", ("agreed", "disagreed")),
        params.get("text", ""),
        page(params),
    )


def href(path: str, params: Mapping[str, object]) -> str:
    """An address of ours; what is empty is left out."""
    given = {name: str(value) for name, value in params.items() if value not in (None, "")}
    safe = {name: value.encode("utf-8", errors="replace").decode() for name, value in given.items()}
    return f"{path}?{urlencode(safe)}" if safe else path


def _refused(name: str, value: str, rule: str) -> HTTPException:
    return HTTPException(400, f"{name} ({value!r}) {rule}.")
