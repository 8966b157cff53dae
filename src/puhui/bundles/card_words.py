"""A card in words: its sentences and numbers as people read them, in English and in Chinese.

The page, the model card and the command all say what is said here, so that none of them promises more than
another. Numbers keep three figures, the share 1 is never reached by rounding, and sizes are decimal (1 kB = 1,000 B).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from puhui.bundles.card import Card, Data, Section
from puhui.bundles.card_figures import wilson_interval
from puhui.cascade.agreement import Exact, FieldLoss, NumberLoss, Rule, SetLoss, SpanLoss, is_whole


class Text(NamedTuple):
    """One statement in two languages."""

    en: str
    zh: str


FAMILIES_ZH = {
    "static": "静态",
    "encoder": "编码器",
    "cascade": "级联",
    "number": "数值",
    "label_set": "标签集",
    "span": "片段",
    "fields": "记录",
}
ABSENT: dict[Section, Text] = {
    "guarantee": Text(
        "Guarantee: nothing was proven, or not all numbers of the proof were noted.",
        "保证：没有证明任何结论，或没有记下证明的全部数字。",
    ),
    "trade_offs": Text("Trade-offs: no other candidates were noted.", "取舍：没有记下其他候选。"),
    "reliability": Text("Reliability: agreement was not counted by confidence.", "可靠性：没有按置信度统计一致率。"),
    "confusions": Text("Confusions: the disagreements were not noted.", "混淆：没有记下不一致的答案。"),
    "devices": Text("Devices: no device was timed or reckoned for.", "设备：没有在设备上计时，也没有估算。"),
    "precision": Text("Precision: no matrix was examined by itself.", "精度：没有逐个检查矩阵。"),
    "ceiling": Text("Ceiling: the big model was not asked the same twice.", "上限：没有对大模型重复提问。"),
    "data": Text("Data: their source and the held-out rows were not noted.", "数据：没有记下来源和留出的行数。"),
}
PROOF = ("threshold", "epsilon", "delta", "rows", "coverage", "errors", "risk", "risk_bound")
CUT = 120  # characters of a name that are shown; the card itself holds all of it


def percent(share: float) -> str:
    """A share in [0, 1] as percent, to three figures.

    >>> percent(0.8634), percent(0.0197), percent(0.02), percent(1.0), percent(0.99996), percent(0.0)
    ('86.3%', '1.97%', '2%', '100%', '99.996%', '0%')
    """
    for figures in range(3, 8):
        text = f"{100 * share:.{figures}g}"
        if share >= 1 or float(text) < 100:
            return f"{text}%" if "e" not in text else f"{100 * share:.5f}%"
    return "over 99.9999%"


def size(size_bytes: float) -> str:
    """Bytes in a fitting unit, to three figures.

    >>> size(512), size(81_920), size(4_912_345), size(86_000_000), size(1.5e9)
    ('512 B', '81.9 kB', '4.91 MB', '86 MB', '1.5 GB')
    """
    return _scaled(size_bytes, (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)))


def duration(milliseconds: float) -> str:
    """Milliseconds in a fitting unit, to three figures.

    >>> duration(0.0561), duration(4.1), duration(1234.0), duration(0.0004), duration(432_000.0)
    ('0.0561 ms', '4.1 ms', '1.23 s', '0.4 µs', '7.2 min')
    """
    if milliseconds < 0.01:
        return _scaled(milliseconds * 1e3, (("µs", 1.0),))
    return _scaled(milliseconds, (("ms", 1.0), ("s", 1e3), ("min", 60e3), ("h", 3600e3)))


def energy(joules: float) -> str:
    """Joules in a fitting unit, to three figures.

    >>> energy(0.00012), energy(0.35), energy(3.2), energy(4.5e-7)
    ('0.12 mJ', '350 mJ', '3.2 J', '0.45 µJ')
    """
    if joules < 1e-4:
        return _scaled(joules * 1e6, (("µJ", 1.0),))
    return _scaled(joules * 1e3, (("mJ", 1.0), ("J", 1e3), ("kJ", 1e6)))


def shown(name: str, most: int = CUT) -> str:
    """A name on one line: breaks made visible, cut to `most` characters, what cannot be shown replaced.

    >>> shown("two\\nlines"), shown(""), shown("a" * 200, most=5)
    ('two⏎lines', '(empty)', 'aaaa…')
    """
    line = "".join("⏎" if c == "\n" else c if c.isprintable() or c == "\u200d" else "\ufffd" for c in name)
    return (line if len(line) <= most else f"{line[: most - 1]}…") or "(empty)"


def sentence(card: Card, *, named: bool = True) -> Text:
    """What the expert is, in one sentence; `named` if the task's name is not beside it."""
    name, teacher = shown(card.task_name), shown(card.teacher)
    count, took, mass = f"{len(card.labels):,}", duration(card.answer_us / 1e3), size(card.size_bytes)
    article = "An" if card.family[:1] in "aeiou" else "A"
    family = FAMILIES_ZH.get(card.family, f" {card.family} ")
    task = Text(f" for “{name}”", f"，任务是“{name}”") if named else Text("", "")
    return Text(
        f"{article} {card.family} expert of {mass}{task.en}. It answers as {teacher} would"
        + (f", with one of {count} answers," if card.labels else "")
        + f" in {took} of one core.",
        f"一个 {mass} 的{family}专家{task.zh}。它像 {teacher} 那样回答"
        + (f"，从 {count} 个答案中选一个" if card.labels else "")
        + f"，每次占用一个核 {took}。",
    )


