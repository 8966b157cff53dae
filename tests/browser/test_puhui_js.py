"""puhui.js in headless Chromium and in Node: it says what Python says, and refuses what Python refuses."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import experts as sample
from browsing import Bundle, codes, corpus, elsewhere, evaluate
from puhui.browser import FOLDER
from puhui.bundles.bundle import open_bundle, seal
from puhui.bundles.probes import PROBES_FILE, Probe, probes_of
from puhui.core.errors import BundleError
from puhui.evolve.discovery import task_of_group
from puhui.models.hashing import FeatureOptions, features
from puhui.models.reliability import Reliability
from puhui.models.static import StaticModel
from puhui.models.tower import Reads, Tower
from puhui.trust.keys import load_or_create_key
from serving import serving

ODD = [
    *(
        "",
        " ",
        "\n\t",
        "!?…",
        "\0",
        "a",
        "余",
        "ﬁ",
        "İ",
        "Σ",
        "\u0301",
        "🙂",
        "\ud800",
        "\udc00\ud800",
        "\ufeff",
        "\u200d",
    ),
    *(
        "İSTANBUL ıI",
        "ΑΣ ΑΣΑ. ΟΔΥΣΣΕΥΣ",
        "ﬁﬂﬀﬃ ﬆ Ǆ ǅ ŉ ſ ẞ",
        "e\u0301 é a\u0323\u0301 a\u0301\u0323",
        "한국어 가 각",
        "ｶﾞ ㍿ ㎏ ﷺ",
    ),
    *("👩‍👩‍👧‍👦 family 🏳️‍🌈 🇨🇳", "𝒜𝓑𝕮 ⅷ ½ ①", "مرحبا بالعالم", "שָׁלוֹם", "नमस्ते दुनिया", "สวัสดี", "ᏣᎳᎩ ꭰ", "Ωμέγα ὈΔΥΣΣΕΎΣ"),
    *(
        "查一下我的余额",
        "请 check 一下 balance 谢谢！",
        "ＦＵＬＬ　ｗｉｄｔｈ",
        "テスト カタカナ ｶﾀｶﾅ",
        "a\u00adb\u200bc",
        "ffi" * 300,
    ),
    *("x" * 20_000, "余额 " * 10_000, "🙂" * 20_000, "\ud800" * 20_000, "e\u0301" * 10_000, "ﷺ" * 20_000, "İ" * 5_000),
    *(
        "\ud83d" * 1024 + "y" * 100 + "\udc00" * 1024,
        "🙂" * 1023 + "ab" + "🙂" * 1024,
        "a" * 2048,
        "a" * 2049,
        "ΑΣ" * 1024,
    ),
]
SCRIPTS = "aB é,.!' 余额查询テスト한글𝒜\nΣσςİﬁ\u0301\u0323ǅ🙂\u200d\ufe0fשָ"


def drawn(count: int, draw: random.Random) -> Iterator[str]:
    """Random texts: of many scripts, and of code points anywhere."""
    while count:
        length = draw.choice((3, 20, 60, 3000))
        anywhere = [draw.randrange(0x110000) for _ in range(min(length, 60))]
        known = [code for code in anywhere if unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"]
        text = draw.choice(("".join(draw.choices(SCRIPTS, k=length)), "".join(map(chr, known))))
        if text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") == text:  # no halves that join
            count -= 1
            yield text


def thousand() -> list[str]:
    """A thousand texts: the odd ones, real lines, lines in pieces and mixed, random ones."""
    draw = random.Random(7)
    lines = [line for page in corpus().values() for line in page]
    real = draw.sample(lines, 350)
    mixed = [
        line[: draw.randrange(1, 40)] + draw.choice(lines)[draw.randrange(20) :] for line in draw.sample(lines, 250)
    ]
    found = [*ODD, *real, *mixed]
    return found + list(drawn(1000 - len(found), draw))


TEXTS = thousand()
ASK = """
  const { load } = await import(given[0]);
  const expert = await load(given[1]);
  const said = given[2].map((codes) => expert.ask(codes.map((code) => String.fromCodePoint(code)).join("")));
  return { said, checks: expert.checks, id: expert.id, labels: expert.labels.length };
