"""pass@k against all draws, perplexity of a known model."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from rlhf_ray.metrics.suites import TextLikelihood, pass_at_k, perplexity


@pytest.mark.parametrize(("samples", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 1, 7), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(samples: int, right: int, k: int) -> None:
    draws = list(combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("samples", "right", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1)])
def test_pass_at_k_of_more_than_there_is_an_error(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="needs 1 <= k <= samples"):
        pass_at_k(samples, right, k)


def test_a_model_that_finds_every_byte_equally_likely_needs_eight_bits_for_each() -> None:
    texts = [TextLikelihood(-n * math.log(256), num_tokens=n, num_bytes=n) for n in (3, 10, 50)]
    found = perplexity(texts)
    assert found.perplexity.value == pytest.approx(256)
    assert (found.bits_per_byte.value, found.bits_per_byte.low) == pytest.approx((8.0, 8.0))


def test_perplexity_weighs_documents_by_their_tokens() -> None:
    found = perplexity([TextLikelihood(-1.0, 1, 2), TextLikelihood(-30.0, 10, 20), TextLikelihood(0.0, 0, 0)])
    assert found.per_token.value == pytest.approx(31 / 11)
    assert found.perplexity.value == pytest.approx(math.exp(31 / 11))
    assert found.bits_per_byte.value == pytest.approx(31 / 22 / math.log(2))
    assert found.per_token.count == 2


def test_no_text_has_no_perplexity() -> None:
    assert math.isnan(perplexity([]).perplexity.value)
    assert perplexity([TextLikelihood(-9000.0, 1, 1)]).perplexity.value == math.inf
