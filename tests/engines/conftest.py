"""Trainer ranks, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import ranks


@pytest.fixture(scope="session", autouse=True)
def _ranks_end_with_the_session() -> Iterator[None]:
    yield
    ranks.stop_all()


@pytest.fixture
def one_rank() -> ranks.Ranks:
    return ranks.ranks(1)


@pytest.fixture
def two_ranks() -> ranks.Ranks:
    return ranks.ranks(2)
