"""What a training engine must remember, whole and by name: any number of ranks and any ZeRO stage can take it up.

DeepSpeed's own checkpoints hold a rank's flat share and fit the same number of ranks alone. Here a file holds whole
parameters in the precision that the optimizer keeps (float32) and their two moments of Adam, under the parameter's
name. Ranks take turns in gathering one parameter at a time and share the writing; nothing is whole but one parameter.

    DIRECTORY/TAG/state.json                 {"steps_taken": 12, "adam_steps": 12, ...}
    DIRECTORY/TAG/rank_00000.safetensors     NAME, NAME:exp_avg, NAME:exp_avg_sq of the parameters that the rank wrote

Weights that are not trained, those below adapters, are not in it: they are read from the model that a run starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_ray.errors import ConfigError, StorageError

STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Masters(Protocol):
    """The optimizer's whole tensors, whatever share of them a rank holds. Every method is a collective."""

    def read(self, parameter: nn.Parameter, moment: str | None) -> Tensor: ...

    def write(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None: ...

    @property
    def adam_steps(self) -> int:
        """Updates that Adam has made, 0 where it holds no moments yet."""
        ...

    def prepare(self, adam_steps: int) -> None:
        """Make room for moments, zeros, of an optimizer that has made so many updates."""
        ...

    def finish(self) -> None:
        """Bring the model's weights in line with what was written."""
        ...


def save_engine_state(
    directory: Path,
    named: Sequence[tuple[str, nn.Parameter]],
    masters: Masters,
    *,
    rank: int,
    world_size: int,
    facts: Mapping[str, Any],
) -> None:
    """Write the trainable parameters ``named`` and ``facts``; every rank must call it. Raises StorageError.

    All that ranks do together is done before the first byte is written, so that a full disk stops nobody else.
    """
    adam_steps = masters.adam_steps
    own: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(named):
        for moment in (None, *MOMENTS) if adam_steps else (None,):
            value = masters.read(parameter, moment)
            if index % world_size == rank:
                own[_key(name, moment)] = value.detach().to("cpu", copy=True).contiguous()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(own, directory / f"rank_{rank:05d}.safetensors")
        if rank == 0:
            content = {**facts, "adam_steps": adam_steps, "num_ranks": world_size}
            (directory / STATE_FILE).write_text(json.dumps(content))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{directory}: {error}") from error


def load_engine_state(directory: Path, named: Sequence[tuple[str, nn.Parameter]], masters: Masters) -> dict[str, Any]:
    """Restore what :func:`save_engine_state` wrote, on every rank; return the facts. ConfigError where it is not."""
    state = SavedEngine(directory)
    if missing := [name for name, _ in named if name not in state]:
        raise ConfigError(
            "checkpoint", str(directory), f"holds no parameter {missing[0]!r}", "resume with the model that was trained"
        )
    masters.prepare(state.adam_steps)
    for name, parameter in named:
        for moment in (None, *MOMENTS) if state.adam_steps else (None,):
            masters.write(parameter, moment, state.tensor(name, moment))
    masters.finish()
    return state.facts


class SavedEngine:
    """The files of one engine's state; a tensor is read when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.facts: dict[str, Any] = json.loads((directory / STATE_FILE).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                "checkpoint", str(directory), "holds no state of a trainer", "name a finished step"
            ) from error
        self.adam_steps = int(self.facts["adam_steps"])
        self._files: dict[str, Any] = {}
        for path in sorted(directory.glob("rank_*.safetensors")):
            opened: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, moment: str | None = None) -> Tensor:
        key = _key(name, moment)
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter in float32."""
        for key in self._files:
            if not key.endswith(tuple(f":{moment}" for moment in MOMENTS)):
                yield key, self.tensor(key)


def _key(name: str, moment: str | None) -> str:
    return f"{name}:{moment}" if moment else name
