"""Personal matter is found, nothing else is, and no text is slow."""

from __future__ import annotations

import datetime
import itertools
import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.iso7064 import mod_11_2

from puhui.trust.redaction import find_matter, passes_luhn, passes_mod_11_2, passes_mod_97, redact

FULL_WIDTH = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)})
RESIDENT = "11010519491231002X"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Write to a.b+c@mail.example.co.uk, please.", "Write to ⟨mail⟩, please."),
        ("邮箱是zhang@qq.com请回复", "邮箱是⟨mail⟩请回复"),
        ("我的手机13800138000，或 138-0013-8000", "我的手机⟨phone⟩，或 ⟨phone⟩"),
        ("手机：１３８００１３８０００", "手机：⟨phone⟩"),
        ("+86 138 0013 8000 / 8613800138000", "⟨phone⟩ / ⟨phone⟩"),
        ("座机010-88886666转123，(0755) 8888 6666", "座机⟨phone⟩，⟨phone⟩"),
        ("Call +49 (0)30 1234567 or 0049 30 1234567", "Call ⟨phone⟩ or ⟨phone⟩"),
        ("(415) 555-2671, 415-555-2671, 1-415-555-2671", "⟨phone⟩, ⟨phone⟩, ⟨phone⟩"),
        ("06 12 34 56 78, 020 7946 0958", "⟨phone⟩, ⟨phone⟩"),
        ("card 4111 1111 1111 1111, 4111-1111-1111-1111", "card ⟨card⟩, ⟨card⟩"),
        ("Amex 378282246310005 or 3782 822463 10005", "Amex ⟨card⟩ or ⟨card⟩"),
        ("卡号：４１１１１１１１１１１１１１１１。", "卡号：⟨card⟩。"),
        (f"身份证{RESIDENT}，", "身份证⟨id⟩，"),
        (f"身份证{RESIDENT.lower()}", "身份证⟨id⟩"),
        ("SSN 123-45-6789", "SSN ⟨id⟩"),
        ("IBAN DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432.", "IBAN ⟨account⟩ and ⟨account⟩."),
        ("order AB12 DE89370400440532013000", "order AB12 ⟨account⟩"),
        ("key sk-proj-abcdefGHIJKL0123456789 there", "key ⟨key⟩ there"),
        ("pk-puhui-0123456789abcdefghij", "⟨key⟩"),
        (f"Bearer {TOKEN}", "Bearer ⟨key⟩"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB+/=\n-----END PRIVATE KEY-----", "⟨key⟩"),
        ("from 192.168.0.17 or 2001:db8::1", "from ⟨ip⟩ or ⟨ip⟩"),
    ],
)
def test_matter_is_replaced_by_its_kind(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "about my balance and cash or the transfer number 17",
        "请问我的余额是多少？我在2024年1月2日存了1,299.00元",
        "On 2024-01-02 at 12:30:45, or 01.02.2024 10:30, or 2024-11-22T03:45:10.123456Z",
        "version 1.2.3, section 1.2.3.4.5, 3.14159265358979, 1700000000000",
        "order 20240102123456, card 4111 1111 1111 1112, id 110105194912310021",
        "@someone said DE88370400440532013000 is no IBAN; sk-short neither",
        "12345678 or 123 456 789 10 people, 256.1.1.1",
        "",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) is text


@given(st.text(st.characters(exclude_characters="@＠:_-．.", exclude_categories=["Nd", "Cs"])))
def test_text_without_digits_and_signs_is_left_alone(text: str) -> None:
    assert redact(text) is text


@st.composite
def cards(draw: st.DrawFn) -> str:
    """A card's number of one of the networks, with its check digit."""
    front = draw(st.sampled_from(["4", "51", "2221", "34", "62", "81", "6011", "3528"]))
    rest = draw(st.integers(13, 19)) - 1 - len(front)
    front += draw(st.text("0123456789", min_size=rest, max_size=rest))
    return front + str(luhn.calc_check_digit(front))


def written(digits: str, how: str) -> str:
    if how == "full-width":
        return digits.translate(FULL_WIDTH)
    if how in "- " and len(digits) == 16:
        return how.join(re.findall("....", digits))
    return digits


@given(cards(), st.sampled_from([" ", "-", "plain", "full-width"]), st.sampled_from(["", "卡号", "pay with ", "x: "]))
def test_no_card_survives(digits: str, how: str, before: str) -> None:
    assert passes_luhn(digits)
    left = redact(f"{before}{written(digits, how)}，thanks")
    assert not re.search(r"\d", left)
    assert left.startswith(before)


@given(st.integers(10**12, 10**19 - 1).map(str))
def test_check_digits_are_those_of_the_standards(number: str) -> None:
    assert passes_luhn(number) == luhn.is_valid(number)


@given(st.dates(min_value=datetime.date(1900, 1, 1), max_value=datetime.date(2100, 12, 31)), st.integers(0, 999))
def test_resident_numbers_are_found(born: datetime.date, serial: int) -> None:
    front = f"110105{born:%Y%m%d}{serial:03d}"
    number = front + mod_11_2.calc_check_digit(front)
    assert passes_mod_11_2(number)
    wrong = front + ("1" if number[-1] == "0" else "0")
    assert not passes_mod_11_2(wrong)
    assert redact(f"号码{number}。") == "号码⟨id⟩。"


@given(st.text("0123456789", min_size=18, max_size=18))
def test_ibans_are_found(account: str) -> None:
    number = "DE" + iban.calc_check_digits("DE00" + account) + account
    assert iban.is_valid(number)
    assert passes_mod_97(number)
    assert redact(f"to {iban.format(number)}.") == "to ⟨account⟩."


MATTER = "a@b.co 13800138000 +4930123456 4111111111111111 123-45-6789 1.2.3.4 ::1 DE89370400440532013000 " + RESIDENT
PIECES = st.sampled_from([*MATTER.split(), "sk-" + "a" * 20, *"-. @+()x号１转/:0128", "00", "86"])


@given(st.lists(PIECES, max_size=14).map("".join))
def test_what_is_redacted_stays_as_it_is(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
    spans = find_matter(text)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))


REPEATED = "a|1|1 |a@|@a.|+1|sk-|eyJa|AA00 |DE89 |1.|0-|(0|::|a:|1-|00|４|- |4111111111111111 |4111 |010 |a@b.co |\n"


@pytest.mark.parametrize("piece", [*REPEATED.split("|"), "1.1.1.1.", "-----BEGIN PRIVATE KEY-----", "13800138000,"])
def test_time_is_linear(piece: str) -> None:
    """A text ten times as long takes about ten times as long: what is quadratic takes a hundred times."""

    def seconds(length: int) -> float:
        text = (piece * (length // len(piece) + 1))[:length]
        started = time.process_time()
        redact(text)
        return time.process_time() - started

    short, long = (min(seconds(length) for _ in range(3)) for length in (20_000, 200_000))
    assert long < 50 * short + 0.1


def test_a_megabyte_full_of_matter() -> None:
    draw = random.Random(1)
    words = ["about", "my", "card", "4111111111111111", "余额", "2024-01-02", "mail", "zhang@qq.com", "17", "1,299.00"]
    text = " ".join(draw.choice(words) for _ in range(180_000))[:1_000_000]
    left = redact(text)
    assert "zhang@" not in left
    assert "4111" not in left[:-20]  # the last word may be cut
