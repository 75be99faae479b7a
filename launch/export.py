"""``rlhf-ray export``: a saved state's policy for whoever reads Hugging Face checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import ArtefactStore


def export_checkpoint(config: RunConfig, *, run: Path, step: int | None, best: bool, last: bool, target: Path) -> None:
    """Export one state of the run in ``run`` and say which."""
    if (step is not None) + best + last > 1:
        raise ConfigError("--step, --best, --last", "two of them", "name different states", "give one of them")
    if target.exists() and any(target.iterdir()):
        raise ConfigError("--to", str(target), "is not empty", "name a directory that is to be made")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rlhf_ray.pipeline.export_policy import choose_state, export_policy

    store = ArtefactStore(run.resolve())
    state = choose_state(store, config, step=step, best=best)
    export_policy(state, config, store, target)
    print(f"policy after step {state.step}: {target}", flush=True)
