"""Which model somebody means: a run, a stage of it, a checkpoint, an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from rlhf_ray.config.load import load_config
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import ARTEFACT_FILE, Artefact, ArtefactStore

ORDER = ("model", "sft", "dpo", "raft", "ppo")  # later is newer
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Found:
    """A checkpoint's directory with the settings of its run, or an endpoint's ``url`` and ``model``."""

    name: str
    path: str = ""
    url: str = ""
    model: str = ""
    run: Path | None = None

    @property
    def settings(self) -> ModelConfig:
        """Those of the run that made it; the defaults where it is no run's."""
        return load_config(self.run / CONFIG_FILE).model if self.run else ModelConfig()


def find(text: str, run: Path | None = None, *, field: str = "MODEL") -> Found:
    """Read what was given on the command line; ``run`` is where names of stages are looked for.

    A run's directory (or that of a round, RUN/round_2) means its newest model, RUN/STAGE or the name of a stage that
    one. Raises ConfigError, naming ``field``, for what is none of these.
    """
    if urlsplit(text).scheme in ("http", "https"):
        url, model = urldefrag(text)
        return Found(model or url, url=url, model=model)
    if run is not None and text in ORDER and not Path(text).exists():
        return _of_stage(run, text, field)
    path = Path(text)
    if (path / CONFIG_FILE).is_file() or any((path / stage / ARTEFACT_FILE).is_file() for stage in ORDER):
        return _of_run(path, field)
    if (path / ARTEFACT_FILE).is_file():
        return _of_stage(path.parent, path.name, field)
    if (path / "config.json").is_file():
        return Found(text, str(path), run=_run_above(path))
    if path.is_dir():
        raise ConfigError(
            field, text, "holds neither a run nor a checkpoint", "give a run's output_dir, RUN/STAGE, or a checkpoint"
        )
    return Found(text, text)  # perhaps a model of the hub: whoever loads it says where it is not


def _of_run(run: Path, field: str) -> Found:
    for stage in reversed(ORDER):
        if _policy(_left(run, stage)):
            return _of_stage(run, stage, field)
    raise ConfigError(field, str(run), "has no finished stage with a model", "run `rlhf-ray sft` first")


def _of_stage(run: Path, stage: str, field: str) -> Found:
    path = _policy(_left(run, stage))
    if not path:
        there = [name for name in ORDER if _policy(_left(run, name))]
        raise ConfigError(
            field, stage, f"has left no model in {run}", f"choose one of {', '.join(there) or 'none: train first'}"
        )
    return Found(f"{run.resolve().name}/{stage}", path, run=_run_above(run / stage))


def _left(run: Path, stage: str) -> Artefact | None:
    return ArtefactStore(run.resolve()).read(stage)


def _policy(artefact: Artefact | None) -> str:
    results = artefact.results if artefact else {}
    return str(results.get("policy") or results.get("weights") or "")


def _run_above(path: Path) -> Path | None:
    """The run that a checkpoint lies in, where it lies in one."""
    marks = (CONFIG_FILE, f"model/{ARTEFACT_FILE}")
    return next((above for above in path.resolve().parents if all((above / mark).is_file() for mark in marks)), None)
