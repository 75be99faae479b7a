"""The random states of one process: Python's, NumPy's, torch's and those of its GPUs.

Nothing that is trained or sampled draws from them: seeds come with the work, and dropout is refused. They are kept so
that a module of someone's own that does draw goes on where it was.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_random_state(directory: Path, rank: int) -> None:
    """Write ``directory/rank_00000.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"rank_{rank:05d}.json").write_text(json.dumps(random_state()))


def load_random_state(directory: Path, rank: int) -> None:
    """Restore what was saved for ``rank``; of the first rank where there were fewer ranks, nothing where none were."""
    files = [directory / f"rank_{number:05d}.json" for number in (rank, 0)]
    if found := [file for file in files if file.is_file()]:
        restore_random_state(json.loads(found[0].read_text()))


def random_state() -> dict[str, Any]:
    """All of it as JSON can hold it."""
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = legacy
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numpy_keys, *rest = state["numpy"]
    legacy: Any = (kind, np.array(numpy_keys, dtype=np.uint32), *rest)
    np.random.set_state(legacy)
    torch.set_rng_state(_tensor(state["torch"]))
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all([_tensor(each) for each in state["cuda"]])


def _hex(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
