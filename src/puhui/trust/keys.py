"""Ed25519 keys (RFC 8032): a node signs the experts it makes, and loads only those of keys it trusts."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from puhui.core.errors import BundleError, SettingsError


class SigningKey:
    """A node's private key. Its `repr` shows the public half only."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"

    @property
    def public(self) -> str:
        """The public key: 64 hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """The signature: 128 hexadecimal digits."""
        return self._private.sign(message).hex()


def load_or_create_key(path: Path) -> SigningKey:
    """The node's key at `path` (32 raw bytes, readable by its owner alone), made there on first use.

    Two processes may ask at once: both then get the one key that was written first.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the signing key {path} can neither be read nor made: {error.strerror or error}; "
            "make its folder writable, or give another --data-dir"
        ) from error
    if len(raw) != 32:
        raise SettingsError(
            f"{path} holds {len(raw)} bytes, but a signing key has 32; put the right file back, or move it away "
            "and Puhui makes a new key (experts signed with the old one are then refused)"
        )
    return SigningKey(Ed25519PrivateKey.from_private_bytes(raw))


def _create(path: Path) -> None:
    whole = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw())
        with contextlib.suppress(FileExistsError):
            os.link(whole, path)  # atomic, and never over a key that is there
    finally:
        whole.unlink()


def verify(public: str, message: bytes, signature: str) -> None:
    """Raises `BundleError` unless `signature` over `message` was made by the owner of `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError) as error:
        raise BundleError(f"the signature does not match the key {public[:16]}…") from error
