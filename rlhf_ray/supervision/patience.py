"""How long to wait for a verb: as long as is configured, and longer where it has taken long before."""

from __future__ import annotations

FACTOR = 3.0


class Patience:
    """The limit of each verb: ``minimum_s``, or ``FACTOR`` times the longest that an answer took, whichever is more.

    A step that grows, with longer responses say, is not taken for one that hangs. Limits never shrink.
    """

    def __init__(self, minimum_s: float) -> None:
        self._minimum_s = minimum_s
        self._longest_s: dict[str, float] = {}

    def of(self, verb: str) -> float:
        return max(self._minimum_s, FACTOR * self._longest_s.get(verb, 0.0))

    def saw(self, verb: str, seconds: float) -> None:
        """An answer came after so long."""
        self._longest_s[verb] = max(seconds, self._longest_s.get(verb, 0.0))