def threshold_of(card: Card) -> float | None:
    """The confidence from which the expert may answer; None where nothing was proven."""
    return card.calibration.get("threshold")


def guarantee(card: Card) -> tuple[Text, ...]:
    """What was proven, in words with its numbers; or that nothing was."""
    threshold = threshold_of(card)
    if threshold is None:
        return (
            Text(
                "Nothing is proven of this expert: it may answer no request by itself. Ask the big model.",
                "尚未证明任何结论：它不可单独回答任何请求，请使用大模型。",
            ),
        )
    if not is_proven(card):
        return (
            Text(
                f"It may answer at a confidence of {threshold:.4g} and more. The card does not say what was proven.",
                f"置信度达到 {threshold:.4g} 时它可以回答；卡片没有说明此处证明了什么。",
            ),
        )
    covered = percent(card.calibration["coverage"] or 0.0)
    alone = Text(
        f"It answers {covered} of the requests itself, those where its confidence is at least {threshold:.4g}, and "
        "leaves the others to the big model.",
        f"置信度不低于 {threshold:.4g} 的请求（占 {covered}）由它回答，其余留给大模型。",
    )
    return _promise(card), alone, _evidence(card)


def is_proven(card: Card) -> bool:
    """Whether every number of a proof is on the card."""
    return all(card.calibration.get(name) is not None for name in PROOF)


def is_exact(card: Card) -> bool:
    """Whether each answer agrees or not, with nothing between: then shares of requests can be told."""
    known = rule_of(card)
    return known is not None and is_whole(known)


def _promise(card: Card) -> Text:
    risk, sure = percent(card.calibration["epsilon"] or 0.0), percent(1 - (card.calibration["delta"] or 0.0))
    holds = Text(f"The proof holds with a probability of at least {sure}.", f"此证明成立的概率不低于 {sure}。")
    if is_exact(card):
        return Text(
            f"Of all requests of this task, at most {risk} get an answer from this expert that the big model would not "
            f"have given. {holds.en}",
            f"在这项任务的全部请求中，至多 {risk} 会得到与大模型不同的专家答案。{holds.zh}",
        )
    return Text(
        f"Over all requests of this task, the mean loss of this expert's answers against the big model's is at most "
        f"{risk}. {holds.en}",
        f"在这项任务的全部请求中，专家答案相对大模型的平均损失至多 {risk}。{holds.zh}",
    )


