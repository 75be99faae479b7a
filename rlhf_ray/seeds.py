"""The seed of every response: by the run's seed, the step and the response's place, for one or many at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Constants of numpy's SeedSequence (numpy/random/bit_generator.pyx; after M. E. O'Neill's randutils, 2015). Numpy
# promises that its results do not change, and a test compares.
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_L, MIX_R = 0xCA01F9DD, 0x4973F715
SHIFT, WORD, POOL_SIZE = 16, 0xFFFFFFFF, 4


def request_seed(seed: int, step: int, order: int) -> int:
    """A seed for one response: the same whatever engine samples it and when. 31 bits."""
    return int(np.random.SeedSequence([seed, step, order]).generate_state(1)[0]) >> 1


def request_seeds(seed: int, step: int, orders: Sequence[int]) -> list[int]:
    """:func:`request_seed` of each of ``orders``, in a few passes over all of them."""
    if not orders:
        return []
    if min(seed, step, *orders) < 0 or max(seed, step, *orders) > WORD:  # of more than one word, or an error
        return [request_seed(seed, step, order) for order in orders]
    entropy = np.zeros((POOL_SIZE, len(orders)), dtype=np.uint32)
    entropy[0], entropy[1], entropy[2] = seed, step, orders
    first = _mixed(entropy)[0]
    found: list[int] = (_hashed(first, INIT_B, MULT_B) >> np.uint32(1)).tolist()
    return found


def _mixed(entropy: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """SeedSequence.mix_entropy: [4, N] words in, the pools [4, N] out."""
    constant = INIT_A
    pool = np.empty_like(entropy)
    for place in range(POOL_SIZE):
        pool[place] = _hashed(entropy[place], constant, MULT_A)
        constant = constant * MULT_A & WORD
    for source in range(POOL_SIZE):
        for target in range(POOL_SIZE):
            if source != target:
                hashed = _hashed(pool[source], constant, MULT_A)
                constant = constant * MULT_A & WORD
                mixed = pool[target] * np.uint32(MIX_L) - hashed * np.uint32(MIX_R)
                pool[target] = mixed ^ (mixed >> np.uint32(SHIFT))
    return pool


def _hashed(words: npt.NDArray[np.uint32], constant: int, factor: int) -> npt.NDArray[np.uint32]:
    """SeedSequence's hash with the constant of its turn; the constant of the next is that times ``factor``."""
    words = (words ^ np.uint32(constant)) * np.uint32(constant * factor & WORD)
    return words ^ (words >> np.uint32(SHIFT))
