"""The learning rate over a run, as a function of the step alone."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Decay: TypeAlias = Literal["constant", "linear", "cosine"]


def learning_rate_factor(
    *, step: int, num_steps: int, warmup_steps: int = 0, decay: Decay = "constant", floor: float = 0.0
) -> float:
    """Return the factor in [0, 1] on the peak learning rate for optimizer step ``step``, counted from 0.

    The warm-up is linear: step 0 takes 1 / warmup_steps of the peak, step warmup_steps - 1 all of it. From there the
    factor decays from 1 to ``floor``, which it reaches at ``num_steps`` and keeps. Stateless: a resumed run needs the
    step number only.
    """
    if step < 0:
        raise ValueError(f"step ({step}) must be 0 or more")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must lie in [0, num_steps ({num_steps})]")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor ({floor}) must lie in [0, 1]; it is a fraction of the peak learning rate")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    if decay == "constant":
        return 1.0
    if decay == "linear":
        return floor + (1 - floor) * (1 - progress)
    if decay == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"decay ({decay!r}) must be one of 'constant', 'linear', 'cosine'")
