"""Who has fallen silent? A slow actor still says that it lives, from a thread of its own; a stopped one does not."""

from __future__ import annotations


class Heartbeats:
    """The last sign of life of each member.

    One that was never heard is not judged: it may still be starting, or no message comes through from where it is, and
    the deadlines of its calls are all there is. A judge who was away himself, stopped or starved, forgives everybody.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._heard: dict[str, float] = {}
        self._judged: float | None = None

    def heard(self, name: str, now: float) -> None:
        self._heard[name] = now

    def forget(self, name: str) -> None:
        """The member is gone, or starts anew."""
        self._heard.pop(name, None)

    def silent(self, now: float) -> dict[str, float]:
        """The members that have been silent for too long, and for how long."""
        away = self._judged is not None and now - self._judged > self._timeout_s / 2
        self._judged = now
        if away:
            self._heard = dict.fromkeys(self._heard, now)
        return {name: now - then for name, then in self._heard.items() if now - then > self._timeout_s}
