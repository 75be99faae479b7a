"""The pages on runs, as a Starlette application: it reads, it changes nothing in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp

from rlhf_ray.config.web import WebConfig
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.sinks import format_number
from rlhf_ray.viewing import answers, curves, lineage, preferences, timeline
from rlhf_ray.viewing.asked import choice, href, judged_query, page, rollout_query, whole
from rlhf_ray.viewing.library import Library
from rlhf_ray.viewing.overview import overview
from rlhf_ray.viewing.rollout_query import Query, Row, ask, facets, find, stages
from rlhf_ray.viewing.run import Run
from rlhf_ray.viewing.signals import NOT_KEPT, SIGNALS, coloured, signals_of, table
from rlhf_ray.web.pages import environment, static_routes
from rlhf_ray.web.protection import SecureHeaders

HERE = Path(__file__).resolve().parent
NAVIGATION = (
    ("/", "Overview"),
    ("/curves", "Curves"),
    ("/rollouts", "Rollouts"),
    ("/answers", "Answers"),
    ("/preferences", "Preferences"),
    ("/timeline", "Timeline"),
    ("/alarms", "Alarms"),
    ("/lineage", "Lineage"),
    ("/configuration", "Configuration"),
)
MAX_OF_A_PROMPT = 200


def build_app(runs: Sequence[Run], libraries: Sequence[Library], where: WebConfig) -> ASGIApp:
    """The application over runs, each with the library of its rollouts."""
    pages = Pages(runs, libraries)
    routes = [Route(path, getattr(pages, title.lower())) for path, title in NAVIGATION]
    app = Starlette(
        routes=[
            *routes,
            Route("/rollout", pages.rollout),
            Route("/prompt", pages.prompt),
            Route("/stamp", pages.stamp),
            *static_routes(HERE / "static"),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(where.allowed_hosts), www_redirect=False),
        ],
        exception_handlers={HTTPException: pages.refused, DataError: pages.damaged},
    )
    return SecureHeaders(app, secure=where.secure)  # outermost: a page that failed has them too


class Pages:
    """One method a route. They run in threads: files are read while a page is made."""

    def __init__(self, runs: Sequence[Run], libraries: Sequence[Library]) -> None:
        self._runs, self._libraries = runs, libraries
        templates = environment(HERE / "templates")
        templates.globals |= {
            "href": href,
            "navigation": NAVIGATION,
            "runs": runs,
            "format_number": format_number,
            "marks": answers.marks,
            "chance": preferences.chance,
        }
        self._templates = Jinja2Templates(env=templates)

    # ----------------------------------------------------------------------------------------------------------- runs
    def overview(self, request: Request) -> HTMLResponse:
        run = self._run(request)
        return self._page(request, "overview.html", {"seen": overview(run, self._runs)})

    def curves(self, request: Request) -> HTMLResponse:
        self._run(request)
        params, names = request.query_params, curves.stage_names(self._runs)
        stage = choice(params, "stage", names, _preferred(names))
        shown = {
            "stage": stage,
            "pattern": params.get("pattern", ""),
            "x": choice(params, "x", ("step", "time"), "step"),
            "only": choice(params, "only", ("outside",)),
        }
        found = curves.sources(self._runs, stage)
        drawn = curves.curves(
            found, pattern=shown["pattern"], only_outside=shown["only"] == "outside", by_time=shown["x"] == "time"
        )
        context = {"stages": names, "curves": drawn, "sources": found, "shown": shown}
        return self._page(request, "curves.html", context)

    def timeline(self, request: Request) -> HTMLResponse:
        run = self._run(request)
        places = timeline.places(run)
        place = choice(request.query_params, "stage", places, _preferred(places))
        context = {
            "places": places,
            "place": place,
            "gantt": timeline.gantt(run, place, whole(request.query_params, "from")) if place else None,
            "shares": timeline.shares(run, place) if place else [],
            "spans": timeline.stage_spans(run),
            "status": run.status(),
            "step_count": timeline.STEPS,
        }
        return self._page(request, "timeline.html", context)

    def alarms(self, request: Request) -> HTMLResponse:
        run = self._run(request)
        raised = run.alarms()
        index = self._libraries[run.number].index
        samples = {(a.stage, s) for a in raised for s in a.samples}
        known = {key: find(index, *key) is not None for key in list(samples)[:1000]}
        return self._page(request, "alarms.html", {"alarms": raised[:500], "count": len(raised), "known": known})

    def lineage(self, request: Request) -> HTMLResponse:
        run, other = self._run(request), self._other(request)
        return self._page(request, "lineage.html", {"nodes": lineage.nodes(run, other), "other": other})

    def configuration(self, request: Request) -> HTMLResponse:
        run, other = self._run(request), self._other(request)
        changed = lineage.config_changes(run, other) if other else []
        return self._page(
            request, "configuration.html", {"text": run.config_text(), "other": other, "changes": changed}
        )

    # -------------------------------------------------------------------------------------------------------- rollouts
    def rollouts(self, request: Request) -> HTMLResponse:
        library = self._library(request)
        known = stages(library.index)
        stage = choice(request.query_params, "stage", known, _preferred(known))
        query = rollout_query(request.query_params, stage)
        context = {"stages": known, "progress": library.progress, "query": query, "params": vars(query)}
        if not stage:
            return self._page(request, "rollouts.html", {**context, "found": None, "facets": None})
        found = ask(library.index, query)
        return self._page(request, "rollouts.html", {**context, "found": found, "facets": facets(library.index, stage)})

    def rollout(self, request: Request) -> HTMLResponse:
        library, params = self._library(request), request.query_params
        row = find(library.index, params.get("stage", ""), params.get("id", ""))
        if row is None:
            raise HTTPException(404, "There is no such rollout in the index (yet).")
        saved = library.saved(row)
        values = signals_of(saved)
        signal = next(s for s in SIGNALS if s.key == choice(params, "colour", list(values), next(iter(values))))
        pieces = library.words.pieces(saved.rollout.response_ids)
        context = {
            "row": row,
            "saved": saved,
            "signals": [each for each in SIGNALS if each.key in values],
            "signal": signal,
            "tokens": coloured(pieces, values[signal.key], signal),
            "columns": [each.title for each in SIGNALS if each.key in values],
            "table": table(pieces, values),
            "not_kept": saved.problem or ("" if saved.experience else NOT_KEPT),
            "has_words": library.words.is_there,
        }
        return self._page(request, "rollout.html", context)

    def prompt(self, request: Request) -> HTMLResponse:
        library, params = self._library(request), request.query_params
        query = Query(params.get("stage", ""), prompt_id=params.get("id", ""), sort="step", order="asc")
        rows: list[Row] = []
        while len(rows) < MAX_OF_A_PROMPT:
            found = ask(library.index, query)
            rows += found.rows
            if found.query.page >= found.pages:
                break
            query = Query(query.stage, prompt_id=query.prompt_id, sort="step", order="asc", page=query.page + 1)
        if not rows:
            raise HTTPException(404, "Nothing has answered such a prompt.")
        return self._page(request, "prompt.html", {"rows": rows, "count": found.count})

    # ---------------------------------------------------------------------------------------------- answers, judgements
    def answers(self, request: Request) -> HTMLResponse:
        run, params = self._run(request), request.query_params
        models = answers.models(self._runs)
        by_key = {model.key: model for model in models}
        own = [model.key for model in models if model.key.startswith(f"{run.number}:")] or list(by_key)
        shown = {
            "left": choice(params, "left", list(by_key), own[0] if own else ""),
            "right": choice(params, "right", list(by_key), own[min(1, len(own) - 1)] if own else ""),
            "kind": params.get("kind", ""),
            "text": params.get("text", ""),
            "sort": choice(params, "sort", answers.SORTS, "gain"),
        }
        both = None
        if models:
            left, right = by_key[shown["left"]], by_key[shown["right"]]
            asked = {name: shown[name] for name in ("kind", "text", "sort")}
            both = answers.side_by_side(left, right, **asked, page=page(params))
        context = {"models": models, "by_key": by_key, "shown": shown, "both": both, "sorts": answers.SORTS}
        return self._page(request, "answers.html", context)

    def preferences(self, request: Request) -> HTMLResponse:
        run = self._run(request)
        places = preferences.places(run)
        asked = judged_query(request.query_params, places)
        found = preferences.judged_page(run, asked) if places else None
        context = {"places": places, "asked": asked, "params": vars(asked), "found": found}
        return self._page(request, "preferences.html", context)

    # ------------------------------------------------------------------------------------------------------------ other
    def stamp(self, request: Request) -> JSONResponse:
        """What changes when the run has gone on, for pages that look whether it has."""
        library = self._library(request)
        stamps = ".".join(run.stamp() for run in self._runs)
        return JSONResponse({"stamp": stamps, "steps": library.progress.done, "of": library.progress.of})

    async def refused(self, request: Request, error: Exception) -> HTMLResponse:
        assert isinstance(error, HTTPException)
        return self._page(request, "refused.html", {"message": error.detail}, status=error.status_code)

    async def damaged(self, request: Request, error: Exception) -> HTMLResponse:
        return self._page(request, "refused.html", {"message": str(error)}, status=410)

    # ---------------------------------------------------------------------------------------------------------- helpers
    def _run(self, request: Request) -> Run:
        number = whole(request.query_params, "run", 0) or 0
        if not 0 <= number < len(self._runs):
            raise HTTPException(404, "There is no such run on this page.")
        return self._runs[number]

    def _other(self, request: Request) -> Run | None:
        number = whole(request.query_params, "other")
        return self._runs[number] if number is not None and 0 <= number < len(self._runs) else None

    def _library(self, request: Request) -> Library:
        return self._libraries[self._run(request).number]

    def _page(self, request: Request, template: str, context: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
        try:
            run = self._run(request)
        except HTTPException:
            run = self._runs[0]
        standing = {"run": run, "here": request.url.path, "problems": run.problems()}
        return self._templates.TemplateResponse(request, template, {**standing, **context}, status_code=status)


def _preferred(names: Sequence[str]) -> str:
    """What is shown first: PPO, where there is one."""
    return next((name for name in reversed(names) if name.endswith("ppo")), names[-1] if names else "")
