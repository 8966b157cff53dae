"""`card.html`: an expert's card as one page for people, made from the card alone.

One file without scripts and without anything from elsewhere, under 100 kB whatever the card holds: long lists are
cut, and the page says so and where the rest is. Everything that came from data (labels, names, recipes) is escaped
and kept apart from the text around it, so that no label can change the page. English and Chinese are both in it.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Sequence
from html import escape

from puhui.bundles import card_words as words
from puhui.bundles.card import Card, Section, Speed, TradeOff
from puhui.bundles.card_drawings import Mark, draw_reliability, draw_trade_offs
from puhui.bundles.card_figures import wilson_interval
from puhui.bundles.card_markup import (
    block,
    both,
    code,
    command,
    cut,
    facts,
    long_table,
    own,
    row,
    section,
    shown,
    table,
    why,
)
from puhui.bundles.card_style import STYLE
from puhui.bundles.card_words import Text, duration, energy, percent, size
from puhui.cascade.agreement import Exact, NumberLoss, SetLoss, SpanLoss

PAGE_FILE = "card.html"
MOST_BYTES = 100_000
ROWS = (20, 12, 6, 3)  # of a table: the first number with which the page is small enough
FIRST, BINS = 8, 20  # rows shown at once, the others when asked for; bins in a table
LABELS_BYTES, MOST_LABELS, RECIPE_LETTERS, COMMAND_LETTERS = 12_000, 600, 1_500, 300
DASH = "–"


def render_card(card: Card, *, key: str | None = None, id: str | None = None) -> str:
    """The page, as HTML text.

    `key` is the public key that signs the expert, `id` its id. A page that lies within the bundle cannot name the
    id, which is a digest over it, and says how to find it.
    """
    for rows in ROWS:
        page = _page(card, key, id, rows)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def _page(card: Card, key: str | None, id: str | None, rows: int) -> str:
    """The page with at most so many rows in a table, and six times as many points in a picture."""
    parts = (
        _guarantee(card),
        _trade_offs(card, rows),
        _agreement(card),
        _confusions(card, rows),
        _devices(card, rows),
        _precision(card, rows),
        _origin(card, rows),
        _seal(card, key, id, rows),
        _absent(card),
    )
    made = datetime.datetime.fromtimestamp(card.created, datetime.UTC).strftime("%Y-%m-%d")
    name = shown(card.task_name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)} · {escape(card.family)} · Puhui</title><style>{STYLE}</style></head>\n<body>"
        '<input class="pick" type="radio" name="language" id="en" checked aria-label="English">'
        '<input class="pick" type="radio" name="language" id="zh" aria-label="中文">'
        f'<header><div class="top"><span><b>Puhui 普慧</b> · {both(_KIND)} · {made}</span>'
        '<span><label for="en">English</label><label for="zh">中文</label></span></div>'
        f'<h1>{own(name)}</h1><p class="lead">{both(words.sentence(card, named=False))}</p>{_keys(card)}</header>\n'
        f"<main>{''.join(parts)}</main>\n<footer>{both(_FOOT)}</footer></body></html>\n"
    )


_KIND = Text("an expert’s card", "专家卡片")
_FOOT = Text(
    "Agreement is with the big model, not with truth. Sizes are decimal: 1 MB = 1,000,000 bytes.",
    "一致指与大模型一致，并非与事实一致。大小按十进制：1 MB = 1,000,000 字节。",
)


def _keys(card: Card) -> str:
    """The few numbers that matter most, each a link to where it is explained."""
    proven = card.calibration
    found: list[tuple[str, str, Text]] = []
    if words.is_proven(card):
        found.append(
            ("guarantee", percent(proven["coverage"] or 0.0), Text("of requests answered alone", "请求独自回答"))
        )
        bound = f"≤ {percent(proven['risk_bound'] or 0.0)}"
        otherwise = Text("of requests answered otherwise, proven", "请求的答案不同，已证明")
        loss = Text("mean loss over all requests, proven", "全部请求的平均损失，已证明")
        found.append(("guarantee", bound, otherwise if words.is_exact(card) else loss))
    mean = "" if words.is_exact(card) else "mean "
    found.append(("agreement", percent(card.agreement), Text(f"{mean}agreement on all requests", "全部请求的一致率")))
    found.append(("devices", duration(card.answer_us / 1e3), Text("of one core for an answer", "每次回答占用一个核")))
    found.append(("devices", size(card.size_bytes), Text("of weights", "权重大小")))
    first = ' class="main"'
    links = (
        f'<a href="#{where}"{first if number == 0 else ""}><b>{value}</b><span>{both(what)}</span></a>'
        for number, (where, value, what) in enumerate(found)
    )
    return f'<nav class="keys">{"".join(links)}</nav>'


def _guarantee(card: Card) -> str:
    said = words.guarantee(card)
    text = [f'<p class="first">{both(said[0])}</p>', *(f"<p>{both(each)}</p>" for each in said[1:])]
    if words.is_proven(card) and words.is_exact(card):
        text.append(_shares(card))
    text.append(f"<h3>{both(Text('What it does not say', '它没有说的'))}</h3>")
    text.append("<ul>" + "".join(f"<li>{both(each)}</li>" for each in words.limits(card)) + "</ul>")
    return section("guarantee", Text("The guarantee", "保证"), *text, _again(card, "guarantee"))


def _shares(card: Card) -> str:
    """One bar of all requests: answered as the big model would, answered otherwise, and left to it."""
    covered, risk = card.calibration.get("coverage") or 0.0, card.calibration.get("risk") or 0.0
    parts = (
        ("ok", max(0.0, covered - risk), Text("answered as the big model would", "回答与大模型相同")),
        ("no", risk, Text("answered otherwise", "回答与大模型不同")),
        ("big", 1 - covered, Text("left to the big model", "留给大模型")),
    )
    bars = "".join(f'<i class="i-{kind}" style="flex:{share:.5f}"></i>' for kind, share, _ in parts if share > 0)
    legend = "".join(f'<li><i class="i-{kind}"></i>{percent(share)} {both(what)}</li>' for kind, share, what in parts)
    return f'<div class="share" aria-hidden="true">{bars}</div><ul class="legend">{legend}</ul>'


def _trade_offs(card: Card, most: int) -> str:
    if not card.trade_offs:
        return ""
    numbered = list(enumerate(card.trade_offs, 1))
    by = words.coverage_head(card)
    epsilon = card.calibration.get("epsilon")
    text = Text(
        "Each point is a candidate that the search tried: what it costs, and the share of requests that it may answer "
        + (f"at a risk of {percent(epsilon)}" if epsilon else "at the risk allowed")
        + ". The line joins those that nothing beats in both; the ringed one was chosen.",
        "每个点是搜索试过的一个候选：它的代价，以及在"
        + (f" {percent(epsilon)} 风险下" if epsilon else "允许的风险下")
        + "可以回答的请求比例。线连接没有被同时超越的候选；带圈的是选中的。",
    )
    pictures = [
        _picture(numbered, lambda each: float(each.size_bytes), Text("size", "大小"), size, by, most),
        _picture(numbered, lambda each: each.latency_ms, Text("time of an answer", "回答用时"), duration, by, most),
    ]
    return section(
        "trade-offs",
        Text("Trade-offs", "取舍"),
        f"<p>{both(text)}</p>",
        f'<div class="pair">{"".join(pictures)}</div>',
        _candidates(numbered, by, most),
        _again(card, "trade_offs"),
    )


def _picture(
    numbered: Sequence[tuple[int, TradeOff]],
    cost: Callable[[TradeOff], float | None],
    axis: Text,
    unit: Callable[[float], str],
    gain: Text,
    most: int,
) -> str:
    marks = [
        Mark(number, each.name, paid, each.coverage, each.chosen)
        for number, each in numbered
        if each.coverage is not None and (paid := cost(each)) is not None and paid > 0
    ]
    marks.sort(key=lambda mark: (not mark.chosen, -mark.gain))
    return f"<figure>{draw_trade_offs(marks[: 6 * most], axis, unit, gain)}</figure>" if marks else ""


def _candidates(numbered: Sequence[tuple[int, TradeOff]], by: Text, most: int) -> str:
    """The table of candidates, the chosen first and then by coverage."""
    ranked = sorted(numbered, key=lambda pair: (not pair[1].chosen, -(pair[1].coverage or 0.0), pair[0]))
    head = (
        Text("candidate", "候选"),
        Text("size", "大小"),
        Text("time", "用时"),
        Text("agrees", "一致"),
        by,
    )
    rows = []
    for number, each in ranked[:most]:
        about = [escape(shown(each.family, 40))]
        if each.training_s is not None:
            about.append(
                both(Text(f"trained {duration(each.training_s * 1e3)}", f"训练 {duration(each.training_s * 1e3)}"))
            )
        if each.joules is not None:
            about.append(energy(each.joules))
        why = both(Text("chosen", "选中")) if each.chosen else own(shown(each.why_not)) if each.why_not else ""
        name = f"{number}. {own(shown(each.name, 80))}"
        cells = (
            size(each.size_bytes) if each.size_bytes else DASH,
            DASH if each.latency_ms is None else duration(each.latency_ms),
            DASH if each.agreement is None else percent(each.agreement),
            DASH if each.coverage is None else percent(each.coverage),
        )
        detail = f'<span class="why">{" · ".join([*about, *([why] if why else [])])}</span>'
        rows.append(row(f"{f'<b>{name}</b>' if each.chosen else name}{detail}", cells, on=each.chosen))
    return long_table(head, rows, first=FIRST) + cut(len(numbered), most)


def _agreement(card: Card) -> str:
    text = [f"<p>{both(words.agreement(card))}</p>"]
    ceiling = words.ceiling(card)
    if ceiling is not None:
        text += [f"<p>{both(ceiling)}</p>", _again(card, "ceiling")]
    text.append(f'<p class="soft">{both(words.rule(card))}</p>')
    if not isinstance(words.rule_of(card), Exact | SetLoss | NumberLoss | SpanLoss):
        text.append(block(card.agreement_rule, RECIPE_LETTERS))
    if card.reliability:
        exact = words.is_exact(card)
        means = "the chance that the big model agrees" if exact else "the mean agreement with the big model"
        told = Text(
            f"Held-out rows in bins of equal count, with 95% intervals. On the dashed line, confidence is {means}. The "
            "guarantee needs less: that surer answers are better ones.",
            "留出的行按数量均分，竖条为 95% 置信区间。"
            f"落在虚线上时，置信度就是与大模型{'一致的概率' if exact else '的平均一致程度'}。"
            "保证所需更少：把握越大，答案越好。",
        )
        picture = draw_reliability(card.reliability, words.threshold_of(card))
        error = "" if card.calibration_error is None else f"<p>{both(_error(card.calibration_error))}</p>"
        figure = f"<figure>{picture}<figcaption>{both(told)}</figcaption></figure>"
        text += [f'<div class="pair">{figure}<div>{error}{_bins(card)}</div></div>', _again(card, "reliability")]
    return section("agreement", Text("Agreement and reliability", "一致与可靠性"), *text)


def _error(found: float) -> Text:
    return Text(
        f"Confidence and agreement differ by {percent(found)} on the mean (expected calibration error).",
        f"置信度与一致率平均相差 {percent(found)}（期望校准误差）。",
    )


def _bins(card: Card) -> str:
    head = (Text("confidence", "置信度"), Text("rows", "行数"), Text("agrees", "一致"))
    rows = []
    for each in card.reliability[:BINS]:
        low, high = wilson_interval(each.agreement, each.rows)
        span = f"{each.low:.3f} {DASH} {each.high:.3f}"
        share = f'{percent(each.agreement)} <span class="range">{percent(low)} {DASH} {percent(high)}</span>'
        rows.append(row(span, (f"{each.rows:,}", share)))
    return table(head, rows)


def _confusions(card: Card, most: int) -> str:
    if not card.confusions:
        return ""
    head = (
        Text("the big model says → the expert says", "大模型的答案 → 专家的答案"),
        Text("rows", "行数"),
        Text("of all", "占比"),
    )
    longest = max(each.share for each in card.confusions) or 1.0
    rows = [
        row(
            f'{own(shown(each.big, 60))}<span class="swap">→</span>{own(shown(each.expert, 60))}'
            f'<span class="bar" style="width:{100 * each.share / longest:.1f}%"></span>',
            (f"{each.count:,}", percent(each.share)),
        )
        for each in card.confusions[:most]
    ]
    covered = percent(min(1.0, sum(each.share for each in card.confusions)))
    text = Text(
        f"Where the two differ most, sure or not. These pairs are {covered} of all disagreements.",
        f"两者分歧最多之处，不论把握大小。这些占全部分歧的 {covered}。",
    )
    title = Text("The worst confusions", "最多的混淆")
    return section(
        "confusions", title, f"<p>{both(text)}</p>", long_table(head, rows, first=FIRST), _again(card, "confusions")
    )


def _devices(card: Card, most: int) -> str:
    head = (
        Text("device", "设备"),
        Text("time of an answer", "回答用时"),
        Text("on disk", "磁盘"),
        Text("in memory", "内存"),
        Text("energy", "能量"),
    )
    here = Text("the machine that made it, one core", "制作它的机器，一个核")
    used = f"{energy(card.joules_low)} {DASH} {energy(card.joules_high)}"
    note = why(Text("CPU time measured, energy estimated", "CPU 时间为实测，能量为估算"))
    measured = (duration(card.answer_us / 1e3), size(card.size_bytes), DASH, used)
    rows = [row(both(here) + note, measured)]
    for name, speed in list(card.devices.items())[:most]:
        cells = (
            duration(speed.latency_ms),
            size(speed.size_bytes),
            DASH if speed.memory_bytes is None else size(speed.memory_bytes),
            DASH if speed.joules is None else energy(speed.joules),
        )
        rows.append(row(own(shown(name, 60)) + _source(speed), cells))
    body = table(head, rows) + cut(len(card.devices), most)
    return section("devices", Text("Sizes and speeds", "大小与速度"), body, _again(card, "devices"))


def _source(speed: Speed) -> str:
    """Whether a device's numbers were measured, or scaled from which by what."""
    if speed.measured:
        return why(Text("measured", "实测"))
    factor, origin = f"{speed.factor:.3g}", shown(speed.scaled_from, 60) if speed.scaled_from else ""
    en, zh = (f" from {origin}", f"由 {origin} ") if origin else ("", "")
    return why(Text(f"scaled{en}: time × {factor}", f"{zh}推算：用时 × {factor}"))


