"""The configuration file of `puhui serve`: TOML, one table for each subject, and nothing in it that is not known."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any, get_args

import msgspec

from puhui.core.errors import SettingsError
from puhui.core.log_lines import LogFormat
from puhui.core.settings import AuditRate, Privacy, Promise, Tariff
from puhui.energy.tariff import grid_intensity
from puhui.gateway.admission import MOST_AT_ONCE
from puhui.gateway.bodies import MOST_BODY_MB
from puhui.gateway.server import STOP_WITHIN_S
from puhui.upstreams.upstream_settings import UpstreamSettings


class ServeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[serve]`: where the node listens and keeps its data, and what it does. A relative `data_dir` is the file's."""

    host: str = "127.0.0.1"
    port: int = 8000
    allow_open: bool = False
    allow_origins: tuple[str, ...] = ()
    data_dir: str | None = None
    store: str | None = None
    durable: bool = False
    learn: bool = True
    logprobs: bool = True
    log_level: str = "INFO"
    log_format: LogFormat = "text"
    access_log: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port is {self.port}, but must be 0 to 65535")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise SettingsError(f"log_level is {self.log_level!r}; allowed: DEBUG, INFO, WARNING, ERROR")
        if self.log_format not in get_args(LogFormat):
            raise SettingsError(f"log_format is {self.log_format!r}; allowed: {', '.join(get_args(LogFormat))}")


class TariffTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tariff]`: as `Tariff`; `country` names the grid where `carbon_g_per_kwh` is not given.

    Without prices for tokens those of the first upstream's model count, where they are known.
    """

    country: str = "WORLD"
    carbon_g_per_kwh: float | None = None
    price_per_kwh: float = 0.15
    price_in: float | None = None
    price_out: float | None = None
    currency: str = "USD"

    def tariff(self, price_in: float, price_out: float) -> Tariff:
        """The tariff; the prices are those of the big model, for tables without."""
        given = self.price_in is not None or self.price_out is not None
        return Tariff(
            carbon_g_per_kwh=grid_intensity(self.country) if self.carbon_g_per_kwh is None else self.carbon_g_per_kwh,
            price_per_kwh=self.price_per_kwh,
            price_in=(self.price_in or 0.0) if given else price_in,
            price_out=(self.price_out or 0.0) if given else price_out,
            currency=self.currency,
        )


class TracesTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[traces]`: the base URL of an OTLP collector, such as http://localhost:4318; without one there are no traces."""

    endpoint: str | None = None


class KeysTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[keys]`: whether each request needs a key even where the node is open without."""

    required: bool = False


class LimitsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: how many requests may be under way at once at the most, and how many MiB the body of one may have.

    Under load there are fewer. A node that is told to stop does so within `stop_within_s` seconds.
    """

    most_at_once: int = MOST_AT_ONCE
    max_body_mb: int = MOST_BODY_MB
    stop_within_s: int = STOP_WITHIN_S

    def __post_init__(self) -> None:
        if self.max_body_mb < 1:
            raise SettingsError(f"max_body_mb is {self.max_body_mb}, but must be 1 or more")
        if self.most_at_once < 1:
            raise SettingsError(f"most_at_once is {self.most_at_once}, but must be 1 or more")
        if self.stop_within_s < 1:
            raise SettingsError(f"stop_within_s is {self.stop_within_s}, but must be whole seconds, 1 or more")


class ServeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file. Every table may be left out."""

    serve: ServeTable = ServeTable()
    upstream: tuple[UpstreamSettings, ...] = ()
    promise: Promise = Promise()
    tariff: TariffTable = TariffTable()
    audit_rate: AuditRate = AuditRate()
    privacy: Privacy = Privacy()
    keys: KeysTable = KeysTable()
    traces: TracesTable = TracesTable()
    limits: LimitsTable = LimitsTable()


def read_serve_file(path: Path) -> ServeFile:
    """The file at `path`. Raises `SettingsError` that names what is wrong in it and what is allowed."""
    try:
        given = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"the configuration file {path} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the configuration file {path} is not TOML: {error}") from error
    try:
        _check_names(given, ServeFile, "")
        file = msgspec.convert(given, ServeFile)
    except (SettingsError, msgspec.ValidationError) as error:
        raise SettingsError(f"the configuration file {path}: {error}") from error
    folder = file.serve.data_dir
    if folder is None:
        return file
    serve = msgspec.structs.replace(file.serve, data_dir=str(path.absolute().parent / folder))
    return msgspec.structs.replace(file, serve=serve)


def _check_names(given: Any, kind: Any, at: str) -> None:
    """Refuses a name that `kind` does not have. (msgspec would too, but not say which it has.)"""
    if typing.get_origin(kind) is tuple and isinstance(given, list):
        for number, each in enumerate(given, 1):
            _check_names(each, typing.get_args(kind)[0], f"{at[:-1]} {number}.")
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(given, dict)):
        return
    allowed = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if kind is UpstreamSettings and "key" in given:
        raise SettingsError(f"{at}key is not allowed: name an environment variable that holds the key with key_env")
    for name, value in given.items():
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(allowed.keys() - ({"key"} if kind is UpstreamSettings else set())))
            raise SettingsError(f"there is no {at}{name}{meant} (allowed: {known})")
        _check_names(value, allowed[name], f"{at}{name}.")