"""


def test_a_thousand_texts_in_chromium(browser: Any, cdn: str, bundle: Bundle) -> None:
    assert len(TEXTS) == 1000
    browser.get(cdn)
    told = evaluate(browser, ASK, f"{cdn}/puhui/puhui.js", f"{cdn}/files/{bundle.place.name}", codes(TEXTS))
    assert (told["id"], told["checks"]) == (bundle.id, {"digests": True, "signature": True})
    expected = [bundle.model.predict_one(text) for text in TEXTS]
    assert [said["label"] for said in told["said"]] == [label for label, _ in expected]
    off = np.abs(
        [said["confidence"] - confidence for said, (_, confidence) in zip(told["said"], expected, strict=True)]
    )
    assert off.max() < 1e-4
    threshold = open_bundle(bundle.place)[0].calibration["threshold"]
    assert threshold is not None
    assert [said["sure"] for said in told["said"]] == [said["confidence"] >= threshold for said in told["said"]]
    assert len({label for label, _ in expected}) > 10  # else equal labels would say little


PROBE = """
  const { load } = await import(given[0]);
  return (await load(given[1], { probe: true })).probed;
"""


def test_probes_are_answered_as_in_python(browser: Any, bundle: Bundle, tmp_path: Path) -> None:
    model = bundle.model
    made = msgspec.json.decode(probes_of(model), type=list[Probe])
    other = next(label for label in model.labels if label != made[0].label)
    files = {
        "right": probes_of(model),
        "wrong": msgspec.json.encode([msgspec.structs.replace(made[0], label=other, confidence=1.0), *made[1:]]),
    }
    card = open_bundle(bundle.place)[0]
    card = msgspec.structs.replace(card, files={})
    places = {
        name: seal(tmp_path, card, model, bundle.key, more={PROBES_FILE: told})[1] for name, told in files.items()
    }
    with serving(elsewhere(tmp_path)) as url:
        browser.get(url)
        where = [f"{url}/files/{places[name].name}" for name in files]
        probed = evaluate(browser, PROBE, f"{url}/puhui/puhui.js", where[0])
        assert probed["texts"] == probed["same"] == len(made)
        assert probed["furthest"] < 1e-4
        kind, message, file = evaluate(browser, PROBE, f"{url}/puhui/puhui.js", where[1])
        assert (kind, file) == ("BundleError", PROBES_FILE)
        assert "answered otherwise on this device" in message


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_same_in_node(cdn: str, bundle: Bundle) -> None:
    script = f"""
      import {{ load }} from {json.dumps((FOLDER / "puhui.js").as_uri())};
      const expert = await load(process.argv[1]);
      const texts = JSON.parse(process.argv[2]);
      console.log(JSON.stringify(texts.map((text) => expert.ask(text))));
    """
    texts = [text for text in TEXTS if len(text) < 1000][:300]
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", script, f"{cdn}/files/{bundle.place.name}", json.dumps(texts)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    for text, said in zip(texts, json.loads(ran.stdout), strict=True):
        label, confidence = bundle.model.predict_one(text)
        assert said["label"] == label
        assert said["confidence"] == pytest.approx(confidence, abs=1e-4)


@pytest.mark.parametrize("most", [127, 7])
def test_towers_precisions_and_reliability(browser: Any, bundle: Bundle, tmp_path: Path, most: int) -> None:
    """A tower of each kind, an odd number of labels, 8 bits and 4."""
    draw = np.random.default_rng(most)
    labels, rows, options = tuple("ABCDEFG"), 800, FeatureOptions(buckets=1 << 10)

    def tower(reads: Reads) -> Tower:
        slots = np.zeros(options.buckets, np.uint16)
        slots[np.sort(draw.permutation(options.buckets)[: rows - 1])] = np.arange(1, rows)
        table = draw.integers(-most, most, (rows, len(labels)), np.int8, endpoint=True)
        gain, weight = (draw.random(rows, np.float32) for _ in range(2))
        table[0] = gain[0] = weight[0] = 0
        bias = draw.normal(size=len(labels)).astype(np.float32)
        return Tower(slots, table, gain * np.float32(9 / most), weight, bias, reads)

    reliability = Reliability(0.7, draw.normal(size=len(labels)).astype(np.float32))
    model = StaticModel(labels, options, [tower("all"), tower("words"), tower("order")], reliability)
    card = sample.card(task_of_group("context:0", "m", ""), labels=labels)
    _, place = seal(tmp_path, card, model, bundle.key)
    texts = [text for text in TEXTS if len(text) < 3000][:400]
    with serving(elsewhere(tmp_path)) as url:
        browser.get(url)
        told = evaluate(browser, ASK, f"{url}/puhui/puhui.js", f"{url}/files/{place.name}", codes(texts))
    expected = [model.predict_one(text) for text in texts]
    assert [said["label"] for said in told["said"]] == [label for label, _ in expected]
    assert [said["confidence"] for said in told["said"]] == pytest.approx([sure for _, sure in expected], abs=1e-4)


FEATURES = """
  const { features } = await import(given[0]);
  return given[1].map(([codes, options]) => {
    const { buckets, words } = features(codes.map((code) => String.fromCodePoint(code)).join(""), options);
    return [words, buckets.length, buckets.reduce((sum, bucket, i) => (sum + Math.imul(bucket, i + 1)) >>> 0, 0)];
  });
