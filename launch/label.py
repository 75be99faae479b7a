"""Serve the labelling page, and hand out the links by which people come in."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.labelling import MANAGER, LabellingConfig
from rlhf_ray.data.jsonl import decode
from rlhf_ray.errors import ConfigError
from rlhf_ray.labelling.desk import Desk, open_desk
from rlhf_ray.labelling.guidelines import read_guidelines
from rlhf_ray.labelling.server import serve
from rlhf_ray.web.server import base_url


def serve_page(store: str, settings: LabellingConfig, *, guidelines: Path | None, items: Path | None) -> None:
    """Print a link for everybody who has none yet and serve until interrupted."""
    with open_desk(store, settings, read_guidelines(guidelines), only=_item_ids(items)) as desk:
        names = sorted({*settings.annotators, *desk.annotators_with_link()})
        if not names:
            raise ConfigError("--annotator", "", "names nobody", "add --annotator NAME, once for each person")
        if not desk.size():
            raise ConfigError(
                "STORE", store, "holds no item with 2 to 9 responses", "add some with `rlhf-ray feedback add`"
            )
        serve(desk, say=lambda address: _print_links(desk, [*names, MANAGER], address))


def print_new_link(store: str, settings: LabellingConfig, name: str) -> None:
    """Make the link that one person had void and print another; a server that runs takes it up at once."""
    with open_desk(store, settings, read_guidelines(None), only=frozenset()) as desk:
        if name not in desk.names_with_link():
            raise ConfigError("--new-link", name, "has no link in this store", "serve with --annotator NAME first")
        print(f"{name}: {_link(desk.new_link(name), base_url(settings.serving, settings.serving.port))}")


def _print_links(desk: Desk, names: list[str], address: str) -> None:
    """A token is printed once, when it is made: the store keeps its hash only."""
    known = desk.names_with_link()
    print(f"{desk.size()} items to label on {address}")
    for name in names:
        kept = f"keeps the link that was printed before (lost? --new-link {name})"
        print(f"{name}: {kept if name in known else _link(desk.new_link(name), address)}", flush=True)


def _link(token: str, address: str) -> str:
    return f"{address}/enter#{token}"


def _item_ids(path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        ids = frozenset(decode(path.read_bytes(), str(path)).split())
    except OSError as error:
        raise ConfigError("--items", str(path), f"cannot be read ({error.strerror})", "check the path") from error
    if not ids:
        raise ConfigError("--items", str(path), "names no item", "write one item id a line")
    return ids