def _precision(card: Card, most: int) -> str:
    if not card.precision:
        return ""
    head = (Text("matrix", "矩阵"), Text("bits", "位"), Text("sensitivity", "敏感度"))
    ranked = sorted(card.precision, key=lambda each: (-each.bits, -(each.sensitivity or 0.0)))
    rows = [
        row(
            f"<code>{own(shown(each.name, 80))}</code>"
            + (f'<span class="why">{own(shown(each.reason))}</span>' if each.reason else ""),
            (f"{each.bits}", DASH if each.sensitivity is None else f"{each.sensitivity:.3g}"),
        )
        for each in ranked[:most]
    ]
    bits = sorted({each.bits for each in card.precision}, reverse=True)
    counts = ", ".join(f"{sum(each.bits == bit for each in card.precision)} × {bit} bit" for bit in bits[:8])
    text = Text(
        f"What each matrix was kept in, the finest first: {counts}.",
        f"每个矩阵保留的精度，最精细的在前：{counts}。",
    )
    body = long_table(head, rows, first=FIRST) + cut(len(card.precision), most)
    return section(
        "precision", Text("Precision kept", "保留的精度"), f"<p>{both(text)}</p>", body, _again(card, "precision")
    )


def _origin(card: Card, most: int) -> str:
    known: list[tuple[str, str]] = [(both(Text("big model", "大模型")), own(shown(card.teacher)))]
    if card.data is not None:
        source = f" · {own(shown(card.data.source))}" if card.data.source else ""
        known.append((both(Text("data", "数据")), both(words.data(card.data)) + source))
    known.append((both(Text("taught by", "学习自")), both(Text(f"{card.rows:,} answers", f"{card.rows:,} 个答案"))))
    known.append((both(Text("their digest", "其摘要")), code(shown(card.data_digest, 80))))
    for each in card.lineage[:most]:
        about = [own(shown(each.name)), *([own(shown(each.licence, 80))] if each.licence else [])]
        about += [code(shown(each.digest, 80))] if each.digest else []
        known.append((own(shown(each.role, 40)), " · ".join(about)))
    if card.parent is not None:
        known.append((both(Text("replaces", "取代")), code(shown(card.parent, 80))))
    known.append((both(Text("licence", "许可")), own(shown(card.licence))))
    recipe = ""
    if card.recipe:
        inside = block(card.recipe, RECIPE_LETTERS)
        recipe = f"<details><summary>{both(Text('The recipe', '配方'))}</summary>{inside}</details>"
    title = Text("Where it came from", "来历")
    return section("origin", title, facts(known), _labels(card), recipe, _again(card, "data"))


