"""Every error that Puhui raises on purpose.

    PuhuiError                  the root; `except PuhuiError` catches all that are ours
    ├── InvalidRequest          the caller's request is not usable: nothing was asked of any model
    ├── UnknownModel            no model or task of that name
    ├── SettingsError           a setting, flag or environment variable has a value that is not allowed
    ├── NeedsUnmet              what the request needs (latency, cost, privacy) cannot be had here
    ├── NotAuthenticated        no key, or one that is unknown, expired or revoked
    ├── NotAllowed              a key that may not do this
    ├── LimitReached            too much in too short a time (`retry_after_s`)
    │   ├── BudgetSpent         the key's money or energy for the day or month is used up
    │   └── Overloaded          the node has as much to do as it can
    ├── UpstreamError           the big model did not give a usable answer
    │   ├── UpstreamUnavailable it could not be reached, or closed the connection
    │   ├── UpstreamTimeout     it did not answer in time
    │   ├── UpstreamRefused     it answered with an error status (`status`, `body`)
    │   │   └── UpstreamDenied  with 401 or 403 to the node's own key
    │   └── UpstreamGarbled     it answered with something that is not an answer, or with half a stream
    ├── StoreError              the store cannot be opened, read or written
    ├── BundleError             an expert's bundle is missing something, damaged or not signed
    ├── LearningError           an expert cannot be learned from this data (and why)
    └── MissingExtra            a feature needs a package that is not installed

A message says what failed, the value, what is allowed, and what to do next.
"""

from __future__ import annotations


class PuhuiError(Exception):
    """The root of Puhui's errors."""


class InvalidRequest(PuhuiError):
    """The request cannot be used. `param` names the field at fault, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(PuhuiError):
    """No model, expert or task has that name."""


class SettingsError(PuhuiError):
    """A setting has a value that is not allowed."""


class NeedsUnmet(PuhuiError):
    """What the request needs cannot be had. `need` names the field of `Needs`."""

    def __init__(self, message: str, *, need: str) -> None:
        super().__init__(message)
        self.need = need


class NotAuthenticated(PuhuiError):
    """No key was shown, or one that is unknown, expired or revoked."""


class NotAllowed(PuhuiError):
    """The key may not do this."""


class LimitReached(PuhuiError):
    """Too much was asked in too short a time; `retry_after_s` is when to ask again, in seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BudgetSpent(LimitReached):
    """The key's money or energy for the day or month is used up."""


class Overloaded(LimitReached):
    """The node has as much to do as it can."""


class UpstreamError(PuhuiError):
    """The big model gave no usable answer."""


class UpstreamUnavailable(UpstreamError):
    """The big model could not be reached, or closed the connection. `retry_after_s`: when it may be back, if known."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamTimeout(UpstreamError):
    """The big model did not answer in time."""


class UpstreamRefused(UpstreamError):
    """The big model answered with an error status.

    `status` is the HTTP status, `body` what it sent (passed on to the caller as it came), and
    `retry_after` its Retry-After header, if any.
    """

    def __init__(self, message: str, *, status: int, body: bytes, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


class UpstreamDenied(UpstreamRefused):
    """The big model refused the key that the node itself has for it: no matter of the caller's."""


class UpstreamGarbled(UpstreamError):
    """The big model sent something that is not an answer, or half of one."""


class StoreError(PuhuiError):
    """The store cannot be opened, read or written."""


class BundleError(PuhuiError):
    """An expert's bundle is incomplete, damaged or not signed."""


class LearningError(PuhuiError):
    """No expert can be learned from this data; the message says why."""


class MissingExtra(PuhuiError):
    """A feature needs a package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f'{feature} needs packages that are not installed: pip install "puhui[{extra}]"')
        self.feature = feature
        self.extra = extra
