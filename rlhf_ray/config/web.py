"""Where a local page is served, and who reaches it there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from rlhf_ray.config.checks import require, require_between


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``. A name other than localhost may be anybody's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


@dataclass(frozen=True)
class WebConfig:
    """Where a page is served. It stays on this machine unless ``open_to_network`` says otherwise."""

    command: ClassVar[str] = "view"  # for messages: the command that serves it, and what who listens would read
    overheard: ClassVar[str] = "everything that it shows, and may look at all of it"

    host: str = "127.0.0.1"
    port: int = 8100  # 0 takes a free one
    open_to_network: bool = False
    public_url: str = ""  # by which people reach the page, where something that speaks TLS stands before it

    def __post_init__(self) -> None:
        require_between(0, 65535, **{f"{self.command}__port": self.port})
        require(
            self.open_to_network or is_loopback(self.host),
            field=f"{self.command}.host",
            value=self.host,
            rule="can be reached from other machines, and the page speaks plain http: who listens on the way reads "
            f"{self.overheard}",
            remedy="keep 127.0.0.1 behind a proxy that speaks TLS, or add --open-to-network",
        )
        address = urlsplit(self.public_url)
        require(
            not self.public_url or (address.scheme in ("http", "https") and bool(address.hostname)),
            field=f"{self.command}.public_url",
            value=self.public_url,
            rule=f"must be an address like https://{self.command}.example.org",
            remedy="give the address that people type",
        )
        require(
            bool(self.public_url) or not _is_wildcard(self.host),
            field=f"{self.command}.host",
            value=self.host,
            rule="is every address of this machine, and requests must name one that is known",
            remedy="add --public-url with the address that people type",
        )

    @property
    def secure(self) -> bool:
        """Whether people reach the page over TLS."""
        return self.public_url.startswith("https://")

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """The names by which a request may call this server; any other is an attack by a rebound name."""
        own = {"127.0.0.1", "localhost"} if is_loopback(self.host) else {self.host}
        public = urlsplit(self.public_url).hostname
        return tuple(sorted(own | ({public} if public else set())))
