"""The pages and what they send, as a Starlette application. All decisions are the desk's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp

from rlhf_ray.labelling.access import Person, form_secret, is_form_secret
from rlhf_ray.labelling.answers import LETTERS, MAX_COMMENT, REASONS
from rlhf_ray.labelling.desk import Desk, Place
from rlhf_ray.labelling.errors import AnswerError
from rlhf_ray.labelling.overview import share_text
from rlhf_ray.labelling.protection import Limits, is_from_elsewhere, is_too_large
from rlhf_ray.web.pages import environment, static_routes
from rlhf_ray.web.protection import SecureHeaders

HERE = Path(__file__).resolve().parent
COOKIE = "rlhf_label"
SECURE_COOKIE = "__Host-rlhf_label"  # browsers take this name over TLS only, and from no other host
COOKIE_AGE_S = 30 * 24 * 3600
AFTER_POST = 303
REFUSED = "This page did not come from here, or is too old. Load it again."
Form: TypeAlias = dict[str, str]
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Visitor:
    """Who asks, and the token that says so."""

    person: Person
    token: str


def build_app(desk: Desk) -> ASGIApp:
    """The application over a desk."""
    pages = Pages(desk)
    serving = desk.settings.serving
    app = Starlette(
        routes=[
            Route("/", pages.task),
            Route("/enter", pages.enter),
            Route("/enter", pages.come_in, methods=["POST"]),
            Route("/leave", pages.leave, methods=["POST"]),
            Route("/draft", pages.draft, methods=["POST"]),
            Route("/submit", pages.submit, methods=["POST"]),
            Route("/undo", pages.undo, methods=["POST"]),
            Route("/manage", pages.manage),
            *static_routes(HERE / "static"),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(serving.allowed_hosts), www_redirect=False),
        ],
        exception_handlers={HTTPException: pages.refused, AnswerError: pages.incomplete},
    )
    return SecureHeaders(app, secure=serving.secure)  # outermost: a page that failed has them too


class Pages:
    """One method a route."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._limits = Limits(desk.settings.serving)
        self._secure = desk.settings.serving.secure
        self._cookie = SECURE_COOKIE if self._secure else COOKIE
        templates = environment(HERE / "templates")
        templates.globals |= {
            "axes": desk.settings.axes,
            "guidelines": desk.guidelines,
            "letters": LETTERS,
            "max_comment": MAX_COMMENT,
            "reasons": REASONS,
            "scale": desk.settings.scale,
            "share_text": share_text,
        }
        self._templates = Jinja2Templates(env=templates)

    # -------------------------------------------------------------------------------------------------- coming, going
    async def enter(self, request: Request) -> Response:
        """Ask for the token.

        The link has it behind a #, where it reaches no log and no other site; the page's script sends it.
        """
        return self._page(request, "enter.html", {"message": ""})

    async def come_in(self, request: Request) -> Response:
        form = await self._form(request)
        token = form.get("token", "").strip()
        person = await run_in_threadpool(self._desk.person, token)
        if person is None:
            self._wait(self._limits.entry(request.client.host if request.client else ""))
            message = "This link is not valid. Ask for a new one."
            return self._page(request, "enter.html", {"message": message}, status=403)
        response = _to("/manage" if person.role == "manager" else "/")
        response.set_cookie(
            self._cookie, token, max_age=COOKIE_AGE_S, httponly=True, samesite="strict", secure=self._secure
        )
        return response

    async def leave(self, request: Request) -> Response:
        visitor = await self._visitor(request)
        await self._own_form(request, visitor)
        response = _to("/enter")
        response.delete_cookie(self._cookie, httponly=True, samesite="strict", secure=self._secure)
        return response

    # ------------------------------------------------------------------------------------------------------ labelling
    async def task(self, request: Request) -> Response:
        visitor = await self._visitor(request, none_to="/enter")
        if visitor.person.role == "manager":
            return _to("/manage")
        place = await run_in_threadpool(self._desk.place, visitor.person.name)
        return self._task_page(request, visitor, place)

    async def draft(self, request: Request) -> Response:
        annotator, form = await self._annotator_form(request)
        revision = _whole(form, "revision") or 0
        await run_in_threadpool(self._desk.keep_draft, annotator.person.name, form.get("item", ""), revision, form)
        return Response(status_code=204)

    async def submit(self, request: Request) -> Response:
        visitor, form = await self._annotator_form(request)
        name, item_id = visitor.person.name, form.get("item", "")
        base, verdict = _whole(form, "base"), form.get("verdict", "")
        try:
            outcome = await run_in_threadpool(self._desk.submit, name, item_id, base, verdict, form)
        except AnswerError as error:
            if _wants_json(request):
                raise
            await run_in_threadpool(self._desk.keep_draft, name, item_id, _whole(form, "revision") or 0, form)
            place = await run_in_threadpool(self._desk.place, name)
            return self._task_page(request, visitor, place, message=error.message, status=422)
        return JSONResponse({"outcome": outcome}) if _wants_json(request) else _to("/")

    async def undo(self, request: Request) -> Response:
        visitor, form = await self._annotator_form(request)
        judgement_id = _whole(form, "judgement")
        if judgement_id is not None:
            await run_in_threadpool(self._desk.undo, visitor.person.name, judgement_id)
        return _to("/")

    # ------------------------------------------------------------------------------------------------------- watching
    async def manage(self, request: Request) -> Response:
        visitor = await self._visitor(request, none_to="/enter")
        if visitor.person.role != "manager":
            raise HTTPException(403, "This page is the manager's.")
        overview = await run_in_threadpool(self._desk.overview)
        return self._page(request, "manage.html", {"secret": form_secret(visitor.token), "overview": overview})

    async def incomplete(self, request: Request, error: Exception) -> Response:
        """Answer what cannot be kept as it is."""
        assert isinstance(error, AnswerError)
        if _wants_json(request):
            return JSONResponse({"message": error.message, "field": error.field}, status_code=422)
        return self._page(request, "refused.html", {"message": error.message}, status=422)

    async def refused(self, request: Request, error: Exception) -> Response:
        """Answer what was refused, as a page or as data."""
        assert isinstance(error, HTTPException)
        if error.status_code == AFTER_POST:
            return Response(status_code=AFTER_POST, headers=error.headers)
        if _wants_json(request):
            return JSONResponse({"message": error.detail, "field": ""}, error.status_code, error.headers)
        context = {"message": error.detail}
        return self._page(request, "refused.html", context, status=error.status_code, headers=error.headers)

    # -------------------------------------------------------------------------------------------------------- helpers
    def _task_page(
        self, request: Request, visitor: Visitor, place: Place, *, message: str = "", status: int = 200
    ) -> Response:
        context = {
            "name": visitor.person.name,
            "secret": form_secret(visitor.token),
            "task": place.task,
            "progress": place.progress,
            "last": place.last,
            "message": message,
        }
        return self._page(request, "done.html" if place.task is None else "task.html", context, status=status)

    def _page(
        self,
        request: Request,
        template: str,
        context: dict[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> HTMLResponse:
        return self._templates.TemplateResponse(request, template, context, status_code=status, headers=headers)

    async def _visitor(self, request: Request, *, none_to: str = "") -> Visitor:
        token = request.cookies.get(self._cookie, "")
        person = await run_in_threadpool(self._desk.person, token) if token else None
        if person is None:
            if none_to:
                raise HTTPException(AFTER_POST, headers={"Location": none_to})
            raise HTTPException(401, "Come in by your link again; what you have filled in stays on this page.")
        self._wait(self._limits.request(person.name))
        return Visitor(person, token)

    async def _annotator_form(self, request: Request) -> tuple[Visitor, Form]:
        visitor = await self._visitor(request)
        if visitor.person.role != "annotator":
            raise HTTPException(403, "Managers watch and do not label.")
        return visitor, await self._own_form(request, visitor)

    async def _own_form(self, request: Request, visitor: Visitor) -> Form:
        """A form that a page of ours made for this visitor."""
        form = await self._form(request)
        if not is_form_secret(form.get("secret", ""), visitor.token):
            raise HTTPException(403, REFUSED)
        return form

    async def _form(self, request: Request) -> Form:
        if is_from_elsewhere(request, self._desk.settings.serving.public_url):
            raise HTTPException(403, REFUSED)
        if is_too_large(request):
            raise HTTPException(413, "This is more than a page sends.")
        return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}

    @staticmethod
    def _wait(seconds: int) -> None:
        if seconds:
            headers = {"Retry-After": str(seconds)}
            raise HTTPException(429, f"Too many requests. Wait {seconds} seconds; nothing is lost.", headers)


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=AFTER_POST)


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _whole(form: Mapping[str, str], name: str) -> int | None:
    """A whole number that fits a database; None where it is left out or is none."""
    text = form.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
