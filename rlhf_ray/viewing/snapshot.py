"""The pages on a run as one file that needs nothing else: to send, to keep, to put beside a paper.

It is made of the same pages: what asks (forms, pages of lists, links to other pages) is left out.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from rlhf_ray.pipeline.artefacts import write_atomically
from rlhf_ray.viewing.asked import href
from rlhf_ray.viewing.curves import stage_names
from rlhf_ray.viewing.library import Library
from rlhf_ray.viewing.run import Run, open_runs
from rlhf_ray.viewing.web import HERE, Pages
from rlhf_ray.web.pages import SHARED

SNAPSHOT_FILE = "run.html"  # beside the report
STYLES = (SHARED / "vendor" / "pico" / "pico.min.css", HERE / "static" / "view.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# Of our own markup, in which every text is escaped: what only a server can answer.
ASKING = re.compile(r"<form\b.*?</form>|<nav class=\"pager\".*?</nav>|<p class=\"crumbs\">.*?</p>", re.DOTALL)
ADDRESS = re.compile(r' href="/[^"]*"')
NAMED = re.compile(r' (id|aria-labelledby)="([^"]+)"')
WITHIN = re.compile(r' href="#([^"]+)"')
Shown = tuple[str, Callable[[Request], HTMLResponse], Mapping[str, object]]  # a page and what it is asked


def write_snapshot(roots: Sequence[Path], target: Path) -> None:
    """Write the pages on the first of the runs, beside the others, into ``target``. Nothing in a run is changed.

    Raises ConfigError for a directory that is no run's.
    """
    runs = open_runs(list(roots))
    with tempfile.TemporaryDirectory(prefix="rlhf-ray-view-") as cache:
        pages = Pages(runs, [Library(run, Path(cache)) for run in runs])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, snapshot(runs, pages))


def snapshot(runs: Sequence[Run], pages: Pages) -> str:
    """The file's content."""
    other = 1 if len(runs) > 1 else None
    shown: list[Shown] = [("/", pages.overview, {})]
    shown += [("/curves", pages.curves, {"stage": stage}) for stage in stage_names(runs)]
    shown += [
        ("/answers", pages.answers, {"sort": "prompt"}),
        ("/preferences", pages.preferences, {}),
        ("/timeline", pages.timeline, {}),
        ("/alarms", pages.alarms, {}),
        ("/lineage", pages.lineage, {"other": other}),
        ("/configuration", pages.configuration, {"other": other}),
    ]
    parts = []
    for number, (path, page, params) in enumerate(shown):
        answer = page(_request(path, params))
        parts.append(_standing_alone(bytes(answer.body).decode("utf-8"), f"part-{number}"))
    return _SHELL.format(
        policy=POLICY,
        title=escape(runs[0].name),
        style="\n".join(path.read_text(encoding="utf-8") for path in STYLES),
        body="\n".join(parts),
    )


def _request(path: str, params: Mapping[str, object]) -> Request:
    query = href("", params).removeprefix("?")
    return Request({"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []})


def _standing_alone(page: str, name: str) -> Markup:
    """The main part of a page of ours without what asks, its names made its own."""
    main = page[page.index(">", page.index("<main")) + 1 : page.rindex("</main>")]
    main = ADDRESS.sub("", ASKING.sub("", main))
    main = WITHIN.sub(rf' href="#{name}-\1"', NAMED.sub(rf' \1="{name}-\2"', main))
    return Markup(f'<section class="part" id="{name}">{main}</section>')


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
