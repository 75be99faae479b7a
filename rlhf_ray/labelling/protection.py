"""What stands before every page: limits, and a refusal of requests that our own pages did not make.

Headers are put on by rlhf_ray/web/protection.py; names that requests may call the server by are checked by Starlette's
TrustedHostMiddleware.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import Request

from rlhf_ray.config.labelling import ServingConfig

MAX_BODY_BYTES = 65_536


class Limits:
    """How often somebody may ask, in a window of a minute that moves."""

    def __init__(self, settings: ServingConfig) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._entries = RateLimitItemPerMinute(settings.entries_per_minute)

    def request(self, name: str) -> int:
        """Seconds that this person must wait; 0 for none."""
        return self._wait(self._requests, f"person:{name}")

    def entry(self, address: str) -> int:
        """Count a wrong link from an address: seconds that it must wait; 0 for none."""
        return self._wait(self._entries, f"address:{address}")

    def _wait(self, limit: RateLimitItemPerMinute, key: str) -> int:
        if self._limiter.hit(limit, key):
            return 0
        return max(1, round(self._limiter.get_window_stats(limit, key).reset_time - time.time()))


def is_from_elsewhere(request: Request, public_url: str) -> bool:
    """Whether a page of another origin made this request, as far as its browser tells."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    own = {request.headers.get("host", ""), urlsplit(public_url).netloc}  # a proxy may have changed the first
    return origin is not None and urlsplit(origin).netloc not in own - {""}


def is_too_large(request: Request) -> bool:
    """Whether the body is more than any page of ours sends, or of a length that is not told."""
    length = request.headers.get("content-length", "")
    return not length.isdigit() or int(length) > MAX_BODY_BYTES
