"""Rarer garbage collections for a run's driver, which holds much that never goes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (50_000, 20, 20)  # Python's own: 700, 10, 10


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within the block, leave out of collections what is loaded by now, and collect less often.

    A full collection goes through every object that lives: with Ray, torch and transformers some 400,000 that stay for
    ever, in which a step's records, a few for each rollout, set off several. The records are in no cycles and go when
    nothing refers to them any more.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
