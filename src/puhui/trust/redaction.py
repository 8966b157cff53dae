"""Personal matter in texts: found by its form and its check digits, and replaced by what kind of matter it was.

    mail     addresses with an ASCII name and domain
    phone    international (+ or 00), Chinese mobile and landline, North American, and other national ones that
             are written in groups after a 0
    card     payment cards: 13 to 19 digits of a network's range that pass Luhn (ISO/IEC 7812-1)
    id       Chinese resident identity numbers of 18 characters (GB 11643: a day of birth, ISO 7064 MOD 11-2),
             US social security numbers
    account  IBANs (ISO 13616: ISO 7064 MOD 97-10)
    key      API keys of known forms, JSON web tokens, private keys in PEM
    ip       IPv4 and IPv6 addresses

Full-width letters and digits count as plain ones. What has no form of its own (names, street addresses) is not
found: this makes a store less dangerous, it does not make it anonymous.

Time is linear in the length: no pattern can begin twice in what another attempt has read, beyond some sixty characters.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

MOST_PASSES = 8
"""What stood beside replaced matter may now be recognised; a pass that changes nothing is the last."""
KINDS = ("mail", "phone", "card", "id", "account", "key", "ip")
MARKS = tuple(f"⟨{kind}⟩" for kind in KINDS)

_A_FIRST_LOOK = re.compile(r"[\d@＠]")
_SEVEN_DIGITS = re.compile(r"\d(?:[ .\-/()]{0,3}\d){6,}")
_A_DAY = re.compile(r"(?:19|20)\d\d([-/.])\d\d?\1\d\d?(?: \d\d)?")  # and the hour after it
_PLAIN_OF = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    | dict.fromkeys("‐‑‒–—−", "-")
    | dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000", " ")
)

_NOT_PLAIN = re.compile("[！-～‐-―−\u00a0\u2002-\u200a\u202f\u3000]")

_MAIL_NAME = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]")
_MAIL_DOMAIN = re.compile(r"@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z][A-Za-z0-9-]{1,62}")
_SIGNS_OF_KEYS = ("PRIVATE KEY", "eyJ", "k-", "k_", "ph-", "ph_", "gh", "glpat", "xox", "hf_", "AKIA", "ASIA", "AIza")
_KEYS = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\s]*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    r"|(?<![A-Za-z0-9_-])(?:"
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?:sk|pk|rk|ph)[_-][A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,}|hf_[A-Za-z0-9]{20,}"
    r"|A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])|AIza[0-9A-Za-z_-]{30,}"
    r")"
)
_IBAN_LENGTHS = {  # the registry of ISO 13616, as SWIFT keeps it
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_OF = {
    country: re.compile(rf"[A-Za-z]{{2}}\d{{2}}(?:[ -]?[A-Za-z0-9]){{{length - 4}}}(?![A-Za-z0-9])", re.ASCII)
    for length, countries in _IBAN_LENGTHS.items()
    for country in countries.split()
}
_IBAN_START = re.compile(r"[0-9](?<=(?<![A-Za-z0-9])[A-Za-z]{2}.)[0-9]", re.ASCII)
_RESIDENT = re.compile(r"[1-8](?<!\d.)(?=(\d{5}[ -]?(\d{8})[ -]?\d{3}[\dXx])(?![0-9A-Za-z]))", re.ASCII)
_SSN = re.compile(r"[0-8](?<![\d-].)(?!(?<=0)00|(?<=6)66)\d{2}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\d-])", re.ASCII)
_CARD = re.compile(
    r"[2-9](?<!\d.)(?=(\d{12,18}|\d{3}([ -])\d{4}\2\d{4}\2\d{1,4}(?:\2\d{3})?|\d{3}([ -])\d{6}\3\d{4,5})(?!\d))",
    re.ASCII,
)
_OF_A_NETWORK = re.compile(r"[2-6]|81|9792")
_PHONES = tuple(
    re.compile(rf"{first}(?<![\w+].){form}(?!\d)", re.ASCII)
    for first, form in (
        ("[+0]", r"(?:(?<=\+)|0)[1-9](?:[ .\-/()]{0,2}\d){7,14}"),
        ("1", r"[3-9]\d(?:[ -]?\d{4}){2}"),
        ("8", r"6[ -]?1[3-9]\d(?:[ -]?\d{4}){2}"),
        ("[(0]", r"(?:(?<=0)|0)(?:10|2\d|[3-9]\d{2})\)?[ -]?[2-9]\d{2,3}[ -]?\d{4}(?:(?:-|转)\d{1,6})?"),
        ("[(2-9]", r"(?:(?<=\()[2-9]\d{2}\) ?|\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"),
        ("1", r"[ .-](?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"),
    )
)
_TRUNK = re.compile(
    r"[(0](?<![\w.,].)(?:(?<=\()0\d{1,4}\)|(?<=0)\d{1,4})([ .\-/])\d{2,8}(?:\1\d{2,4}){0,4}(?![\w.,]\d|\d)", re.ASCII
)
_IPV4 = re.compile(r"[0-9](?<![\w.].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])", re.ASCII)
_IPV6 = re.compile(r"[0-9A-Fa-f:](?<![\w:.].)(?=[0-9A-Fa-f]{0,3}:)[0-9A-Fa-f:]{2,38}(?![\w:])", re.ASCII)


class Matter(NamedTuple):
    """Where personal matter stands in a text, and of which of `KINDS` it is."""

    start: int
    end: int
    kind: str


def redact(text: str) -> str:
    """The text with `⟨mail⟩`, `⟨card⟩` and so on in place of the matter; the same text where there is none.

    >>> redact("Write to zhang.wei@example.cn or call 138 0013 8000.")
    'Write to ⟨mail⟩ or call ⟨phone⟩.'
    """
    for _ in range(MOST_PASSES):
        found = find_matter(text)
        if not found:
            break
        pieces: list[str] = []
        at = 0
        for matter in found:
            pieces += (text[at : matter.start], f"⟨{matter.kind}⟩")
            at = matter.end
        text = "".join(pieces) + text[at:]
    return text


@functools.lru_cache(maxsize=512)
def redact_shared(text: str) -> str:
    """As `redact`, for texts that many requests share, such as system prompts."""
    return redact(text)


def find_matter(text: str) -> list[Matter]:
    """All matter in the text, in order, none over another: of what overlaps, the first of the longest."""
    plain = text if text.isascii() or not _NOT_PLAIN.search(text) else text.translate(_PLAIN_OF)
    every = [Matter(*span, kind) for kind, finder in _finders(plain) for span in finder(plain)]
    found: list[Matter] = []
    for matter in sorted(every, key=lambda matter: (matter.start, -matter.end)):
        if not found or matter.start >= found[-1].end:
            found.append(matter)
        elif matter.end > found[-1].end:  # two that overlap become one
            found[-1] = found[-1]._replace(end=matter.end)
    return found


Span = tuple[int, int]


def _mails(text: str) -> Iterator[Span]:
    end = 0
    for domain in _MAIL_DOMAIN.finditer(text):
        start = domain.start()
        while start > end and _MAIL_NAME.match(text, start - 1):
            start -= 1
        if start < domain.start():
            end = domain.end()
            yield start, end


def _phones(text: str) -> Iterator[Span]:
    for pattern in _PHONES:
        yield from (match.span() for match in pattern.finditer(text))
    for match in _TRUNK.finditer(text):
        if 9 <= len(_digits(match[0])) <= 12:
            yield match.span()


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = _digits(match[0] + match[1])
        if 13 <= len(digits) <= 19 and _OF_A_NETWORK.match(digits) and passes_luhn(digits):
            yield match.start(), match.end(1)


def _identities(text: str) -> Iterator[Span]:
    yield from (match.span() for match in _SSN.finditer(text))
    for match in _RESIDENT.finditer(text):
        if _is_day(match[2]) and passes_mod_11_2(re.sub("[ -]", "", match[0] + match[1])):
            yield match.start(), match.end(1)


def _accounts(text: str) -> Iterator[Span]:
    for start in _IBAN_START.finditer(text):
        form = _IBAN_OF.get(text[start.start() - 2 : start.start()].upper())
        match = form.match(text, start.start() - 2) if form is not None else None
        if match is not None and passes_mod_97(re.sub("[ -]", "", match[0])):
            yield match.span()


def _addresses(text: str) -> Iterator[Span]:
    return _valid(_IPV4, ipaddress.IPv4Address, text)


def _long_addresses(text: str) -> Iterator[Span]:
    return _valid(_IPV6, ipaddress.IPv6Address, text)


def _valid(pattern: re.Pattern[str], read: Callable[[str], object], text: str) -> Iterator[Span]:
    for match in pattern.finditer(text):
        try:
            read(match[0])
        except ValueError:
            continue
        yield match.span()


def _finders(text: str) -> Iterator[tuple[str, Callable[[str], Iterator[Span]]]]:
    """What may find something: each form needs characters that a look at the text finds sooner."""
    if any(sign in text for sign in _SIGNS_OF_KEYS):
        yield "key", lambda text: (match.span() for match in _KEYS.finditer(text))
    if _A_FIRST_LOOK.search(text) is None:
        return
    if "@" in text:
        yield "mail", _mails
    yield "account", _accounts
    if any(_A_DAY.fullmatch(run[0]) is None for run in _SEVEN_DIGITS.finditer(text)):
        yield from (("id", _identities), ("card", _cards), ("phone", _phones))
    if text.count(".") >= 3:
        yield "ip", _addresses
    if text.count(":") >= 2:
        yield "ip", _long_addresses


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B).

    >>> passes_luhn("4111111111111111"), passes_luhn("4111111111111112")
    (True, False)
    """
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def passes_mod_11_2(number: str) -> bool:
    """Whether the last character is the check character of the digits before it (ISO 7064 MOD 11-2, X is 10).

    >>> passes_mod_11_2("11010519491231002X"), passes_mod_11_2("110105194912310021")
    (True, False)
    """
    check = 0
    for digit in number[:-1]:
        check = (check + int(digit)) * 2 % 11
    return (check + (10 if number[-1] in "Xx" else int(number[-1]))) % 11 == 1


def passes_mod_97(account: str) -> bool:
    """Whether an IBAN without spaces has right check digits (ISO 7064 MOD 97-10).

    >>> passes_mod_97("DE89370400440532013000"), passes_mod_97("DE88370400440532013000")
    (True, False)
    """
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_day(text: str) -> bool:
    try:
        born = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return 1850 <= born.year <= 2100
