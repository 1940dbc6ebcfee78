"""What the columns of a playground show: tokens, marks, tooltips, and the table of differences. Generates nothing."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workbench.evaluation.side_by_side import Conversation, Reading, Spoken
from workbench.ui.token_marks import flowing, visible

# Most rows of the table of differences.
SHOWN_DIFFERENCES = 12

TextOf = Callable[[int], str]


@dataclass
class Column:
    """One column's tokens, as :class:`workbench.ui.token_text.TokenText` takes them."""

    texts: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    tips: list[str] = field(default_factory=list)

    def add(self, text: str, mark: str, tip: str) -> None:
        self.texts.append(text)
        self.marks.append(mark)
        self.tips.append(tip)


def answer_column(talk: Conversation, speaker: int, text_of: TextOf) -> Column:
    """One answer: the place where it parts from another is marked, and what follows there in other words."""
    others = [other for other in range(len(talk.names)) if other != speaker]
    # The first column parts from any other, the others from the first.
    against = others if speaker == 0 else [0]
    first = {place for other in against if (place := talk.parting(speaker, other)) is not None}
    differing = {place for other in against for place in talk.differing(speaker, other)}
    column = Column()
    for place, token in enumerate(talk.answers[speaker].tokens):
        mark = "first" if place in first else "differs" if place in differing else "special" if token.ends else ""
        column.add(flowing(text_of(token.id)), mark, _answer_tip(talk, speaker, place, text_of))
    return column


def _answer_tip(talk: Conversation, speaker: int, place: int, text_of: TextOf) -> str:
    """The token and its probability; where another model said otherwise, everybody's of both."""
    said = _said(talk, place)
    own = said[speaker]
    lines = [f"token {place}: {_quoted(text_of(own.id))} {_percent(own.probability)}"]
    if len({token.id for token in said.values()}) > 1:
        lines = [f"token {place}"]
        for number, token in said.items():
            choices = dict.fromkeys([token.id, *(other.id for other in said.values())])
            asked = {choice: _asked(said, number, choice) for choice in choices}
            known = [f"{_quoted(text_of(choice))} {_percent(p)}" for choice, p in asked.items() if p is not None]
            lines.append(f"{talk.names[number]}: {', '.join(known)}")
        if any(other is None for other in own.others):
            lines.append("They had read different texts by then.")
    if rest := _rest(own):
        lines.append("then " + ", ".join(f"{_quoted(text_of(each))} {_percent(p)}" for each, p in rest))
    return "\n".join(lines)


def _said(talk: Conversation, place: int) -> dict[int, Spoken]:
    """What each speaker said at a place, of those that had not ended."""
    return {number: answer.tokens[place] for number, answer in enumerate(talk.answers) if place < len(answer.tokens)}


def _rest(token: Spoken) -> list[tuple[int, float]]:
    return [(each, probability) for each, probability in token.alternatives if each != token.id][:3]


def reading_column(reading: Reading, speaker: int, text_of: TextOf) -> Column:
    """The first answer as one speaker reads it: where it would have gone on otherwise, its own choice is put in."""
    differing = set(reading.differing(speaker))
    column = Column()
    for place, token in enumerate(reading.ids):
        text = text_of(token)
        lines = [f"token {place}: {_quoted(text)}"]
        lines += [
            f"{name}: {_percent(float(reading.probabilities[each, place]))}" for each, name in enumerate(reading.names)
        ]
        if place not in differing:
            column.add(flowing(text), "", "\n".join(lines))
            continue
        choice = text_of(int(reading.choices[speaker, place]))
        asked = [
            f"{name}: {_percent(float(reading.choice_probabilities[each, speaker, place]))}"
            for each, name in enumerate(reading.names)
        ]
        lines += [f"its own first choice {_quoted(choice)}", *asked]
        column.add(flowing(text), "differs", "\n".join(lines))
        column.add(f"[{visible(choice)}]", "instead", "\n".join(lines))
    return column


def partings_table(talk: Conversation, text_of: TextOf) -> str:
    """Where answers part, with every model's probability of every choice, as HTML; empty where they do not."""
    places = sorted({place for other in range(1, len(talk.names)) if (place := talk.parting(other)) is not None})
    return "".join(_parting(talk, place, text_of) for place in places)


def _parting(talk: Conversation, place: int, text_of: TextOf) -> str:
    said = _said(talk, place)
    choices = list(dict.fromkeys(token.id for token in said.values()))
    rows = []
    for number, token in said.items():
        cells = [(choice, _asked(said, number, choice)) for choice in choices]
        figures = "".join(
            f'<td class="wb-figure">{"<b>" if choice == token.id else ""}{_percent(p) if p is not None else "-"}'
            f"{'</b>' if choice == token.id else ''}</td>"
            for choice, p in cells
        )
        rows.append(f"<tr><td>{html.escape(talk.names[number])}</td>{figures}</tr>")
    heads = "".join(f"<th>{html.escape(_quoted(text_of(choice)))}</th>" for choice in choices)
    return (
        f'<table class="wb-token-table"><tr><th>token {place}, where the answers part</th>{heads}</tr>'
        f"{''.join(rows)}</table>"
    )


def _asked(said: dict[int, Spoken], asked: int, choice: int) -> float | None:
    """What one speaker thought of a token that some speaker chose at the same place."""
    for number, token in said.items():
        if token.id == choice:
            return token.probability if number == asked else token.others[asked]
    return None


def reading_table(reading: Reading, text_of: TextOf) -> str:
    """Where other speakers would have gone on otherwise, with both probabilities of both tokens, as HTML."""
    found = [(place, number) for number in range(len(reading.names)) for place in reading.differing(number)]
    found.sort()
    rows = "".join(_reading_row(reading, place, number, text_of) for place, number in found[:SHOWN_DIFFERENCES])
    if not rows:
        return '<div class="wb-line">Every model would have written the first answer, token by token.</div>'
    first = html.escape(reading.names[0])
    more = len(found) - SHOWN_DIFFERENCES
    rest = f'<div class="wb-line">and {more} more</div>' if more > 0 else ""
    return (
        '<table class="wb-token-table"><tr><th>token</th><th>the first answer has</th><th>model</th><th>would say</th>'
        f"<th>p of both under it</th><th>p of both under {first}</th></tr>{rows}</table>{rest}"
    )


def _reading_row(reading: Reading, place: int, number: int, text_of: TextOf) -> str:
    own, choice = reading.ids[place], int(reading.choices[number, place])
    pairs = [
        f"{_percent(float(reading.probabilities[each, place]))}, "
        f"{_percent(float(reading.choice_probabilities[each, number, place]))}"
        for each in (number, 0)
    ]
    cells = [_quoted(text_of(own)), reading.names[number], _quoted(text_of(choice))]
    words = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr><td class="wb-figure">{place}</td>{words}<td>{pairs[0]}</td><td>{pairs[1]}</td></tr>'


def _quoted(text: str) -> str:
    return f"“{visible(text)}”"


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:.1e} %"


def summary(talk: Conversation, speaker: int) -> str:
    """One line about a column: how many tokens, how fast, and where it parts."""
    answer = talk.answers[speaker]
    parts: Sequence[str] = [f"{len(answer.tokens)} tokens{', ended by itself' if answer.ended else ''}"]
    if answer.tokens_per_s is not None:
        parts = [*parts, f"{answer.tokens_per_s:.1f} tokens/s"]
    if speaker and (place := talk.parting(speaker)) is not None:
        parts = [*parts, f"parts from the first at token {place}"]
    elif speaker and answer.tokens:
        parts = [*parts, "says what the first says"]
    return "; ".join(parts)
