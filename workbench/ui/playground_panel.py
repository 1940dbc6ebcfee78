"""The playground: a prompt, and two or three models that answer it side by side. Generates nothing itself."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from workbench.bench.bench import Bench
from workbench.bench.job import Job
from workbench.bench.models import HUGGING_FACE, KEPT_OPEN, ModelChoice
from workbench.errors import LimitError
from workbench.evaluation.palette import PRECISION
from workbench.evaluation.side_by_side import Conversation, Prompt, Reading, Speaker, converse, read_along
from workbench.evaluation.token_texts import token_texts
from workbench.progress import Reporter
from workbench.runtime.tokenizer import offers_chat_template
from workbench.ui.chart import Axis, Chart, Line, Rule, draw
from workbench.ui.job_panel import JobPanel
from workbench.ui.limited_number import POSITIONS, LimitedInt
from workbench.ui.model_chooser import ModelChooser
from workbench.ui.panel import Panel, from_user, shows_errors
from workbench.ui.playground_marks import (
    answer_column,
    partings_table,
    reading_column,
    reading_table,
    summary,
)
from workbench.ui.token_text import TokenText
from workbench.ui.widget_tree import close_tree

UPDATES_PER_SECOND = 6
_NAMES = ("First", "Second", "Third")
# A tooltip may reach out of its column.
_UNCUT = {"overflow": "visible"}
ANSWERS, ALONG = "their own answers", "along the first answer"
_LEGENDS = {
    ANSWERS: '<span class="wb-legend-first">framed</span>: where answers part for the first time, all had read the '
    'same, so every probability is exact; <span class="wb-legend-differs">dotted</span>: later '
    "differences, after different texts. Point at a token for the probabilities.",
    ALONG: 'Every model read the first answer. <span class="wb-legend-differs">dotted</span>: it would have said '
    '<span class="wb-legend-instead">[this]</span> instead. Point at a token for the probabilities.',
}
_NOT_READ = (
    '<div class="wb-line">Not every model has read the first answer; if that was stopped, press Generate again.</div>'
)


@dataclass(frozen=True)
class _Asked:
    """What was chosen when the button was pressed."""

    prompt: Prompt
    choices: tuple[ModelChoice, ...]
    max_tokens: int


@dataclass(frozen=True)
class _Named:
    """What is shown of a speaker. Not its session: a panel keeps no model in memory."""

    name: str
    precision: str
    reason: str

    @classmethod
    def of(cls, speaker: Speaker) -> _Named:
        return cls(speaker.name, speaker.precision, speaker.reason)


class _ColumnBox(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A model's name over its text."""

    def __init__(self, number: int) -> None:
        self.head, self.text = ipywidgets.HTML(), TokenText(f"answer {number + 1}")
        self.text.layout.width = "100%"
        super().__init__([self.head, self.text], layout={"flex": "1 1 300px", "min_width": "260px", **_UNCUT})
        self.add_class("wb-answer")

    def name(self, speaker: _Named, words: str) -> None:
        """Show whose text it is, in the colour of its precision."""
        swatch = f'<span class="wb-swatch" style="background:{PRECISION.get(speaker.precision, "transparent")}"></span>'
        reason = f" &middot; {html.escape(speaker.reason)}" if speaker.reason else ""
        self.head.value = (
            f'<div class="wb-line">{swatch} <b>{html.escape(speaker.name)}</b><br>{html.escape(words)}{reason}</div>'
        )
        self.text.label = f"answer of {speaker.name}"


