"""A model's weights as the world names them: Hugging Face names, adapters merged, shards gathered.

The same export feeds weight sync and checkpoints. Every rank must walk it, since under ZeRO-3 gathering is a
collective; only as much as one entry is ever whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.weight_sync.buckets import TensorMeta

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[object]]
ADAPTER_PREFIX = "base_model.model."


@dataclass(frozen=True)
class ExportEntry:
    """One weight: the parameters it is computed from and how."""

    meta: TensorMeta
    parameters: tuple[nn.Parameter, ...]
    scaling: float = 0.0  # of the adapter's product; 0 where there is none

    def compute(self, dtype: torch.dtype) -> Tensor:
        """The merged weight; call it while ``parameters`` are gathered."""
        base = self.parameters[0].data
        if self.scaling:
            _, lora_a, lora_b = self.parameters
            base = base.float() + self.scaling * (lora_b.data.float() @ lora_a.data.float())
        return base.to(dtype)


class WeightExport:
    """The ordered list of a model's weights, the same on every rank."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, gather: Gather) -> None:
        self.entries = tuple(_entries(model, dtype))
        self.dtype = dtype
        self._gather = gather
        self._by_name = {entry.meta.name: entry for entry in self.entries}

    @property
    def metas(self) -> tuple[TensorMeta, ...]:
        return tuple(entry.meta for entry in self.entries)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight) in the given order. A collective under ZeRO-3: every rank gives the same names.

        A yielded tensor is valid until the next is asked for: it may be a view of a gathered parameter.
        """
        for name in names:
            entry = self._by_name[name]
            with self._gather(entry.parameters):
                yield name, entry.compute(self.dtype)


def write_pretrained(model: Any, tensors: Mapping[str, Tensor], directory: Path, *, adapters: bool) -> None:
    """Write the exported weights of ``model`` as a Hugging Face checkpoint (safetensors)."""
    inner = model.get_base_model() if adapters else model
    inner.save_pretrained(directory, state_dict=dict(tensors))


def _entries(model: nn.Module, dtype: torch.dtype) -> Iterator[ExportEntry]:
    adapters = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        layer = adapters.get(owner.removesuffix(".base_layer"))
        meta = TensorMeta(
            name=name.removeprefix(ADAPTER_PREFIX).replace(".base_layer", ""),
            dtype=str(dtype).removeprefix("torch."),
            shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
        )
        if layer is None or leaf != "weight":
            yield ExportEntry(meta, (parameter,))
        else:
            key = next(iter(layer.lora_A))
            parts = (parameter, layer.lora_A[key].weight, layer.lora_B[key].weight)
            yield ExportEntry(meta, parts, float(layer.scaling[key]))
