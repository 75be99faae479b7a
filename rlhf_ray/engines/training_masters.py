"""Where a parameter's float32 copy and its moments lie: without DeepSpeed's own optimizer, in ZeRO 1 and 2, in ZeRO 3.

The names used here are those of DeepSpeed 0.19 (`deepspeed.utils.tensor_fragment`, `runtime/zero/stage3.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.engines.training_state import MOMENTS, Masters


def masters_of(engine: Any, *, plain: bool) -> Masters:
    """The masters of a DeepSpeed engine; ``plain`` where it hands a torch optimizer through."""
    if plain:
        return PlainMasters(engine.optimizer)
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return ShardedMasters(engine.optimizer)
    return FlatMasters(engine.optimizer)


class _Adam(ABC):
    """The moments of a torch optimizer, which makes them at its first update."""

    def __init__(self, adam: torch.optim.Optimizer) -> None:
        self._adam = adam

    @abstractmethod
    def _held(self) -> Sequence[Tensor]:
        """The tensors that this rank's Adam updates."""

    @property
    def adam_steps(self) -> int:
        return max((int(self._adam.state[held].get("step", 0)) for held in self._held()), default=0)

    def prepare(self, adam_steps: int) -> None:
        for held in self._held():
            self._adam.state[held] = {"step": self._step(held, adam_steps)}
            self._adam.state[held] |= {moment: torch.zeros_like(held.data) for moment in MOMENTS}

    def _step(self, held: Tensor, adam_steps: int) -> Any:
        """The count as this optimizer keeps it: DeepSpeed's for offloading has an integer, torch's a tensor."""
        if not isinstance(self._adam, torch.optim.AdamW):
            return adam_steps
        fused = bool(self._adam.defaults.get("fused"))
        return torch.tensor(float(adam_steps), dtype=torch.float32, device=held.device if fused else "cpu")


class PlainMasters(_Adam):
    """ZeRO 0 in float32: the parameters themselves, the same on every rank."""

    def _held(self) -> Sequence[Tensor]:
        return [p for group in self._adam.param_groups for p in group["params"]]

    def read(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if moment is None:
            return parameter.data
        held: Tensor | None = self._adam.state[parameter].get(moment)
        return torch.zeros_like(parameter) if held is None else held  # one that no loss has reached yet

    def write(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        self.read(parameter, moment).copy_(value)

    def finish(self) -> None:
        """Nothing is kept twice."""


class FlatMasters(_Adam):
    """ZeRO 1 and 2, and bfloat16 with ZeRO 1: each rank holds a stretch of all parameters end to end."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer.optimizer)
        self._optimizer = optimizer

    def _held(self) -> Sequence[Tensor]:
        in_bfloat16 = hasattr(self._optimizer, "fp32_groups_flat_partition")
        held: Sequence[Tensor] = (
            self._optimizer.fp32_groups_flat_partition
            if in_bfloat16
            else self._optimizer.single_partition_of_fp32_groups
        )
        return held

    def prepare(self, adam_steps: int) -> None:
        super().prepare(adam_steps)
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def read(self, parameter: Any, moment: str | None) -> Tensor:
        whole: Tensor = parameter.get_full_hp_param(moment)
        return whole

    def write(self, parameter: Any, moment: str | None, value: Tensor) -> None:
        parameter.set_full_hp_param(value, moment)
        if moment is None:
            parameter.data.copy_(value)

    def finish(self) -> None:
        """The model's weights were written beside their masters."""


class ShardedMasters(_Adam):
    """ZeRO 3: each rank holds an equal part of every parameter, the last ones filled up with zeros."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer.optimizer)
        self._optimizer = optimizer

    def _held(self) -> Sequence[Tensor]:
        held: Sequence[Tensor] = self._optimizer.fp32_partitioned_groups_flat
        return held

    def read(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        whole: Tensor = self._optimizer.get_full_hp_param(parameter, moment)
        return whole

    def write(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        part, _ = self._optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=moment
        )
        first = part.numel() * self._optimizer._get_param_partition_rank(parameter)
        own = value.flatten()[first : first + part.numel()]
        part.data.zero_()
        part.data[: own.numel()].copy_(own)

    def finish(self) -> None:
        """Copy the masters into the shares that the model computes with, and gather those that stay whole."""
        optimizer = self._optimizer
        for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
            if not master.numel():
                continue
            share = optimizer.fp16_partitioned_groups_flat[index]
            share.data.copy_(master.data)
            parts = optimizer.unflatten(share, optimizer.fp16_partitioned_groups[index])
            for partitioned, part in zip(optimizer.fp16_partitioned_groups[index], parts, strict=True):
                partitioned.data = part.data
        if whole := list(optimizer.persistent_parameters):
            whole[0].partition(whole)
            whole[0].all_gather(whole)
