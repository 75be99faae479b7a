"""From files and ``key.path=value`` overrides to a checked configuration, and back to YAML."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (its ``base:`` names another to start from), apply overrides, check everything.

    Raises ConfigError for a file that is missing or not YAML, an unknown key (with the nearest known one), a value of the
    wrong type, or a broken rule.
    """
    schema = OmegaConf.structured(RunConfig)
    layers = [(str(p), layer) for p, layer in _with_bases(Path(path), ())]
    layers += [(text, _parse_override(text)) for text in overrides]
    tree = schema
    for source, layer in layers:
        tree = _merged(tree, layer, source)
    try:
        return cast(RunConfig, OmegaConf.to_object(tree))
    except MissingMandatoryValue as error:
        field = error.full_key or "?"
        raise ConfigError(field, None, "must be given", f"add it to {path} or pass {field}=value") from None
    except OmegaConfBaseException as error:
        raise _translated(error, str(path)) from None


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration, as ``load_config`` reads it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def to_dict(config: Any) -> dict[str, Any]:
    """A section as plain values, for hashing and records."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True))


def _with_bases(path: Path, seen: tuple[Path, ...]) -> list[tuple[Path, DictConfig]]:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError("CONFIG", str(path), "is not a file", f"choose one of {', '.join(near) or 'configs/*.yaml'}")
    if path.resolve() in seen:
        raise ConfigError("base", str(path), "leads back to itself", "break the circle")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # the YAML library has many
        raise ConfigError("CONFIG", str(path), "is not valid YAML", str(error)) from error
    if not isinstance(layer, DictConfig):
        raise ConfigError("CONFIG", str(path), "must hold a mapping", "write `key: value` lines")
    base = layer.pop("base", None)
    below = _with_bases(path.parent / base, (*seen, path.resolve())) if base else []
    return [*below, (path, layer)]


def _parse_override(text: str) -> DictConfig:
    if "=" not in text or text.startswith("="):
        raise ConfigError("override", text, "must look like key.path=value", "for example ppo.num_steps=10")
    return OmegaConf.from_dotlist([text])


def _merged(tree: DictConfig, layer: DictConfig, source: str) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.merge(tree, layer))
    except OmegaConfBaseException as error:
        raise _translated(error, source, tree) from None


def _translated(error: OmegaConfBaseException, source: str, tree: DictConfig | None = None) -> ConfigError:
    """An OmegaConf error in our form: field, value, rule, remedy."""
    field = error.full_key or str(error.key or "?")
    if isinstance(error, ConfigKeyError) and tree is not None:
        names = _all_keys(tree)
        near = difflib.get_close_matches(field, names, n=1, cutoff=0.5)
        near = near or [n for n in names if n.rsplit(".", 1)[-1] == field.rsplit(".", 1)[-1]][:1]
        hint = f"did you mean {near[0]}?" if near else "see `--print-config` for all keys"
        return ConfigError(field, source, "is not a known key", hint)
    reason = str(error.msg or error).splitlines()[0]
    return ConfigError(field, source, f"cannot be read: {reason}", "see `--print-config` for the expected type")


def _all_keys(tree: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key in tree:
        node = tree._get_node(str(key))
        keys.append(f"{prefix}{key}")
        if isinstance(node, DictConfig) and not node._is_none():
            keys += _all_keys(node, f"{prefix}{key}.")
    return keys
