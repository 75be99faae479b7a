"""A fixed text under the weights being trained: what a weight sync compares with the engines' answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_ray.data.collate import TokenSequence, collate
from rlhf_ray.engines.training import TrainingEngine


def text_logprobs(policy: TrainingEngine, token_ids: Sequence[int]) -> list[float]:
    """Log-probabilities of tokens 1, 2, ... of a text at temperature 1; every rank must call it."""
    mask = np.ones(len(token_ids), dtype=np.bool_)
    mask[0] = False
    batch = collate([TokenSequence(np.array(token_ids, dtype=np.int32), mask)]).to(policy.info.torch_device)
    with policy.inference():
        logprobs = policy.forward(batch)[0]
    return [float(value) for value in logprobs[0, 1:]]
