"""Keys of the gateway: how they are made and recognised, and what each may do, use and spend.

A key is 256 random bits from the operating system. It is shown once; what is kept is its SHA-256. A slow hash, as
passwords need, would add nothing: it protects what people choose, which can be guessed, and nobody guesses 256 random
bits however fast he hashes (NIST SP 800-63B, 5.1.2.2, asks for salt and stretching below 112 bits only). It would cost
each request milliseconds, and hand a lever to whoever sends wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

import msgspec

from puhui.core.errors import SettingsError
from puhui.core.request import Caller, Keep

PREFIX = "pk-puhui-"
"""What every key begins with, so that people and scanners for leaked secrets know it."""
SHARED = "shared"
"""The pool of all keys that agreed to learn together."""
OF_NO_KEY = ""
"""The pool of requests without a key, while there was none."""
LONGEST_NAME = 128

Scope: TypeAlias = Literal["chat", "embeddings", "read", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)
State: TypeAlias = Literal["active", "expired", "revoked"]

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
_Model: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Amount: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a key may do, use and spend. None: no limit; no `models`: any.

    Scopes: `chat` asks for answers, `embeddings` for embeddings, `read` sees the node's bill, experts, metrics and
    live traffic (of every key), `admin` does everything, keys included. Money is in the tariff's currency; days and
    months are UTC's. `share`: experts are learned together with all others who share; `inherit`: with what was learned
    before there were keys, and all others who inherit. `keep` is the most that may be kept of prompts and answers
    (None: what the node keeps).
    """

    scopes: tuple[Scope, ...] = ("chat", "embeddings")
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    money_per_day: _Amount | None = None
    money_per_month: _Amount | None = None
    kwh_per_day: _Amount | None = None
    kwh_per_month: _Amount | None = None
    models: tuple[_Model, ...] = ()
    share: bool = False
    inherit: bool = False
    keep: Keep | None = None

    def allow(self, scope: Scope) -> bool:
        """Whether a key with these rules has `scope`; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes

    def as_dict(self) -> dict[str, Any]:
        """The rules as they are stored and shown: the scopes, and those that are set."""
        named: dict[str, Any] = msgspec.to_builtins(self)
        return {"scopes": list(self.scopes)} | named


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the node knows it, without the key itself. Times are seconds since 1970 (UTC)."""

    id: str
    name: str
    digest: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    rules: Rules = Rules()

    def __repr__(self) -> str:
        return f"ApiKey({self.id!r}, {self.name!r})"

    def state(self, now: float) -> State:
        """What has become of it."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    @property
    def caller(self) -> Caller:
        """Whose a request with this key is: alone in its pool unless it shares or inherits."""
        rules = self.rules
        pool = OF_NO_KEY if rules.inherit else SHARED if rules.share else self.id
        return Caller(self.id, pool, rules.keep, rules.models)


def new_key(name: str, rules: Rules, *, expires: float | None = None) -> tuple[str, ApiKey]:
    """A new key, and what is kept of it. The first is for its owner alone, and cannot be had again."""
    shown = PREFIX + secrets.token_urlsafe(32)
    now = time.time()
    if expires is not None and expires <= now:
        raise SettingsError(f"the key {name!r} would expire in the past, at {expires:.0f}; give a later time")
    id = f"key_{secrets.token_hex(8)}"
    kept = ApiKey(
        id=id, name=checked_name(name), digest=digest_of(shown.encode()), created=now, expires=expires, rules=rules
    )
    return shown, kept


def digest_of(shown: bytes) -> str:
    """The SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(shown).hexdigest()


def same_digest(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def checked_name(name: str) -> str:
    """`name`, if a key can have it: 1 to 128 characters that can be printed."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or not name.strip():
        raise SettingsError(f"a key's name has 1 to {LONGEST_NAME} printable characters, not {name[:200]!r}")
    return name


def read_rules(given: Mapping[str, Any]) -> Rules:
    """Rules from their names and values; None takes a rule away. Raises `SettingsError` that names what is wrong."""
    named = {name: value for name, value in given.items() if value is not None}
    try:
        rules = msgspec.convert(named, Rules)
    except msgspec.ValidationError as error:
        allowed = ", ".join(Rules.__struct_fields__)
        raise SettingsError(f"the key's rules are not usable: {error}; there are: {allowed}") from error
    if not rules.scopes:
        raise SettingsError(f"a key without scopes may do nothing; give one or more of {', '.join(SCOPES)}")
    if not rules.models and "models" in named:  # whoever lists none does not mean all
        raise SettingsError(
            "the key's rules name no models, which might mean none or any; name one or more, or leave 'models' out (or "
            "null) for any"
        )
    if rules.share and rules.inherit:
        raise SettingsError(
            "the key's rules share and inherit name two pools, and a key learns in one; take one of them away"
        )
    return rules
