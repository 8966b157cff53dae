"""Every kind of teacher, each on a real model or server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import teachers_made as made

from puhui.core.errors import LearningError, SettingsError, UpstreamRefused
from puhui.teachers.asking import ask_all
from puhui.teachers.teacher import Teacher, TeacherOptions, Told, file_identity, likely, softmax
from puhui.teachers.teacher_endpoint import EndpointTeacher
from puhui.teachers.teachers import open_teacher
from serving import BigModel

LABELS = ["money", "travel", "food"]
TEXTS = ["send cash to my bank", "book the flight home", "a pizza recipe", "", "中文 🍕", "pizza " * 200]


def ask(teacher: Teacher, texts: Sequence[str]) -> list[Told]:
    async def once() -> list[Told]:
        try:
            return await teacher.ask_many(texts)
        finally:
            await teacher.close()

    return asyncio.run(once())


def shout(text: str) -> str:
    return text.upper()


def weigh(text: str) -> tuple[str, dict[str, float]]:
    return "long", {"long": float(len(text)), "short": 1.0}


async def whisper(text: str) -> str:
    await asyncio.sleep(0)
    return text.lower() + " "


# --- what every kind shares


def test_options_make_messages() -> None:
    assert TeacherOptions(prompt="Sort.").messages("x") == [
        {"role": "system", "content": "Sort."},
        {"role": "user", "content": "x"},
    ]
    assert TeacherOptions().messages("x") == [{"role": "user", "content": "x"}]


def test_options_are_checked() -> None:
    with pytest.raises(SettingsError, match="name one twice: a"):
        TeacherOptions(labels=("a", "a"))
    with pytest.raises(SettingsError, match="parallel is 0"):
        TeacherOptions(parallel=0)


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    before = file_identity(tmp_path)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("x")
    assert file_identity(tmp_path) == before
    (tmp_path / "a.json").write_text("2")
    assert file_identity(tmp_path) != before


def test_probabilities_by_name() -> None:
    shares = softmax(np.array([[0.0, 0.0, -50.0], [800.0, 0.0, 0.0]]))
    assert likely(shares[0], LABELS) == {"money": 0.5, "travel": 0.5}
    assert likely(shares[1], LABELS) == {"money": 1.0}
    even = likely(np.full(20_000, 1 / 20_000, np.float32), [str(n) for n in range(20_000)])
    assert math.isclose(sum(even.values()), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("reference", ["", "no such/model/at all", "/nowhere/x y", "ftp://x"])
def test_a_reference_that_names_nothing(reference: str) -> None:
    with pytest.raises(SettingsError, match="openai:MODEL@URL"):
        open_teacher(reference)


# --- Python callables


def test_a_function() -> None:
    teacher = open_teacher(shout)
    assert [told.answer for told in ask(teacher, ["a", " b "])] == ["A", "B"]
    assert teacher.digest == open_teacher(shout).digest != open_teacher(weigh).digest
    assert teacher.digest != open_teacher(shout, TeacherOptions(prompt="other")).digest


def test_probabilities_and_coroutines() -> None:
    (told,) = ask(open_teacher(weigh), ["abc"])
    assert told.probabilities == {"long": 0.75, "short": 0.25}
    assert ask(open_teacher(whisper), ["ABC"])[0].answer == "abc"


def test_what_holds_state_needs_a_name() -> None:
    said = iter("ab")
    with pytest.raises(SettingsError, match="name it"):
        open_teacher(lambda _: next(said))
    teacher = open_teacher(lambda _: next(said), TeacherOptions(name="mine 1"))
    assert ask(teacher, ["x", "y"])[1].answer == "b"
    assert teacher.digest == open_teacher(dict, TeacherOptions(name="mine 1")).digest
    assert teacher.digest != open_teacher(dict, TeacherOptions(name="mine 2")).digest


def test_one_that_raises_leaves_that_text_out(tmp_path: Path) -> None:
    teacher = open_teacher(lambda text: str(1 // len(text)), TeacherOptions(name="divides"))
    asked = ask_all(teacher, ["a", "", "b"], folder=tmp_path)
    assert [told and told.answer for told in asked.told] == ["1", None, "1"]
    assert asked.refused == {"divides raised ZeroDivisionError: integer division or modulo by zero": 1}


def test_a_file_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def big(text:\n")
    with pytest.raises(SettingsError, match=r"broken\.py does not run \(SyntaxError"):
        open_teacher(f"python:{tmp_path / 'broken.py'}:big")


@pytest.mark.parametrize("said", [None, 3, ("a", "b"), ("a", {"a": -1.0}), ("a", {"a": 0.0}), ("a", {"a": math.nan})])
def test_what_a_callable_may_not_say(said: object) -> None:
    teacher = open_teacher(lambda _: said, TeacherOptions(name="odd"))
    with pytest.raises(LearningError, match="odd"):
        ask(teacher, ["x"])


def test_a_function_by_reference(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def ask(text):\n    return text[:1]\nnumber = 3\n")
    teacher = open_teacher(f"python:{file}:ask")
    assert ask(teacher, ["hello"])[0].answer == "h"
    file.write_text("def ask(text):\n    return text[:2]\n")
    assert open_teacher(f"python:{file}:ask").digest != teacher.digest
    assert ask(open_teacher("python:string:capwords"), ["ab cd"])[0].answer == "Ab Cd"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("python:nothing", "must be python:MODULE:FUNCTION"),
        ("python:no_such_module_here:f", "cannot be imported"),
        ("python:nowhere.py:f", "no Python file"),
        ("python:string:digits", "no callable 'digits'; it has"),
    ],
)
def test_a_reference_to_no_function(reference: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        open_teacher(reference)


# --- endpoints


def test_an_endpoint(big: BigModel) -> None:
    big.logprobs = True
    options = TeacherOptions(prompt="Shout.", settings={"max_tokens": 9}, prices=(2.0, 10.0))
    teacher = open_teacher(f"openai:gpt@{big.url}", options, key="secret")
    (told,) = ask(teacher, ["hello"])
    assert told.answer == "HELLO"
    assert told.alternatives == (("HELL", -0.1), ("other", -2.5))
    assert (told.tokens_in, told.tokens_out) == (11, 3)
    assert told.cost == pytest.approx((11 * 2.0 + 3 * 10.0) / 1e6)
    body = big.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt", 0, 9)
    assert [each["content"] for each in body["messages"]] == ["Shout.", "hello"]
    assert big.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(teacher) + teacher.digest
    assert teacher.deterministic is None


def test_an_endpoint_may_be_asked_in_another_loop(big: BigModel) -> None:
    teacher = open_teacher(f"openai:gpt@{big.url}")
    assert [ask(teacher, [text])[0].answer for text in ("a", "b")] == ["A", "B"]
    assert ask(teacher, ["c"])[0].cost is None


def test_prices_come_from_the_table(big: BigModel) -> None:
    pytest.importorskip("genai_prices", reason="the serve extra is not installed")
    (told,) = ask(open_teacher(f"openai:gpt-4o-mini@{big.url}"), ["a"])
    assert told.cost is not None
    assert 0.0 < told.cost < 1e-4


@pytest.mark.parametrize("logprobs", [None, True])
def test_a_model_that_refuses_a_temperature(big: BigModel, logprobs: bool | None) -> None:
    big.unsupported, big.logprobs = "temperature", logprobs
    teacher = open_teacher(f"openai:o9@{big.url}")
    told = ask(teacher, ["a", "b"])
    assert [each.answer for each in told] == ["A", "B"]
    assert ["temperature" in body for body in big.bodies[-2:]] == [False, False]
    assert bool(told[1].alternatives) == bool(logprobs)
    big.unsupported = "messages"
    with pytest.raises(UpstreamRefused, match="status 400"):
        ask(teacher, ["c"])


def test_an_endpoint_is_told_its_labels(big: BigModel) -> None:
    reference = f"openai:gpt@{big.url}"
    named = TeacherOptions(labels=("yes", "no"))
    described = TeacherOptions(labels={"yes": "it is so", "no": "it is not"})
    prompted = TeacherOptions(labels=("yes", "no"), prompt="Is it so?")
    for options, told in (
        (named, "Answer with one of these and nothing else: yes, no"),
        (described, "Answer with one of these and nothing else: yes, no\nyes: it is so\nno: it is not"),
        (prompted, "Is it so?"),
    ):
        teacher = open_teacher(reference, options)
        ask(teacher, ["a"])
        assert big.bodies[-1]["messages"] == [{"role": "system", "content": told}, {"role": "user", "content": "a"}]
        assert teacher.digest == open_teacher(reference, msgspec.structs.replace(options, prompt=told)).digest
    assert open_teacher(reference, named).digest != open_teacher(reference, prompted).digest
    assert isinstance(teacher, EndpointTeacher)
    ask(EndpointTeacher(reference, named, None).writing("Write {text}"), ["a"])
    assert [each["content"] for each in big.bodies[-1]["messages"]] == ["Write a"]


def test_an_endpoint_must_name_its_model() -> None:
    with pytest.raises(SettingsError, match="names no model; write openai:MODEL@http"):
        open_teacher("http://127.0.0.1:1/v1")


def test_the_digest_is_of_what_is_asked() -> None:
    digests = {
        open_teacher(reference, options).digest
        for reference in ("openai:a@http://x/v1", "openai:b@http://x/v1", "openai:a@http://y/v1")
        for options in (None, TeacherOptions(prompt="p"), TeacherOptions(settings={"seed": 1}))
    }
    assert len(digests) == 9
    assert open_teacher("openai:a@http://x/v1/", key="k").digest == open_teacher("openai:a@http://x/v1").digest


# --- Hugging Face


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the workshop extra is not installed")
    folder = tmp_path_factory.mktemp("hub")
    made.encoder(folder / "head", LABELS)
    made.encoder(folder / "several", LABELS, problem_type="multi_label_classification")
    made.encoder(folder / "number", ["x"])
    made.encoder(folder / "bare", None)
    made.causal(folder / "causal")
    made.causal(folder / "chat", template=made.CHAT)
    return folder


def test_an_encoder_with_a_head(hub: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    teacher = open_teacher(str(hub / "head"))
    told = ask(teacher, TEXTS)
    assert teacher.labels == tuple(LABELS)
    model = AutoModelForSequenceClassification.from_pretrained(hub / "head").eval()
    tokenizer = AutoTokenizer.from_pretrained(hub / "head")
    for text, each in zip(TEXTS, told, strict=True):
        with torch.inference_mode():  # alone: padding and company must change nothing
            logits = model(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).logits[0]
        shares = logits.softmax(dim=0).tolist()
        assert each.answer == LABELS[int(logits.argmax())]
        assert each.probabilities is not None
        assert [each.probabilities.get(label, 0.0) for label in LABELS] == pytest.approx(shares, abs=2e-4)
        assert each.vector is not None
        assert (each.vector.shape, each.vector.dtype) == ((16,), np.float32)


def test_a_head_that_is_left_out_is_not_reported(hub: Path) -> None:
    from logging.handlers import BufferingHandler

    from transformers.utils import logging

    from puhui.compress.encoder_student import Student
    from puhui.models.encoder import SentenceEncoder

    heard, before = BufferingHandler(100), logging.get_verbosity()
    logging.set_verbosity_warning()
    logging.add_handler(heard)
    try:
        SentenceEncoder(hub / "head")
        Student.open(hub / "head", 64)
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.remove_handler(heard)
        logging.set_verbosity(before)
    assert not [record.getMessage() for record in heard.buffer]


def test_labels_of_a_head(hub: Path) -> None:
    assert open_teacher(str(hub / "head"), TeacherOptions(labels=("food", "money", "travel"))).labels == tuple(LABELS)
    with pytest.raises(SettingsError, match="3 labels money, travel, food, and 2 others were given"):
        open_teacher(str(hub / "head"), TeacherOptions(labels=("a", "b")))
    with pytest.raises(SettingsError, match="gives a number"):
        open_teacher(str(hub / "number"))


def test_several_labels_at_once(hub: Path) -> None:
    for told in ask(open_teacher(str(hub / "several")), TEXTS):
        assert set(msgspec.json.decode(told.answer)) <= set(LABELS)
        assert told.probabilities is None


def test_an_encoder_without_a_head(hub: Path) -> None:
    labels = {"money": "send cash to my bank", "travel": "book the flight home"}
    teacher = open_teacher(str(hub / "bare"), TeacherOptions(labels=labels))
    told = ask(teacher, TEXTS)
    assert [each.answer for each in told[:2]] == ["money", "travel"]  # the descriptions themselves
    for each in told:
        assert each.vector is not None
        assert np.linalg.norm(each.vector) == pytest.approx(1.0, abs=1e-5)
        assert sum((each.probabilities or {}).values()) == pytest.approx(1.0)
    with pytest.raises(SettingsError, match="without a head and 0 labels"):
        open_teacher(str(hub / "bare"))


def test_the_first_token_where_the_folder_says_so(hub: Path) -> None:
    options = TeacherOptions(labels=("money", "travel"))
    by_mean = ask(open_teacher(str(hub / "bare"), options), TEXTS[:1])[0].vector
    place = hub / "bare" / "1_Pooling" / "config.json"
    place.parent.mkdir()
    place.write_text('{"pooling_mode_cls_token": true}')
    by_first = ask(open_teacher(str(hub / "bare"), options), TEXTS[:1])[0].vector
    assert by_mean is not None
    assert by_first is not None
    assert not np.allclose(by_mean, by_first)


def test_a_causal_model_says_what_is_likeliest(hub: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    teacher = open_teacher(str(hub / "causal"), TeacherOptions(settings={"max_tokens": 1}))
    (told,) = ask(teacher, ["book the flight"])
    tokenizer = AutoTokenizer.from_pretrained(hub / "causal")
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(hub / "causal").eval()
        logits = model(tokenizer("book the flight", return_tensors="pt")["input_ids"]).logits[0, -1]
    assert told.answer == tokenizer.decode([int(logits.argmax())], skip_special_tokens=True).strip()
    assert told.alternatives[0][1] == pytest.approx(float(logits.log_softmax(dim=0).max()), abs=1e-4)
    assert told.tokens_out == 1
    assert told.vector is not None


@pytest.mark.parametrize("folder", ["causal", "chat"])
def test_a_causal_model_scores_labels(hub: Path, folder: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    labels = ("money", "send cash", "send")
    teacher = open_teacher(str(hub / folder), TeacherOptions(labels=labels, prompt="book {text} "))
    (told,) = ask(teacher, ["the flight"])
    model = AutoModelForCausalLM.from_pretrained(hub / folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(hub / folder)
    asked = tokenizer("book the flight ")["input_ids"]
    if folder == "chat":
        asked = tokenizer("user: book the flight \nsays:", add_special_tokens=False)["input_ids"]
    scores = []
    for label in labels:  # without a cache, one by one
        said = [*tokenizer(label, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(torch.tensor([asked + said])).logits[0].log_softmax(dim=-1)
        scores.append(sum(float(logits[len(asked) - 1 + at, token]) for at, token in enumerate(said)))
    expected = softmax(np.array([scores]))[0]
    assert told.probabilities is not None
    assert [told.probabilities.get(label, 0.0) for label in labels] == pytest.approx(expected.tolist(), abs=3e-4)
    assert told.answer == labels[int(expected.argmax())]


def test_what_a_causal_model_cannot_do(hub: Path) -> None:
    with pytest.raises(UpstreamRefused, match="reads 64 tokens"):
        ask(open_teacher(str(hub / "causal"), TeacherOptions(settings={"max_tokens": 4})), ["a " * 80])
    with pytest.raises(SettingsError, match="max_tokens alone, not a temperature above 0"):
        open_teacher(str(hub / "causal"), TeacherOptions(settings={"temperature": 0.7}))
    with pytest.raises(SettingsError, match="not top_p"):
        open_teacher(str(hub / "causal"), TeacherOptions(settings={"top_p": 0.7}))


def test_a_folder_that_holds_no_model(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a folder needs config\.json"):
        open_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    with pytest.raises(SettingsError, match="is a T5ForConditionalGeneration; what can be asked"):
        open_teacher(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(SettingsError, match="holds no Hugging Face model that can be read"):
        open_teacher(str(tmp_path), TeacherOptions(labels=("a", "b")))
    made.encoder(tmp_path, LABELS)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish" * 9)
    with pytest.raises(SettingsError, match="holds no Hugging Face model that can be read"):
        open_teacher(str(tmp_path))


def test_a_name_that_the_cache_does_not_know(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no model of that name is in the local cache"):
        open_teacher("nobody/has-this-model")


# --- ONNX


def onnx_folder(tmp_path: Path, **axes: Any) -> tuple[Path, Any, Any]:
    pytest.importorskip("onnxruntime", reason="the encoder extra is not installed")
    pytest.importorskip("transformers", reason="the workshop extra is not installed")
    made.tokenizer(tmp_path)
    vectors, weights = made.onnx_classifier(tmp_path / "model.onnx", **axes)
    return tmp_path / "model.onnx", vectors, weights


@pytest.mark.parametrize("axes", [{}, {"rows": 1}, {"rows": 4, "tokens": 9}])
def test_an_onnx_classifier(tmp_path: Path, axes: dict[str, int]) -> None:
    path, vectors, weights = onnx_folder(tmp_path, **axes)
    (tmp_path / "labels.json").write_text(msgspec.json.encode(LABELS).decode())
    teacher = open_teacher(str(path))
    tokenizer = made.tokenizer(tmp_path)
    told = [each for at in range(0, 6, teacher.batch) for each in ask(teacher, TEXTS[at : at + teacher.batch])]
    for text, each in zip(TEXTS, told, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=axes.get("tokens", 64))["input_ids"]
        shares = softmax((vectors[tokens].mean(axis=0) @ weights)[None])[0]
        assert each.answer == LABELS[int(shares.argmax())]
        assert [(each.probabilities or {}).get(label, 0.0) for label in LABELS] == pytest.approx(shares, abs=2e-4)


def test_labels_of_an_onnx_classifier(tmp_path: Path) -> None:
    path, _, _ = onnx_folder(tmp_path)
    with pytest.raises(SettingsError, match="tells 3 answers apart, and 0 have a name"):
        open_teacher(str(path))
    assert open_teacher(str(path), TeacherOptions(labels=("c", "b", "a"))).labels == ("c", "b", "a")
    (tmp_path / "config.json").write_text('{"id2label": {"0": "x", "1": "y", "2": "z"}}')
    assert open_teacher(str(path)).labels == ("x", "y", "z")


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        open_teacher(str(tmp_path / "no.onnx"))
    path, _, _ = onnx_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="is no tokenizer"):
        open_teacher(str(path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"no tokenizer\.json beside it"):
        open_teacher(str(path))
    path.write_bytes(b"rubbish")
    with pytest.raises(SettingsError, match="cannot be run by ONNX Runtime"):
        open_teacher(str(path))


# --- GGUF


def gguf_file(tmp_path: Path) -> Path:
    pytest.importorskip("xllamacpp", reason="the gguf extra is not installed")
    pytest.importorskip("gguf", reason="the package that writes GGUF files is not installed")
    made.gguf_llama(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_a_gguf_model(tmp_path: Path) -> None:
    path = gguf_file(tmp_path)
    free = open_teacher(str(path), TeacherOptions(settings={"max_tokens": 3}))
    one, two = ask(free, ["hello", "hello"])
    assert one.answer == two.answer
    assert one.tokens_out == 3
    assert 0 < len(one.alternatives) <= 20
    assert all(logprob <= 0.0 for _, logprob in one.alternatives)
    labels = ("yes", 'say "no"', "中文")
    bound = open_teacher(str(path), TeacherOptions(labels=labels, prompt="Answer."))
    assert {told.answer for told in ask(bound, ["hello", "中文 🍕", ""])} <= set(labels)
    with pytest.raises(UpstreamRefused, match="exceeds the available context size"):
        ask(bound, ["x" * 9000])
    assert bound.digest != free.digest


def test_gguf_files_that_cannot_be_used(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the gguf extra is not installed")
    path = tmp_path / "x.gguf"
    with pytest.raises(SettingsError, match="there is no file"):
        open_teacher(str(path))
    path.write_bytes(b"rubbish")
    with pytest.raises(SettingsError, match="it is damaged or no GGUF"):
        open_teacher(str(path))
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(SettingsError, match=r"cannot be loaded by llama\.cpp"):
        ask(open_teacher(str(path)), ["x"])