def _evidence(card: Card) -> Text:
    """What the proof was made on."""
    bound, found = (percent(card.calibration[name] or 0.0) for name in ("risk_bound", "risk"))
    rows, errors = (f"{card.calibration[name] or 0:,.0f}" for name in ("rows", "errors"))
    new = _new(card)
    if is_exact(card):
        return Text(
            f"Proven on {rows} requests {new.en}: {errors} of them ({found}) got another answer than "
            f"the big model's, so the true share is at most {bound}.",
            f"证明依据 {rows} 个{new.zh}的请求：其中 {errors} 个（{found}）的答案与大模型不同，"
            f"因此真实比例至多 {bound}。",
        )
    return Text(
        f"Proven on {rows} requests {new.en}: their mean loss was {found}, so the true one is at most {bound}.",
        f"证明依据 {rows} 个{new.zh}的请求：平均损失为 {found}，因此真实值至多 {bound}。",
    )


def _new(card: Card) -> Text:
    """What the held-out requests are to the expert. Traffic repeats itself: then a text may have taught it as well."""
    if card.data is not None and card.data.repeated == 0:
        return Text("that it had never seen", "它从未见过")
    return Text("that did not teach it", "未参与训练")


def limits(card: Card) -> tuple[Text, ...]:
    """What the guarantee does not say."""
    epsilon, coverage = card.calibration.get("epsilon"), card.calibration.get("coverage")
    alone = Text(
        "It is a share of all requests, the forwarded ones included.", "比例以全部请求计，包括转交给大模型的请求。"
    )
    if epsilon and coverage:
        part = percent(min(1.0, epsilon / coverage))
        alone = Text(
            f"Not of the answered part alone: at {percent(coverage)} coverage, up to {part} of its own answers may "
            "differ.",
            f"不单指它回答的部分：覆盖率为 {percent(coverage)} 时，它自己的答案中至多可有 {part} 不同。",
        )
    return (
        Text(
            "Not truth: it speaks of agreement with the big model. Where that is wrong, a good expert is wrong too.",
            "不保证答案正确：它只说明与大模型一致。大模型错时，好的专家也会错。",
        ),
        alone,
        Text(
            "Not every kind of request: it is a mean over the traffic, and a rare kind may fare worse.",
            "不保证每一类请求：它是全部流量的平均，少见的请求可能更差。",
        ),
        Text(
            "Not other traffic: the proof is of requests like those it was made on, and a device that works alone has "
            "nothing that watches it.",
            "不适用于别的流量：证明只对与其来源相同的请求成立；单独运行的设备上也没有监督。",
        ),
    )


def agreement(card: Card) -> Text:
    """How often the big model agrees, with the 95 % interval where the rows are known."""
    share, rows, new = percent(card.agreement), card.held_out, _new(card)
    if not is_exact(card):
        return Text(
            f"Its answers agree with the big model's by {share} on the mean, over requests {new.en}.",
            f"在{new.zh}的请求上，它的答案与大模型的平均一致程度为 {share}。",
        )
    if not rows:
        return Text(
            f"It gives the big model's answer to {share} of the requests that were kept from it.",
            f"在未参与训练的请求中，{share} 与大模型的答案相同。",
        )
    low, high = (percent(bound) for bound in wilson_interval(card.agreement, rows))
    return Text(
        f"It gives the big model's answer to {share} of {rows:,} requests {new.en}, whether sure or not "
        f"(95% interval: {low} to {high}).",
        f"在{new.zh}的 {rows:,} 个请求中，不论把握大小，{share} 与大模型的答案相同（95% 置信区间：{low} 至 {high}）。",
    )


def data(found: Data) -> Text:
    """How many rows it was made from, and what of their source is not among them."""
    more = Text(f", {found.unlabelled:,} texts without an answer", f"，另有 {found.unlabelled:,} 条没有答案的文本")
    more = more if found.unlabelled else Text("", "")
    same = f"{found.repeated or 0:,}"
    twice = Text(f" ({same} repeat texts of the others)", f"（其中 {same} 行与其余行文本相同）")
    twice = twice if found.repeated else Text("", "")
    lost = "".join(f"; {shown(each, 300)}" for each in found.lost)
    return Text(
        f"{found.rows:,} rows, {found.held_out:,} of them held out{twice.en}{more.en}{lost}",
        f"{found.rows:,} 行，其中留出 {found.held_out:,} 行{twice.zh}{more.zh}{lost}",
    )


