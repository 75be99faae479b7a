"""Templates that escape what they are given, and the files that pages of ours share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from rlhf_ray.data.jsonl import whole_letters

SHARED = Path(__file__).resolve().parent / "static"


def environment(templates: Path) -> Environment:
    """Templates of a folder: every value is escaped, a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(templates),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def printable(value: Any) -> Any:
    """Halves of characters, which JSON may hold and UTF-8 may not, become question marks."""
    return whole_letters(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def static_routes(own: Path) -> list[Mount]:
    """``/static/shared`` for what pages share, ``/static`` for a page's own files."""
    return [
        Mount("/static/shared", StaticFiles(directory=SHARED)),
        Mount("/static", StaticFiles(directory=own)),
    ]
