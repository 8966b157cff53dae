"""Bundles: whole and signed, or refused by the name of the file at fault."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

import experts
from puhui.bundles.bundle import CARD_FILE, SIGNATURE_FILE, Card, Signature, open_bundle, open_expert, read_card, seal
from puhui.core.errors import BundleError
from puhui.evolve.traffic import Task
from puhui.trust.keys import SigningKey, load_or_create_key

TASK = Task("task-1", "a task", "context:1", "m")
FILES = ["expert.json", "signature.json", "static.json", "weights.safetensors"]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return load_or_create_key(tmp_path / "node.key")


@pytest.fixture
def sealed(tmp_path: Path, key: SigningKey) -> tuple[str, Path]:
    return seal(tmp_path / "experts", experts.card(TASK), experts.model(), key)


def test_what_is_sealed_opens(sealed: tuple[str, Path], key: SigningKey) -> None:
    expert, place = sealed
    assert sorted(path.name for path in place.iterdir()) == FILES
    assert [path.name for path in place.parent.iterdir()] == [expert[:24]]
    card, model = open_bundle(place, expert=expert, trusted={key.public})
    assert card.task_name == "a task"
    assert set(card.files) == {"static.json", "weights.safetensors"}
    texts = experts.questions(50, seed=3)
    assert [model.predict_one(text) for text in texts] == [experts.model().predict_one(text) for text in texts]


@pytest.mark.parametrize("asked", [None, 3, b"cash"])
def test_what_is_no_text_cannot_be_asked(sealed: tuple[str, Path], asked: object) -> None:
    with pytest.raises(TypeError, match=f"asked a text .str., but this is {type(asked).__name__}"):
        open_expert(sealed[1]).ask(asked)  # type: ignore[arg-type]


def test_sealing_the_same_again_is_the_same(tmp_path: Path, key: SigningKey) -> None:
    card = experts.card(TASK, created=1.0)
    assert len({seal(tmp_path / "e", card, experts.model(), key) for _ in range(2)}) == 1
    assert len(list((tmp_path / "e").iterdir())) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_changed_byte_is_refused_by_name(
    sealed: tuple[str, Path], key: SigningKey, name: str, where: float
) -> None:
    expert, place = sealed
    data = bytearray((place / name).read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    (place / name).write_bytes(data)
    for options in ({"expert": expert, "trusted": {key.public}}, {}):
        with pytest.raises(BundleError) as caught:
            open_bundle(place, **options)  # type: ignore[arg-type]
        assert name in str(caught.value) or (name in (CARD_FILE, SIGNATURE_FILE) and str(place) in str(caught.value))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "longer", "a folder"])
def test_a_file_that_is_not_whole(sealed: tuple[str, Path], name: str, how: str) -> None:
    expert, place = sealed
    data = (place / name).read_bytes()
    (place / name).unlink()
    if how == "a folder":
        (place / name).mkdir()
    elif how != "missing":
        (place / name).write_bytes({"empty": b"", "cut": data[:-9], "longer": data + b"\n#"}[how])
    with pytest.raises(BundleError):
        open_bundle(place, expert=expert)


def test_another_key_is_not_trusted(sealed: tuple[str, Path], key: SigningKey, tmp_path: Path) -> None:
    expert, place = sealed
    other = load_or_create_key(tmp_path / "other.key")
    with pytest.raises(BundleError, match="not trusted here"):
        open_bundle(place, expert=expert, trusted={other.public})
    # Signed anew by another key, and claiming to be of the trusted one.
    forged = Signature(key.public, other.sign(expert.encode()))
    (place / SIGNATURE_FILE).write_bytes(msgspec.json.encode(forged))
    with pytest.raises(BundleError, match="was changed"):
        open_bundle(place, expert=expert, trusted={key.public})


def rewrite(place: Path, key: SigningKey, **changes: object) -> None:
    """Changes the card and signs it anew, as only the owner of the key can."""
    card = msgspec.json.decode((place / CARD_FILE).read_bytes()) | changes
    data = msgspec.json.encode(card)
    (place / CARD_FILE).write_bytes(data)
    expert = hashlib.sha256(data).hexdigest()
    (place / SIGNATURE_FILE).write_bytes(msgspec.json.encode(Signature(key.public, key.sign(expert.encode()))))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": {}}, "no digest of static.json, weights.safetensors"),
        ({"files": {"../node.key": "0"}}, "outside itself"),
        ({"files": {"..": "0"}}, "outside itself"),
        ({"files": {"sub/../../node.key": "0"}}, "outside itself"),
        ({"files": {"/etc/passwd": "0"}}, "outside itself"),
        ({"files": {"weights": "0"}}, "weights cannot be read"),
        ({"family": "oracle"}, "'oracle' is unknown here"),
        ({"labels": 5}, "damaged"),
        ({"files": [1]}, "damaged"),
    ],
)
def test_a_card_that_is_signed_and_wrong(
    sealed: tuple[str, Path], key: SigningKey, changes: dict[str, object], told: str
) -> None:
    rewrite(sealed[1], key, **changes)
    with pytest.raises(BundleError, match=told):
        open_bundle(sealed[1])


def test_a_card_that_nests_without_end(sealed: tuple[str, Path]) -> None:
    (sealed[1] / CARD_FILE).write_bytes(b'{"recipe":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}")
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(sealed[1])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expert\.json cannot be read: No such file"):
        open_bundle(tmp_path / "nowhere")


def test_nothing_is_left_when_sealing_fails(tmp_path: Path, key: SigningKey) -> None:
    with pytest.raises(TypeError):
        seal(tmp_path / "e", experts.card(TASK, recipe={"a": object()}), experts.model(), key)
    assert list((tmp_path / "e").iterdir()) == []


def test_more_files_are_covered_by_the_id(tmp_path: Path, key: SigningKey) -> None:
    def page(card: Card, *, key: str) -> str:
        return f"{key} {sorted(card.files)} 慧"

    more = {"page.txt": page, "notes/raw.bin": bytes(range(256))}
    expert, place = seal(tmp_path / "e", experts.card(TASK), experts.model(), key, more=more)
    card, _ = open_bundle(place, expert=expert)
    assert set(card.files) == {"page.txt", "notes/raw.bin", "static.json", "weights.safetensors"}
    assert (place / "notes" / "raw.bin").read_bytes() == bytes(range(256))
    told = (place / "page.txt").read_text(encoding="utf-8")
    assert told == f"{key.public} ['static.json', 'weights.safetensors'] 慧"
    (place / "page.txt").write_text(told + " ")
    with pytest.raises(BundleError, match=r"page\.txt was changed"):
        open_bundle(place)


@pytest.mark.parametrize("name", ["expert.json", "signature.json", "static.json", "../out", "/etc/x", ".hidden", ""])
def test_a_file_that_cannot_be_added(tmp_path: Path, key: SigningKey, name: str) -> None:
    with pytest.raises(BundleError, match="can be added"):
        seal(tmp_path / "e", experts.card(TASK), experts.model(), key, more={name: b"x"})
    assert list((tmp_path / "e").iterdir()) == []


def test_the_card_of_a_bundle_alone(sealed: tuple[str, Path], key: SigningKey, tmp_path: Path) -> None:
    expert, place = sealed
    (place / "weights.safetensors").unlink()
    signed = read_card(place, expert=expert, trusted={key.public})
    assert (signed.id, signed.key, signed.card.task_name) == (expert, key.public, "a task")
    with pytest.raises(BundleError, match="not trusted here"):
        read_card(place, trusted={load_or_create_key(tmp_path / "other").public})


def test_a_card_from_before_there_were_pages_opens(sealed: tuple[str, Path], key: SigningKey) -> None:
    """Cards grow by fields with defaults; one without them is read as before."""
    grown = {"trade_offs", "confusions", "reliability", "calibration_error", "devices", "precision", "commands"}
    old = msgspec.json.decode((sealed[1] / CARD_FILE).read_bytes())
    data = msgspec.json.encode({name: value for name, value in old.items() if name not in grown})
    (sealed[1] / CARD_FILE).write_bytes(data)
    signature = Signature(key.public, key.sign(hashlib.sha256(data).hexdigest().encode()))
    (sealed[1] / SIGNATURE_FILE).write_bytes(msgspec.json.encode(signature))
    assert open_bundle(sealed[1])[0].trade_offs == ()