class PlaygroundPanel(Panel):
    """Two or three models answer one prompt, token by token in turn; where they differ is marked.

    Args:
        bench: whose model.
        speakers: two or three choices (:data:`workbench.bench.models.ModelChoice`); none: Hugging Face and the recipe.

    Attributes:
        prompt, system, chat, max_tokens: the widgets of the question; ``.value`` is what they hold.
        choosers: the menus of models.
        view: "their own answers", or "along the first answer", whose every token all models are asked about.
        conversation: what was said; None before.
        reading: every model about the first answer; None before it is whole.
        job: the generation; :meth:`generate` starts it.

    Raises:
        LimitError: one model alone, or more than can be open at once.
    """

    def __init__(self, bench: Bench, speakers: Sequence[ModelChoice] = ()) -> None:
        chosen = list(speakers) or [HUGGING_FACE, None]
        if not 2 <= len(chosen) <= KEPT_OPEN:
            raise LimitError(f"{len(chosen)} models", allowed=f"2 to {KEPT_OPEN}", fix="name as many")
        self.bench = bench
        self.conversation: Conversation | None = None
        self.reading: Reading | None = None
        self._speakers: list[_Named] = []
        self._texts: dict[int, str] = {}
        self._shown_at, self._busy = 0.0, False
        self._make_question(bench, chosen)
        self.job = Job("answer", self._work, bench.jobs)
        self._job_panel = JobPanel(self.job, action="Generate", next_action="Generate")
        self._columns = [_ColumnBox(number) for number in range(KEPT_OPEN)]
        self.view = ipywidgets.ToggleButtons(
            options=[ANSWERS, ALONG], tooltips=["each model's own text", "one text for all"]
        )
        self.view.style.button_width = "auto"
        self._legend, self._table = ipywidgets.HTML(), ipywidgets.HTML()
        self._answers = ipywidgets.HBox([], layout={"flex_flow": "row wrap", "width": "100%", **_UNCUT})
        self._result = ipywidgets.VBox(
            [self.view, self._legend, self._answers, self._table], layout={"display": "none", **_UNCUT}
        )
        super().__init__([*self._question(), self._job_panel, self._result], "wb-playground")
        self.view.observe(self._on_view, "value")
        self.watch(self.job, self._on_job, "state")

    def _make_question(self, bench: Bench, chosen: Sequence[ModelChoice]) -> None:
        wide = {"width": "99%"}
        words: dict[str, Any] = {"style": {"description_width": "initial"}}
        self.prompt = ipywidgets.Textarea(
            "Why is the sky blue?",
            description="Prompt",
            rows=3,
            layout=wide,
            style={"description_width": "60px"},
        )
        self.system = ipywidgets.Text(
            description="System", placeholder="optional", layout=wide, style={"description_width": "60px"}
        )
        templated = offers_chat_template(bench.model_dir)
        self.chat = ipywidgets.Checkbox(
            templated,
            description="chat template" if templated else "chat template (the tokenizer has none)",
            disabled=not templated,
            indent=False,
            layout={"width": "auto"},
        )
        longest = bench.config.max_position_embeddings
        self.max_tokens = LimitedInt(
            max(1, min(64, longest - 1)),
            1,
            longest,
            POSITIONS,
            description="Most new tokens",
            layout={"width": "200px"},
            **words,
        )
        self.choosers = [ModelChooser(bench, name, choice) for name, choice in zip(_NAMES, chosen, strict=False)]
        self._more = ipywidgets.Button(
            description="one more model", icon="plus", tooltip="compare three", layout={"width": "auto"}
        )
        self._more.on_click(self._on_more)
        self._fewer = ipywidgets.Button(
            description="one model less", icon="minus", tooltip="take the third model out", layout={"width": "auto"}
        )
        self._fewer.on_click(self._on_fewer)
        self.chat.observe(self._on_chat, "value")
        self.system.disabled = not self.chat.value

    def _question(self) -> list[ipywidgets.Widget]:
        wrap = {"flex_flow": "row wrap"}
        self._models = ipywidgets.HBox(layout=wrap)
        self._lay_out_models()
        options = ipywidgets.HBox([self.chat, self.max_tokens.row], layout=wrap)
        return [self.prompt, self.system, options, self._models]

    def _lay_out_models(self) -> None:
        room = len(self.choosers) < KEPT_OPEN
        self._more.layout.display, self._fewer.layout.display = ("", "none") if room else ("none", "")
        self._models.children = (*self.choosers, self._more, self._fewer)

    # ---- what a user goes on with in code

    @property
    def frame(self) -> pd.DataFrame:
        """One row per position: every model's token and probabilities, or what each thinks of the first answer."""
        if self.view.value == ALONG and self.reading is not None:
            return self.reading.frame(self.bench.tokenizer)
        return pd.DataFrame() if self.conversation is None else self.conversation.frame(self.bench.tokenizer)

    @property
    def figure(self) -> Figure | None:
        """The probability of every token that was said, a line per model; a rule where the answers part."""
        talk = self.conversation
        if talk is None:
            return None
        lines = [
            Line(
                range(len(answer.tokens)),
                [token.probability for token in answer.tokens],
                speaker.name,
                PRECISION.get(speaker.precision, ""),
                marker="os^"[number],
            )
            for number, (speaker, answer) in enumerate(zip(self._speakers, talk.answers, strict=True))
        ]
        partings = {place for number in range(1, len(talk.names)) if (place := talk.parting(number)) is not None}
        rules = [Rule("x", place, "the answers part") for place in sorted(partings)]
        axes = (Axis("token of the answer"), Axis("probability of the token", low=0.0, high=1.0))
        return draw([Chart("How sure the models were", *axes, [*lines, *rules], width=1000)])

    def generate(self) -> Job:
        """Let the chosen models answer, as the button does; the job's result is the conversation."""
        return self.job.start()

    def close(self) -> None:
        # A panel whose construction failed is closed as well, when its memory is freed.
        job: Job | None = getattr(self, "job", None)
        if job is not None:
            job.stop()
        super().close()

    def __repr__(self) -> str:
        if self.conversation is None:
            return "PlaygroundPanel(nothing said yet)"
        said = "; ".join(
            f"{speaker.name}: {''.join(map(self._text_of, answer.ids))!r}"
            for speaker, answer in zip(self._speakers, self.conversation.answers, strict=True)
        )
        return f"PlaygroundPanel({said})"

    # ---- the user's doing

    @from_user
    def _on_chat(self, change: Any) -> None:
        self.system.disabled = not change["new"]

    @from_user
    def _on_more(self, _button: Any) -> None:
        self.choosers.append(ModelChooser(self.bench, _NAMES[len(self.choosers)], None))
        self._lay_out_models()

    @from_user
    def _on_fewer(self, _button: Any) -> None:
        taken = self.choosers.pop()
        self._lay_out_models()
        close_tree(taken)

    @from_user
    def _on_view(self, _change: Any) -> None:
        self._show()

    @shows_errors
    def _on_job(self, change: Any) -> None:
        if change["new"] == "waiting":
            # What stands there when the button is pressed counts, whatever happens until the job's turn.
            prompt = Prompt(self.prompt.value, self.system.value if self.chat.value else "", self.chat.value)
            choices = tuple(self.bench.recipe if each.choice is None else each.choice for each in self.choosers)
            self._asked = _Asked(prompt, choices, self.max_tokens.value)

    # ---- the job

    def _work(self, report: Reporter) -> Conversation:
        asked = self._asked
        ids = asked.prompt.ids(self.bench.tokenizer)
        speakers = self.bench.models.speakers(asked.choices, report)
        self._begin([_Named.of(speaker) for speaker in speakers])
        try:
            talk = converse(speakers, ids, asked.max_tokens, self._on_round, report)
        finally:
            self._busy = False
            self._show()  # what was said before a stop stays
        self.reading = read_along(speakers, ids, talk.answers[0].ids, report)
        self._show()
        return talk

    def _begin(self, speakers: list[_Named]) -> None:
        self._speakers, self.conversation, self.reading, self._busy = speakers, None, None, True
        with self.showing():
            self.view.value = ANSWERS
            self._answers.children = tuple(self._columns[: len(speakers)])
            for column, speaker in zip(self._columns, speakers, strict=False):
                column.name(speaker, "reading the prompt")
                column.text.show([], busy=True)
            self._table.value = ""
            self._result.layout.display = ""
        for chooser in self.choosers:
            chooser.refresh()

    def _on_round(self, talk: Conversation) -> None:
        self.conversation = talk
        now = time.monotonic()
        if now - self._shown_at > 1 / UPDATES_PER_SECOND:
            self._shown_at = now
            self._show()

    # ---- what is shown

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = token_texts(self.bench.tokenizer, [token])[0]
        return self._texts[token]

    @shows_errors
    def _show(self) -> None:
        talk, reading = self.conversation, self.reading
        along = self.view.value == ALONG
        self._legend.value = f'<div class="wb-line">{_LEGENDS[self.view.value]}</div>'
        if talk is None:
            return
        for number, (box, speaker) in enumerate(zip(self._columns, self._speakers, strict=False)):
            box.name(speaker, summary(talk, number))
            if along and reading is None:
                box.text.show([])
                continue
            column = (
                reading_column(reading, number, self._text_of)
                if along and reading is not None
                else answer_column(talk, number, self._text_of)
            )
            ended = talk.answers[number].ended
            box.text.show(column.texts, marks=column.marks, tips=column.tips, busy=self._busy and not ended)
        if not along:
            self._table.value = partings_table(talk, self._text_of)
        elif reading is not None:
            self._table.value = reading_table(reading, self._text_of)
        else:
            self._table.value = _NOT_READ
