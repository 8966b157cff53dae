"""What can be said of one upstream, in a configuration file or on the command line."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import msgspec

from puhui.core.errors import SettingsError
from puhui.models.http_link import Timeouts

MOST_RETRIES = 10


class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One big model: where it is, when it is asked, how long it is waited for, what it costs.

    `ref` is `openai:MODEL@URL`, or a base URL alone to let any model pass. `key_env` names the environment variable
    with its key, and `key` is that key; without one the caller's own goes on, unless `pass_key` is False. Upstreams of
    the least `rank` are asked first, by their `weight`; the others when those do not answer. `site` says whether it
    is on this site (None: by its address). `retries` are further attempts after the first. `hedge` lets a second
    upstream be asked when this one is slow, also for requests that are in no hurry. `price_in` and `price_out` are
    money for a million tokens read and written (None: by the tariff). `serves` are names, beside its own model's, by
    which requests may ask for it; a base URL alone with `serves` takes those names only.
    """

    ref: str
    key_env: str | None = None
    key: str | None = None
    pass_key: bool = True
    weight: float = 1.0
    rank: int = 0
    site: bool | None = None
    connect_s: float = 10.0
    first_token_s: float = 120.0
    whole_s: float = 600.0
    retries: int = 2
    hedge: bool = False
    price_in: float | None = None
    price_out: float | None = None
    serves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < float("inf"):
            raise SettingsError(f"upstream {self.ref}: weight is {self.weight}, but must be greater than 0")
        if not 0 <= self.retries <= MOST_RETRIES:
            raise SettingsError(f"upstream {self.ref}: retries is {self.retries}, but must be 0 to {MOST_RETRIES}")
        for name in ("price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise SettingsError(f"upstream {self.ref}: {name} is {value}, but must be 0 or more")
        try:
            _ = self.timeouts
        except SettingsError as error:
            raise SettingsError(f"upstream {self.ref}: {error}") from error

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "key")
        return f"UpstreamSettings({', '.join(f'{name}={value!r}' for name, value in shown)})"

    @property
    def timeouts(self) -> Timeouts:
        """Its timeouts."""
        return Timeouts(connect_s=self.connect_s, first_token_s=self.first_token_s, whole_s=self.whole_s)


def is_on_site(url: str) -> bool:
    """Whether a URL's host is this machine or a private address. Names are not looked up: they count as elsewhere.

    >>> is_on_site("http://10.0.0.7:8000/v1"), is_on_site("https://api.openai.com/v1")
    (True, False)
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or (address.is_private and not address.is_unspecified)
