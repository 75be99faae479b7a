"""What suites measure beside shares and means: pass@k, perplexity and bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.metrics.statistics import Interval, ratio_interval

LARGEST_EXPONENT = 700.0  # of a double


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return the chance that k of the samples, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k).

    It is unbiased for 1 - (1 - p)^k, which 1 - (1 - c/n)^k is not (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Raises:
        ValueError: k is not within 1 to ``num_samples``, or ``num_right`` not within 0 to ``num_samples``.
    """
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right ones among {num_samples} samples needs 1 <= k <= samples")
    return 1.0 - math.prod(1.0 - k / n for n in range(num_samples - num_right + 1, num_samples + 1))


# ----------------------------------------------------------------------------------------------------------- perplexity
@dataclass(frozen=True)
class TextLikelihood:
    """How likely a model finds one document: its log-probability in nats, over so many tokens and UTF-8 bytes."""

    logprob: float
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True)
class Perplexity:
    """Over all documents together, which are what the bootstrap resamples.

    ``per_token`` (nats) and ``perplexity`` = exp(per_token) depend on the tokenizer: they compare checkpoints that
    share one. ``bits_per_byte`` = nats / (ln 2 * bytes) compares any (Gao et al. 2020, arXiv:2101.00027, section 3.1).
    """

    per_token: Interval
    perplexity: Interval
    bits_per_byte: Interval


def perplexity(texts: Sequence[TextLikelihood]) -> Perplexity:
    """Return what the likelihoods of documents say; documents without a token are left out."""
    counted = [text for text in texts if text.num_tokens and text.num_bytes]
    nats = [-text.logprob for text in counted]
    per_token = ratio_interval(nats, [float(text.num_tokens) for text in counted])
    per_byte = ratio_interval(nats, [float(text.num_bytes) for text in counted])
    return Perplexity(
        per_token=per_token,
        perplexity=_mapped(per_token, lambda nats: math.inf if nats > LARGEST_EXPONENT else math.exp(nats)),
        bits_per_byte=_mapped(per_byte, lambda nats: nats / math.log(2)),
    )


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """The same interval in another unit; ``function`` rises."""
    return Interval(function(interval.value), function(interval.low), function(interval.high), interval.count)