"""


def digest(text: str, options: FeatureOptions) -> list[int]:
    """Words, features, and a sum over the buckets that their order changes."""
    buckets, words = features(text, options)
    places = np.arange(1, len(buckets) + 1, dtype=np.uint32)
    return [words, len(buckets), int((buckets * places).sum(dtype=np.uint32))]


def given_options(options: FeatureOptions) -> dict[str, int]:
    return {name: getattr(options, name) for name in options.__struct_fields__}


def test_features_are_pythons_bit_for_bit(browser: Any, cdn: str) -> None:
    browser.get(cdn)
    draw = random.Random(3)
    cases = [
        (text, FeatureOptions(buckets=1 << draw.randrange(1, 32), char_min=low, char_max=low + draw.randrange(4),
                              words=draw.randrange(1, 4), max_chars=draw.choice((2, 3, 7, 64, 2048))))
        for text in TEXTS
        if len(text) < 4000
        for low in (1, 3)
    ]  # fmt: skip
    asked = [(list(map(ord, text)), given_options(options)) for text, options in cases]
    assert evaluate(browser, FEATURES, f"{cdn}/puhui/puhui.js", asked) == [digest(*case) for case in cases]


EVERY = """
  const { features } = await import(given[0]);
  const [, options, skipped, firsts, size] = given, found = [];
  for (const first of firsts) {
    const codes = Array.from({ length: size }, (_, i) => first + i).filter((code) => !skipped.includes(code));
    const alone = codes.map((code) => String.fromCodePoint(code));
    for (const text of [alone.join(""), alone.map((character) => `a${character}\u0301ΑΣ`).join("")]) {
      const { buckets } = features(text, options);
      found.push(buckets.reduce((sum, bucket, i) => (sum + Math.imul(bucket, i + 1)) >>> 0, 0));
    }
  }
  return found;
