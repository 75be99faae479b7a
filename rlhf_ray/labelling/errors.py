"""What an annotator did that cannot be kept, in words for the annotator."""

from __future__ import annotations

from rlhf_ray.errors import RlhfError


class AnswerError(RlhfError):
    """An answer is not complete. ``field`` is the control of the page to look at, where there is one."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
