"""From files and ``key.path=value`` overrides to a checked configuration, and back to YAML."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (its ``base:`` names another to start from), apply overrides, check everything.

    Raises ConfigError for a file that is missing or not YAML, an unknown key (with the nearest known one), a value of
    the wrong type, or a broken rule.
    """
    return load_structured(path, RunConfig, overrides)


def load_structured(path: str | Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into another frozen dataclass of settings, by the same rules and with the same errors."""
    layers = [(str(p), layer) for p, layer in _with_bases(Path(path), ())]
    layers += [(text, _parse_override(text)) for text in overrides]
    tree = deepcopy(_schema(cast(Any, schema)))
    for source, layer in layers:
        _merge(tree, layer, source)
    try:
        return cast(T, OmegaConf.to_object(tree))
    except ConfigError as error:
        raise _in_full(error, tree) from None
    except MissingMandatoryValue as error:
        field = str(error.full_key or "?")
        raise ConfigError(field, None, "must be given", f"add it to {path} or pass {field}=value") from None
    except OmegaConfBaseException as error:
        raise _translated(error, str(path)) from None


@cache
def _schema(schema: type[Any]) -> DictConfig:
    """The defaults with their types."""
    return cast(DictConfig, OmegaConf.structured(schema))


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration, as ``load_config`` reads it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def _with_bases(path: Path, seen: tuple[Path, ...]) -> list[tuple[Path, DictConfig]]:
    if not path.is_file():
        raise ConfigError("CONFIG", str(path), "is not a file", _files_near(path))
    if path.resolve() in seen:
        raise ConfigError("base", str(path), "leads back to itself", "break the circle")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # the YAML library has many
        raise ConfigError("CONFIG", str(path), "is not valid YAML", " ".join(str(error).split())) from error
    if not isinstance(layer, DictConfig):
        raise ConfigError("CONFIG", str(path), "must hold a mapping", "write `key: value` lines")
    base = layer.pop("base", None)
    below = _with_bases(path.parent / base, (*seen, path.resolve())) if base else []
    return [*below, (path, layer)]


def _files_near(path: Path) -> str:
    """What a caller may have meant: the YAML files beside it, those of a like name first."""
    names = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.stem, [Path(name).stem for name in names], n=2, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(path.with_name(f'{stem}.yaml')) for stem in near)}?"
    return f"choose one of {', '.join(names) or 'configs/*.yaml'}"


def _parse_override(text: str) -> DictConfig:
    if "=" not in text or text.startswith("="):
        raise ConfigError("override", text, "must look like key.path=value", "for example ppo.num_steps=10")
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # the YAML library has many
        raise ConfigError("override", text, "is not valid YAML", " ".join(str(error).split())) from error


def _merge(tree: DictConfig, layer: DictConfig, source: str) -> None:
    try:
        OmegaConf.unsafe_merge(tree, layer)  # in place: a copy of the tree costs more than all else
    except OmegaConfBaseException as error:
        raise _translated(error, source, tree, layer) from None


def _translated(
    error: OmegaConfBaseException, source: str, tree: DictConfig | None = None, layer: DictConfig | None = None
) -> ConfigError:
    """An OmegaConf error in our form: field, value, rule, remedy."""
    key = error.key if isinstance(error.key, str) else None
    field = error.full_key or key or _only_path(layer)
    if isinstance(error, ConfigKeyError) and tree is not None:
        names = _all_keys(tree)
        near = difflib.get_close_matches(field, names, n=1, cutoff=0.5)
        near = near or [n for n in names if n.rsplit(".", 1)[-1] == field.rsplit(".", 1)[-1]][:1]
        hint = f"did you mean {near[0]}?" if near else "see `--print-config` for all keys"
        return ConfigError(field, source, "is not a known key", hint)
    reason = str(error).splitlines()[0]
    if "$VALUE" in reason:  # a template that the library did not fill in
        reason = "a part of it has the wrong type"
    return ConfigError(field, source, f"cannot be read: {reason}", "see `--print-config` for the expected type")


def _in_full(error: ConfigError, tree: DictConfig) -> ConfigError:
    """The same error with the whole path of its field: a section does not know where it stands, nor how often."""
    if OmegaConf.select(tree, error.field) is not None:
        return error
    name = error.field.rsplit(".", 1)[-1]
    keys = [key for key in _all_keys(tree) if key.endswith(f".{name}")]
    found = [key for key in keys if str(OmegaConf.select(tree, key)) == str(error.value)]  # as text: nan is not nan
    return ConfigError(" and ".join(found) or error.field, error.value, error.rule, error.remedy)


def _only_path(layer: DictConfig | None) -> str:
    """The path down to where a layer has several keys or a value: for an override all of it."""
    path, node = [], cast(object, layer)
    while isinstance(node, DictConfig) and len(node) == 1:
        key = next(iter(node))
        path.append(str(key))
        node = node[key]
    return ".".join(path) or "?"


def _all_keys(tree: DictConfig, prefix: str = "") -> list[str]:
    """Every known key, those of sections that are not there included."""
    keys: list[str] = []
    for key in map(str, tree):
        node = tree._get_node(key)
        keys.append(f"{prefix}{key}")
        if isinstance(node, DictConfig) and node._is_none() and is_dataclass(node._metadata.ref_type):
            keys += [f"{prefix}{key}.{part.name}" for part in fields(node._metadata.ref_type)]
        elif isinstance(node, DictConfig) and not node._is_none():
            keys += _all_keys(node, f"{prefix}{key}.")
    return keys
