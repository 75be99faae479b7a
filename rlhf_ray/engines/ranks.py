"""Where a trainer's process stands in its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RankInfo:
    """``address`` is rank 0's ``host:port``; ``device`` is ``cpu`` or ``cuda``."""

    rank: int
    world_size: int
    address: str
    device: str

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")