def _labels(card: Card) -> str:
    """All labels, or as many as fit."""
    items = [f"<li>{own(shown(label, 60))}</li>" for label in card.labels[:MOST_LABELS]]
    ends = itertools.accumulate(len(item.encode()) for item in items)
    drawn = items[: sum(end <= LABELS_BYTES for end in ends)]
    if not drawn:
        return ""
    title = Text(f"Its {len(card.labels):,} answers", f"它的 {len(card.labels):,} 个答案")
    opened = " open" if len(card.labels) <= 30 else ""
    more = cut(len(card.labels), len(drawn))
    return f'<details{opened}><summary>{both(title)}</summary><ul class="labels">{"".join(drawn)}</ul>{more}</details>'


def _seal(card: Card, key: str | None, id: str | None, most: int) -> str:
    by_itself = Text(
        "the SHA-256 of expert.json beside this page, which covers this page too",
        "与本页同处的 expert.json 的 SHA-256，本页也在其内",
    )
    known = [(both(Text("id", "编号")), code(shown(id, 80)) if id else both(by_itself))]
    if key:
        known.append((both(Text("signed by", "签名")), f"Ed25519 {code(shown(key, 80))}"))
    for name, digest in list(card.files.items())[:most]:
        known.append((own(shown(name, 80)), code(shown(digest, 80))))
    check = command("puhui experts verify FOLDER", Text("check it", "验证"))
    return section("seal", Text("Digests and signature", "摘要与签名"), facts(known), check)


def _absent(card: Card) -> str:
    missing = words.gaps(card)
    if not missing:
        return ""
    items = "".join(f"<li>{both(each)}</li>" for each in missing.values())
    return section("absent", Text("Not on this card", "卡片上没有的"), f'<ul class="soft">{items}</ul>')


def _again(card: Card, part: Section) -> str:
    """The one command that makes a section's numbers again."""
    words_of = card.commands.get(part)
    return command(shown(words_of, COMMAND_LETTERS), Text("make it again", "重新得到")) if words_of else ""