def ceiling(card: Card) -> Text | None:
    """How often the big model agrees with itself, where that was measured, and what follows for an expert."""
    if card.ceiling is None:
        return None
    found = card.ceiling
    share, low, high = percent(found.agreement), percent(found.low), percent(found.high)
    if not is_exact(card):
        return Text(
            f"Asked twice, the big model agrees with itself by {share} on the mean over {found.rows:,} requests "
            f"(95% interval: {low} to {high}).",
            f"同一请求问两次，大模型在 {found.rows:,} 个请求中与自己的平均一致程度为 {share}"
            f"（95% 置信区间：{low} 至 {high}）。",
        )
    most = percent(math.sqrt(found.agreement))
    return Text(
        f"The ceiling: asked twice, the big model agrees with itself on {share} of {found.rows:,} requests "
        f"(95% interval: {low} to {high}). So no expert can be expected to agree with it on more than {most}.",
        f"上限：同一请求问两次，大模型在 {found.rows:,} 个请求中与自己一致的占 {share}"
        f"（95% 置信区间：{low} 至 {high}）。因此任何专家与它的一致率都难以超过 {most}。",
    )


def coverage_head(card: Card) -> Text:
    """What the candidates' coverage is called: where too few rows judged, it is what they show and no proof."""
    if all(each.proven for each in card.trade_offs):
        return Text("coverage", "覆盖率")
    return Text("coverage, not proven", "覆盖率（未证明）")


def rule_of(card: Card) -> Rule | None:
    """The rule by which answers were compared; None for one that this Puhui does not know."""
    try:
        found: Rule = msgspec.convert(card.agreement_rule, Rule)
    except msgspec.ValidationError:
        return None
    return found


def rule(card: Card) -> Text:
    """When two answers count as the same."""
    match rule_of(card):
        case Exact():
            return Text(
                "Two answers are the same when they are the same text, white space around them apart.",
                "两个答案的文字相同（首尾空白除外）即为一致。",
            )
        case SetLoss():
            return Text(
                "Answers are sets of labels; the loss is the share of labels that only one of the two names.",
                "答案是标签的集合；损失是任一方给出的标签中，另一方没有给出的比例。",
            )
        case NumberLoss(width, tolerance):
            return Text(
                f"Numbers at most {tolerance:g} apart are the same; the loss grows to 1 at a distance of {width:g}.",
                f"相差不超过 {tolerance:g} 的数视为相同；相差达到 {width:g} 时损失为 1。",
            )
        case SpanLoss():
            return Text(
                "Answers are passages of the input; the loss is one minus the F1 of their words.",
                "答案是输入中的片段；损失为 1 减去其词语的 F1 值。",
            )
        case FieldLoss():
            return Text(
                "Answers are records, compared field by field; the loss is the greatest of their fields:",
                "答案是记录，逐字段比较；损失取各字段中最大者：",
            )
    return Text("Answers were compared by this rule:", "答案按以下规则比较：")


def gaps(card: Card) -> dict[Section, Text]:
    """What is not on the card, in words. Empty: the card is complete."""
    known = {
        "guarantee": is_proven(card),
        "trade_offs": bool(card.trade_offs),
        "reliability": bool(card.reliability),
        "confusions": bool(card.confusions) or card.agreement >= 1,
        "devices": bool(card.devices),
        "precision": bool(card.precision),
        "ceiling": card.ceiling is not None,
        "data": card.data is not None,
    }
    return {section: text for section, text in ABSENT.items() if not known[section]}


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """The value in the greatest unit in which it is at least 1, to three figures and without an exponent."""
    fitting = [unit for unit in units if abs(value) >= 0.9995 * unit[1]] or [units[0]]
    name, unit = fitting[-1]
    amount = value / unit
    decimals = max(0, 2 - math.floor(math.log10(abs(amount)))) if amount else 0
    text = f"{amount:,.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {name}"
