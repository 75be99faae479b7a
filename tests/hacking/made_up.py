"""Held-out responses with a few numbers of their own."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray.metrics.evaluation import GradedResponse


def graded(
    prompt_id: str,
    text: str,
    kind: str = "",
    *,
    score: float | None = 0.0,
    kl: float = 1.0,
    grades: Mapping[str, float] | None = None,
) -> GradedResponse:
    return GradedResponse(
        prompt_id=prompt_id,
        kind=kind,
        prompt_text=f"question {prompt_id}",
        response_text=text,
        grades=grades or {},
        score=score,
        kl=kl,
        num_tokens=len(text.split()) + 1,
        finished=True,
    )
