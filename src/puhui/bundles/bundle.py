"""An expert on disk: a folder of its card, its weights and a signature, named after its content.

    expert.json        the card: task, labels, teacher, recipe, guarantee, digests of every other file
    …                  what the family wrote (`models.family`): weights.safetensors and static.json, say
    card.html          the card for people, and README.md the one for Hugging Face, where they were asked for
    signature.json     Ed25519 over the id, and the public key

The id is the SHA-256 of `expert.json`, which holds the SHA-256 of every other file: one changed byte anywhere
and the bundle is refused, by the name of the file. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec

from puhui.bundles.card import Card as Card
from puhui.core.errors import BundleError
from puhui.models.family import ExpertModel, family_class
from puhui.models.wire import NOT_JSON
from puhui.trust.keys import SigningKey, verify

CARD_FILE = "expert.json"
SIGNATURE_FILE = "signature.json"
_INSIDE = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*")


class Page(Protocol):
    """A file that is made from the card: its text, in UTF-8 on disk."""

    def __call__(self, card: Card, *, key: str) -> str:
        """The text for a card with the digests of the model's files; `key` is the public key that signs it."""
        ...


class Signature(msgspec.Struct, frozen=True):
    """Who signed, and the signature over the expert's id; both in hexadecimal."""

    key: str
    signature: str


def seal(
    folder: Path,
    card: Card,
    model: ExpertModel,
    key: SigningKey,
    *,
    more: Mapping[str, bytes | Page] = MappingProxyType({}),
) -> tuple[str, Path]:
    """Writes the bundle under `folder` and returns its id and place. It appears whole or not at all.

    `more` are further files by name, covered by the id like all others: bytes, or a page that is made from the
    card once the digests of the model's own files are on it. BundleError for a name that is taken or not inside.
    """
    draft = folder / f".draft-{os.getpid()}-{time.monotonic_ns()}"
    try:
        model.save(draft)
        card = msgspec.structs.replace(card, files=_digests(draft))
        for name, content in more.items():
            _add(draft, name, content if isinstance(content, bytes) else content(card, key=key.public).encode())
        card = msgspec.structs.replace(card, files=_digests(draft))
        card_bytes = msgspec.json.format(msgspec.json.encode(card), indent=1)
        expert = hashlib.sha256(card_bytes).hexdigest()
        (draft / CARD_FILE).write_bytes(card_bytes)
        signature = Signature(key.public, key.sign(expert.encode()))
        (draft / SIGNATURE_FILE).write_bytes(msgspec.json.encode(signature))
        place = folder / expert[:24]
        if not place.exists():
            draft.rename(place)
        return expert, place
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class Signed(NamedTuple):
    """A card whose signature holds, with the id that it gives the expert and the public key that signed it."""

    card: Card
    id: str
    key: str


def read_card(folder: Path, *, expert: str | None = None, trusted: Collection[str] | None = None) -> Signed:
    """The card of a bundle, once its signature holds; the other files are not read.

    Arguments and errors as for `open_bundle`.
    """
    card_bytes = _read(folder / CARD_FILE)
    found = hashlib.sha256(card_bytes).hexdigest()
    if expert is not None and found != expert:
        raise BundleError(f"{folder / CARD_FILE} was changed: its digest is {found[:16]}…, not {expert[:16]}…")
    try:
        card = msgspec.json.decode(card_bytes, type=Card)
        signature = msgspec.json.decode(_read(folder / SIGNATURE_FILE), type=Signature)
    except NOT_JSON as error:
        raise BundleError(f"the bundle {folder} is damaged: {error}") from error
    if trusted is not None and signature.key not in trusted:
        raise BundleError(f"{folder / SIGNATURE_FILE} is of the key {signature.key[:16]}…, which is not trusted here")
    try:
        verify(signature.key, found.encode(), signature.signature)
    except BundleError as error:
        raise BundleError(f"{folder / CARD_FILE} or {SIGNATURE_FILE} was changed: {error}") from error
    return Signed(card, found, signature.key)


def open_bundle(
    folder: Path, *, expert: str | None = None, trusted: Collection[str] | None = None
) -> tuple[Card, ExpertModel]:
    """The card and the model of a bundle, once every digest and the signature hold.

    `expert` is the id that it must have; `trusted` the public keys that may have signed it (None: any).
    Raises `BundleError` that names the file at fault.
    """
    card = read_card(folder, expert=expert, trusted=trusted).card
    for name, digest in card.files.items():
        if not _INSIDE.fullmatch(name):
            raise BundleError(f"the bundle {folder} names a file outside itself: {name!r}")
        if _digest(folder / name) != digest:
            raise BundleError(f"{folder / name} was changed: its digest is not the one in {CARD_FILE}")
    if unproven := _files(folder) - {CARD_FILE, SIGNATURE_FILE} - card.files.keys():
        raise BundleError(f"{folder / CARD_FILE} gives no digest of {', '.join(sorted(unproven))}")
    return card, family_class(card.family).load(folder)


class Said(msgspec.Struct, frozen=True):
    """An expert's word. `sure` says whether its confidence is one for which the guarantee was proven."""

    label: str
    confidence: float
    sure: bool


class Expert:
    """A bundle, opened: an expert that answers on this device, with NumPy alone and without a network."""

    def __init__(self, card: Card, model: ExpertModel) -> None:
        self.card = card
        self._model = model
        self._threshold = card.calibration.get("threshold")

    def __repr__(self) -> str:
        return f"Expert({self.card.task_name!r}, {len(self.card.labels)} labels)"

    def ask(self, text: str) -> Said:
        """The expert's answer to one text. Where it is not `sure`, ask the big model. TypeError for what is no text."""
        if not isinstance(text, str):
            raise TypeError(f"an expert is asked a text (str), but this is {type(text).__name__}: {text!r:.80}")
        label, confidence = self._model.predict_one(text)
        return Said(label, confidence, self._threshold is not None and confidence >= self._threshold)


def open_expert(folder: str | os.PathLike[str], *, trusted: Collection[str] | None = None) -> Expert:
    """The expert in a bundle's folder, once every digest and the signature hold.

    `trusted` are the public keys that may have signed it (None: any). Raises `BundleError` that names the file
    at fault.
    """
    return Expert(*open_bundle(Path(folder), trusted=trusted))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def _files(folder: Path) -> set[str]:
    """The names of all files in the folder and its folders, but for hidden ones, which file managers leave."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix() for path in found}


def _digests(folder: Path) -> dict[str, str]:
    return {name: _digest(folder / name) for name in sorted(_files(folder))}


def _add(draft: Path, name: str, content: bytes) -> None:
    if not _INSIDE.fullmatch(name) or name in (CARD_FILE, SIGNATURE_FILE) or (draft / name).exists():
        raise BundleError(f"no file {name!r} can be added to a bundle: it is taken, or not a name within its folder")
    (draft / name).parent.mkdir(parents=True, exist_ok=True)
    (draft / name).write_bytes(content)


def _digest(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()
