"""The lanes as a Chrome trace: opens in https://ui.perfetto.dev and in chrome://tracing, one lane a worker."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhf_ray.ledger.lanes import Lanes
from rlhf_ray.ledger.lives import Story

TRACE_FILE = "ledger_trace.json"
STAGES = "stages"


def chrome_trace(story: Story, drawn: Lanes) -> dict[str, Any]:
    """In the JSON object format of the Trace Event Format; microseconds from the beginning of the run."""
    start = min((life.begun for life in story.lives), default=0.0)
    end = max((life.ended for life in story.lives), default=0.0)
    names = [STAGES, *drawn]
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": name, "pid": 0, "tid": lane, "args": value}
        for lane, worker in enumerate(names)
        for name, value in (("thread_name", {"name": worker}), ("thread_sort_index", {"sort_index": lane}))
    ]
    marks = [*story.stages, ("", end)]
    for (stage, begun), (_, ended) in pairwise(marks):
        events.append(_drawn(stage, 0, begun - start, ended - begun))
    for lane, spans in enumerate(drawn.values(), start=1):
        events += [_drawn(str(span.account), lane, span.begun - start, span.seconds) for span in spans]
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"begun": start}}


def _drawn(name: str, lane: int, begun: float, seconds: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 0, "tid": lane, "ts": round(begun * 1e6), "dur": round(seconds * 1e6)}


def write_trace(story: Story, drawn: Lanes, directory: Path) -> Path:
    path = directory / TRACE_FILE
    path.write_text(json.dumps(chrome_trace(story, drawn)), encoding="utf-8")
    return path
