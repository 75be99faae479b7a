"""The list of modules in docs/layout.md, read off the modules themselves: ``python tests/layout.py`` writes it."""

from __future__ import annotations

import ast
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "docs" / "layout.md"
ROOMS = ("rlhf_ray", "actors", "launch", "benchmarks")


def layout() -> list[str]:
    """One line a module: its path and the first sentence of its docstring."""
    lines = []
    for room in ROOMS:
        for path in sorted((CHECKOUT / room).rglob("*.py"), key=lambda p: (p.parent, p.name)):
            sentence = first_sentence(path)
            name = str(path.relative_to(CHECKOUT))
            if path.name == "__init__.py":
                name = f"{path.parent.relative_to(CHECKOUT)}/"
            lines.append(f"{name:<42} {sentence}".rstrip())
    return lines


def first_sentence(path: Path) -> str:
    """The docstring up to its first full stop, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".")


def page() -> str:
    """The whole of docs/layout.md."""
    return "\n".join(["# Every module", "", "The first sentence of each.", "", "```", *layout(), "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page())
