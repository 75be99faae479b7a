"""Where the real data lies: RLHF_RAY_DATA, else ../shared/data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with movie_sentiment/ and hh_rlhf/; skips where there is none."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("RLHF_RAY_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no recorded data at {folder}; set RLHF_RAY_DATA")
    return folder
