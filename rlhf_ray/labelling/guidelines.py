"""The guidelines that stand beside the task: a Markdown file, its version, its HTML."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from rlhf_ray.data.jsonl import decode
from rlhf_ray.errors import ConfigError

DEFAULT = """\
Rank the responses from best to worst **as you would want them if you had asked**.

- **Helpful**: does it do what was asked, completely and to the point?
- **Honest**: is what it says true, and does it say where it is not sure?
- **Harmless**: would it hurt anybody to follow it?

Give two responses the same rank where you cannot tell them apart. Longer is not better. If none of them should ever
be given, choose *All bad*. Skip what you cannot judge; flag what should not be here.
"""


@dataclass(frozen=True)
class Guidelines:
    """``version`` is kept with every judgement: it names this text and no other."""

    text: str
    version: str
    html: Markup


def guidelines_of(text: str) -> Guidelines:
    """Render Markdown. HTML in it is shown, not obeyed, and nothing is loaded from elsewhere."""
    html = MarkdownIt("commonmark", {"html": False}).disable("image").enable("table").render(text)
    # The renderer escapes everything that it does not write itself.
    return Guidelines(text, hashlib.sha256(text.encode()).hexdigest()[:12], Markup(html))


def read_guidelines(path: Path | None) -> Guidelines:
    """Read a file, or take the short text that goes without one."""
    if path is None:
        return guidelines_of(DEFAULT)
    try:
        return guidelines_of(decode(path.read_bytes(), str(path)))
    except OSError as error:
        raise ConfigError("--guidelines", str(path), f"cannot be read ({error.strerror})", "check the path") from error
