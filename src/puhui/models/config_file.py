"""The JSON file in which a family keeps what is not weights, and the errors of one that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError

from puhui.core.errors import BundleError

T = TypeVar("T")


def write_config(path: Path, config: msgspec.Struct) -> None:
    """Writes the file; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))


def read_config(path: Path, kind: type[T], *, form: int) -> T:
    """What `write_config` wrote, a struct with a field `format`. BundleError names the file at fault, and says so
    where its format is not `form`."""
    with naming(path):
        raw = path.read_bytes()
        found: Any = msgspec.json.decode(raw)
        if isinstance(found, dict) and found.get("format") != form:
            raise BundleError(f"{path} has format {found.get('format')}; this Puhui reads {form}: upgrade puhui")
        return msgspec.json.decode(raw, type=kind)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes a BundleError that names the file of whatever goes wrong while it is read and used."""
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: fetch the expert's bundle again") from error
    except BundleError as error:
        raise error if str(path) in str(error) else BundleError(f"{path} is damaged ({error})") from error
    except (
        msgspec.MsgspecError,
        SafetensorError,
        TypeError,
        ValueError,
        IndexError,
        KeyError,
        RecursionError,
        OSError,
    ) as error:
        raise BundleError(f"{path} is damaged ({error}): fetch the expert's bundle again") from error