"""


def test_every_code_point_there_is(browser: Any, cdn: str) -> None:
    """Among its neighbours, and between letters; but for planes that are empty or private.

    U+0295 and U+1171E lost their case after Unicode 14, which only a sigma at their side can tell.
    """
    if unicodedata.unidata_version != "14.0.0":
        pytest.skip("this Python folds characters that are newer than Unicode 14")
    browser.get(cdn)
    size, skipped = 1024, [0x295, 0x2E4, 0x1171E]  # of this size, as halves of a pair do not meet then
    options = FeatureOptions(buckets=1 << 31, char_min=2, char_max=2, words=1, max_chars=1 << 14)
    firsts = [*range(0, 0x32000, size), *range(0xE0000, 0xE1000, size)]
    told = evaluate(browser, EVERY, f"{cdn}/puhui/puhui.js", given_options(options), skipped, firsts, size)
    expected = []
    for first in firsts:
        alone = [chr(code) for code in range(first, first + size) if code not in skipped]
        for text in ("".join(alone), "".join(f"a{character}\u0301ΑΣ" for character in alone)):
            expected.append(digest(text, options)[2])
    assert [hex(firsts[i // 2]) for i, found in enumerate(told) if found != expected[i]] == []


def test_its_table_of_unknown_characters_is_pythons() -> None:
    if unicodedata.unidata_version != "14.0.0":
        pytest.skip("this Python knows another Unicode")
    steps = (FOLDER / "puhui.js").read_text().partition("const UNKNOWN = `")[2].partition("`")[0].split()
    inert = np.zeros(0x110000, bool)
    at = 0
    for gap, length in zip(steps[::2], steps[1::2], strict=True):
        at += int(gap, 16)
        inert[at : at + int(length, 16)] = True
        at += int(length, 16)
    unknown = np.array([unicodedata.category(chr(code)) == "Cn" for code in range(0x110000)])
    assert inert[unknown].all()
    for code in np.flatnonzero(inert & ~unknown).tolist():
        alone = chr(code)
        assert unicodedata.normalize("NFKC", alone).lower() == alone
        assert unicodedata.combining(alone) == 0


# --- bundles that are not what they should be -------------------------------------------------------------------

LOAD = "const { load } = await import(given[0]); await load(given[1], given[2]); return null;"


def refused(browser: Any, folder: Path, options: dict[str, object] | None = None) -> tuple[str, str, str | None]:
    """The name, the message and the file of the error with which the bundle in `folder` is refused."""
    with serving(elsewhere(folder.parent)) as url:
        browser.get(url)
        told = evaluate(browser, LOAD, f"{url}/puhui/puhui.js", f"{url}/files/{folder.name}/", options or {})
    assert told is not None, "the bundle was taken"
    return tuple(told)


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.place, tmp_path / "copy"))


def test_a_signature_is_hexadecimal_to_the_last_digit(browser: Any, copy: Path, bundle: Bundle, tmp_path: Path) -> None:
    """A lenient parser takes "!0" for the byte 0: a signature that was changed there would still hold."""
    for number in range(200):  # of every five keys, one signs with a byte that is 0
        key = load_or_create_key(tmp_path / f"{number}.key")
        signature = key.sign(bundle.id.encode())
        zeros = [at for at in range(0, 128, 2) if signature[at : at + 2] == "00"]
        if zeros:
            break
    for said in (signature, f"{signature[: zeros[0]]}!{signature[zeros[0] + 1 :]}"):
        (copy / "signature.json").write_text(json.dumps({"key": key.public, "signature": said}))
        with serving(elsewhere(copy.parent)) as url:
            browser.get(url)
            told = evaluate(browser, LOAD, f"{url}/puhui/puhui.js", f"{url}/files/{copy.name}/", {})
        assert (told is None) == (said == signature)


@pytest.mark.parametrize("name", ["expert.json", "static.json", "weights.safetensors", "signature.json"])
@pytest.mark.parametrize("change", [lambda old: old[:-9] + b"!" + old[-8:], lambda old: old[: len(old) // 2], None])
def test_the_damaged_file_is_named(
    browser: Any, copy: Path, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    if change is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(change((copy / name).read_bytes()))
    with pytest.raises(BundleError):
        open_bundle(copy)
    kind, message, file = refused(browser, copy)
    assert kind == "BundleError"
    assert name in message
    assert name == file or (name, file) == ("expert.json", "signature.json")


def test_another_expert_and_another_signer_are_refused(browser: Any, bundle: Bundle, copy: Path) -> None:
    assert refused(browser, copy, {"expert": "0" * 64})[2] == "expert.json"
    assert "not trusted" in refused(browser, copy, {"trusted": ["0" * 64]})[1]
    good = {"expert": bundle.id, "trusted": [bundle.key.public]}
    with pytest.raises(AssertionError, match="was taken"):
        refused(browser, copy, good)


@pytest.mark.parametrize("wrong", ["name", "shape", "type", "row", "nan", "format", "family"])
def test_what_is_signed_and_makes_no_sense(browser: Any, bundle: Bundle, tmp_path: Path, wrong: str) -> None:
    """A signature says who, not what: shapes, types and numbers are checked all the same."""

    class Wrong:
        labels, size_bytes = bundle.model.labels, 1

        def save(self, folder: Path) -> None:
            bundle.model.save(folder)
            arrays = load_file(folder / "weights.safetensors")
            if wrong == "name":
                arrays["0.unheard"] = arrays["0.bias"]
            elif wrong == "shape":
                arrays["0.gain"] = arrays["0.gain"][:-1]
            elif wrong == "type":
                arrays["0.weight"] = arrays["0.weight"].astype(np.float64)
            elif wrong == "row":
                arrays["0.owners"][0] ^= 1
            elif wrong == "nan":
                arrays["0.bias"][0] = np.nan
            elif wrong == "format":
                path = folder / "static.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
            save_file(arrays, folder / "weights.safetensors")

    family = "encoder" if wrong == "family" else "static"
    card = sample.card(task_of_group("context:0", "m", ""), labels=bundle.model.labels, family=family)
    _, place = seal(tmp_path, card, Wrong(), bundle.key)  # type: ignore[arg-type]
    kind, message, _ = refused(browser, place)
    assert kind == "BundleError"
    told = {"name": "0.unheard", "format": "99", "family": '"encoder"'}
    assert told.get(wrong, "is damaged") in message


# --- where it runs ----------------------------------------------------------------------------------------------


def test_in_a_worker_from_another_origin(browser: Any, cdn: str, bundle: Bundle) -> None:
    body = """
      const worker = new Worker("/worker.js", { type: "module" });
      const said = new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = ({ message }) => reject(new Error(message));
      });
      worker.postMessage({ script: given[0], url: given[1], text: given[2] });
      return await said;
    """
    with serving(elsewhere(bundle.place)) as here:
        browser.get(here)
        told = evaluate(browser, body, f"{cdn}/puhui/puhui.js", f"{cdn}/files/{bundle.place.name}", "node and ledger")
    assert told["where"] == "DedicatedWorkerGlobalScope"
    assert told["label"] == bundle.model.predict_one("node and ledger")[0]


def test_kept_it_loads_without_a_network(browser: Any, bundle: Bundle) -> None:
    keep = """
      globalThis.module = await import(given[0]);
      globalThis.url = given[1];
      return (await module.load(url, { cache: true })).ask("node").label;
    """
    reload = "return (await module.load(url, given[0])).ask('node').label"
    with serving(elsewhere(bundle.place.parent)) as url:
        browser.get(url)
        label = evaluate(browser, keep, f"{url}/puhui/puhui.js", f"{url}/files/{bundle.place.name}")
    assert label == bundle.model.predict_one("node")[0]
    assert evaluate(browser, reload, {"cache": True}) == label
    assert evaluate(browser, reload, {"cache": True, "expert": bundle.id}) == label
    assert evaluate(browser, reload, {})[0] == "BundleError"


def test_what_is_taken_back_stays_away(browser: Any, copy: Path) -> None:
    """A server that answers 404 has taken the expert back: what was kept of it is not used."""
    with serving(elsewhere(copy.parent)) as url:
        browser.get(url)
        where = (f"{url}/puhui/puhui.js", f"{url}/files/{copy.name}", {"cache": True})
        assert evaluate(browser, LOAD, *where) is None
        shutil.rmtree(copy)
        assert "status 404" in evaluate(browser, LOAD, *where)[1]


def test_what_was_damaged_on_its_way_is_not_kept(browser: Any, bundle: Bundle, copy: Path) -> None:
    (copy / "weights.safetensors").write_bytes(b"rubbish")
    with serving(elsewhere(copy.parent)) as url:
        browser.get(url)
        where = (f"{url}/puhui/puhui.js", f"{url}/files/{copy.name}", {"cache": True})
        assert evaluate(browser, LOAD, *where)[2] == "weights.safetensors"
        shutil.copy(bundle.place / "weights.safetensors", copy)
        assert evaluate(browser, LOAD, *where) is None


def test_where_nothing_can_be_checked_it_says_so(browser: Any, bundle: Bundle, cdn: str) -> None:
    """A page that came over plain HTTP from another machine has no WebCrypto; neither has one without Ed25519."""
    load = """
      Object.defineProperty(globalThis, "crypto", { value: given[3], configurable: true });
      const { load } = await import(given[0]);
      const { checks } = await load(given[1], given[2]);
      return checks;
    """
    no_ed25519 = load.replace(
        "given[3]",
        """{ subtle: {
          digest: crypto.subtle.digest.bind(crypto.subtle),
          importKey: async () => { throw new DOMException("no", "NotSupportedError"); },
        } }""",
    )
    where = (f"{cdn}/puhui/puhui.js", f"{cdn}/files/{bundle.place.name}")
    browser.get(cdn)
    assert "WebCrypto" in evaluate(browser, load, *where, {}, {})[1]
    assert evaluate(browser, load, *where, {"unchecked": True}, {}) == {"digests": False, "signature": False}
    browser.get(cdn)
    assert evaluate(browser, no_ed25519, *where, {}) == {"digests": True, "signature": False}
    browser.get(cdn)
    assert "Ed25519" in evaluate(browser, no_ed25519, *where, {"trusted": [bundle.key.public]})[1]
