"""Several models answer one prompt: greedily, in step, with the probabilities that their choices had.

Where two answers part for the first time, both models have read the same, so each one's probability of the other's
choice is exact; after it the contexts differ. :func:`read_along` asks every model about one text instead. Shows
nothing, and knows no notebook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from workbench.errors import LimitError, WorkbenchError
from workbench.evaluation.token_texts import token_texts
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.runtime.limits import check_output_len, check_prompts
from workbench.runtime.session import Session

ALTERNATIVES = 5


@dataclass(frozen=True, eq=False)
class Speaker:
    """A model that speaks.

    Attributes:
        name: what columns and tables call it.
        session: runs it; a generation under way in it is given up.
        precision: a key of :data:`workbench.evaluation.palette.PRECISION`, for its colour.
        reason: why it runs where it does; empty where that is plain.
    """

    name: str
    session: Session
    precision: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Prompt:
    """What the models are asked.

    Attributes:
        text: the text, or the user's message.
        system: the system's message; needs the chat template.
        chat: put the messages into the tokenizer's chat template.
    """

    text: str
    system: str = ""
    chat: bool = False

    def ids(self, tokenizer: Any) -> list[int]:
        """Token ids.

        Raises:
            WorkbenchError: an empty text, a tokenizer without a chat template, or a template that refuses the messages.
        """
        if not self.text.strip():
            raise WorkbenchError("the prompt is empty", fix="type a text")
        if not self.chat:
            return list(tokenizer.encode(self.text))
        if not has_chat_template(tokenizer):
            raise WorkbenchError("the tokenizer has no chat template", fix="ask without it")
        messages = [{"role": "system", "content": self.system}] if self.system.strip() else []
        messages.append({"role": "user", "content": self.text})
        try:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        except Exception as error:  # templates raise whatever their author chose
            reason = " ".join(str(error).split())
            raise WorkbenchError(
                f"the chat template refuses the messages ({reason})", fix="leave the system text empty"
            ) from error
        return list(ids)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer knows how its model was told who speaks."""
    return bool(getattr(tokenizer, "chat_template", None))


@dataclass(frozen=True)
class Spoken:
    """One token of an answer.

    Attributes:
        id: the token.
        probability: that its speaker gave it.
        alternatives: the speaker's most probable tokens, the first one first: (id, probability).
        others: what the other speakers gave it, where they had read the same; None elsewhere. One per speaker.
        ends: it is an end-of-sequence token, the last of its answer.
    """

    id: int
    probability: float
    alternatives: tuple[tuple[int, float], ...]
    others: tuple[float | None, ...] = ()
    ends: bool = False


@dataclass
class Answer:
    """One speaker's answer, as far as it is.

    Attributes:
        tokens: what was said.
        prefill_s, decode_s: seconds that the model took for the prompt, and for the tokens after the first.
    """

    tokens: list[Spoken] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the model itself ended it."""
        return bool(self.tokens) and self.tokens[-1].ends

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of decoding; None while there is nothing to measure."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s > 0 else None


@dataclass
class Conversation:
    """One prompt and its answers.

    Attributes:
        names: the speakers'.
        prompt: token ids.
        answers: one per speaker.
    """

    names: list[str]
    prompt: list[int]
    answers: list[Answer]

    def parting(self, speaker: int, other: int = 0) -> int | None:
        """The first place at which two answers differ; None while they do not."""
        ours, theirs = self.answers[speaker].ids, self.answers[other].ids
        for place, (one, two) in enumerate(zip(ours, theirs, strict=False)):
            if one != two:
                return place
        return None

    def differing(self, speaker: int, other: int = 0) -> list[int]:
        """Every place at which two answers have different tokens."""
        ours, theirs = self.answers[speaker].ids, self.answers[other].ids
        return [place for place, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two]

    def frame(self, tokenizer: Any) -> pd.DataFrame:
        """One row per position.

        Returns:
            position; per speaker ``id``, ``token``, ``p`` (its own probability) and, where all have read the same,
            ``p_under`` the others; ``same``: all said the same there. Columns are named ``WHAT [NAME]``.
        """
        longest = max((len(answer.tokens) for answer in self.answers), default=0)
        rows = [self._row(place, tokenizer) for place in range(longest)]
        return pd.DataFrame(rows, columns=self._columns())

    def _columns(self) -> list[str]:
        columns = ["position"]
        for name in self.names:
            columns += [f"{what} [{name}]" for what in ("id", "token", "p")]
            columns += [f"p [{name}] under [{other}]" for other in self.names if other != name]
        return [*columns, "same"]

    def _row(self, place: int, tokenizer: Any) -> dict[str, Any]:
        row: dict[str, Any] = {"position": place}
        said = [answer.tokens[place] if place < len(answer.tokens) else None for answer in self.answers]
        for name, token in zip(self.names, said, strict=True):
            if token is None:
                continue
            text = token_texts(tokenizer, [token.id])[0]
            row |= {f"id [{name}]": token.id, f"token [{name}]": text, f"p [{name}]": token.probability}
            for other, probability in zip(self.names, token.others, strict=True):
                if other != name:
                    row[f"p [{name}] under [{other}]"] = probability
        row["same"] = len({None if token is None else token.id for token in said}) == 1
        return row


def converse(
    speakers: Sequence[Speaker],
    prompt: Sequence[int],
    max_output_len: int,
    on_round: Callable[[Conversation], None] | None = None,
    report: Reporter = silent,
) -> Conversation:
    """Let every speaker go on with a prompt, token by token in turn, each with its most probable token.

    Args:
        speakers: each with a session of its own.
        prompt: token ids.
        max_output_len: most new tokens of each.
        on_round: called with the conversation so far whenever every speaker had its turn.
        report: told the rounds; whoever stops it has what was said from ``on_round``.

    Raises:
        LimitError: a prompt or an output beyond a speaker's limits.
    """
    names = distinct([speaker.name for speaker in speakers])
    for speaker in speakers:
        session = speaker.session
        check_prompts([prompt], session.config, session.limits)
        check_output_len(len(prompt), max_output_len, session.config, session.limits)
    talk = Conversation(names, list(prompt), [Answer() for _ in speakers])
    for done in range(max_output_len):
        logits = [_turn(speaker, talk, number) for number, speaker in enumerate(speakers)]
        if all(each is None for each in logits):
            break
        _take(talk, logits, speakers)
        if on_round is not None:
            on_round(talk)
        report(ProgressEvent("answer", done + 1, max_output_len, "tokens"))
    return talk


def _turn(speaker: Speaker, talk: Conversation, number: int) -> Tensor | None:
    """The log-probabilities of a speaker's next token ``[vocab]`` float32 on the CPU; None when it has ended."""
    answer, session = talk.answers[number], speaker.session
    if answer.ended:
        return None
    begun = time.perf_counter()
    logits = session.decode(torch.tensor(answer.ids[-1:])) if answer.tokens else session.prefill([talk.prompt])
    logits = logits[0].float().cpu()
    spent = time.perf_counter() - begun
    if answer.tokens:
        answer.decode_s += spent
    else:
        answer.prefill_s = spent
    return logits.log_softmax(-1)


def _take(talk: Conversation, logits: Sequence[Tensor | None], speakers: Sequence[Speaker]) -> None:
    """Add every speaker's most probable token, and what the others thought of it where they had read the same."""
    before = [answer.ids for answer in talk.answers]
    for number, own in enumerate(logits):
        if own is None:
            continue
        best = own.topk(min(ALTERNATIVES, len(own)))
        alternatives = tuple(
            (int(token), math.exp(value)) for token, value in zip(best.indices, best.values.tolist(), strict=True)
        )
        # The tie-break of topk differs from argmax's, which every other generation here uses.
        token = int(own.argmax())
        others = tuple(
            math.exp(float(theirs[token])) if theirs is not None and before[other] == before[number] else None
            for other, theirs in enumerate(logits)
        )
        ends = token in speakers[number].session.config.eos_token_ids
        spoken = Spoken(token, math.exp(float(own[token])), alternatives, others, ends)
        talk.answers[number].tokens.append(spoken)


# ---- every speaker about one text


@dataclass(frozen=True, eq=False)
class Reading:
    """What every speaker thinks of every token of one text, having read all that is before it.

    Attributes:
        names: the speakers'.
        ids: the text's tokens ``[length]``.
        probabilities: per speaker, of the text's own token ``[speakers, length]``.
        choices: per speaker, its first choice ``[speakers, length]`` int64.
        choice_probabilities: per speaker, of everybody's first choice: ``[speakers, speakers, length]``; the first axis
            is who is asked, the second whose choice it is.
    """

    names: list[str]
    ids: list[int]
    probabilities: Tensor
    choices: Tensor
    choice_probabilities: Tensor

    def differing(self, speaker: int) -> list[int]:
        """The places where a speaker would have chosen another token than the text has."""
        return [place for place, token in enumerate(self.ids) if int(self.choices[speaker, place]) != token]

    def frame(self, tokenizer: Any) -> pd.DataFrame:
        """One row per token of the text.

        Returns:
            position, id, token; per speaker ``p [NAME]`` of that token, ``choice [NAME]`` its own first choice and
            ``p choice [NAME]``; ``same``: all would choose the text's token.
        """
        texts = token_texts(tokenizer, self.ids)
        table: dict[str, Any] = {"position": range(len(self.ids)), "id": self.ids, "token": texts}
        for number, name in enumerate(self.names):
            table[f"p [{name}]"] = self.probabilities[number].numpy()
            table[f"choice [{name}]"] = token_texts(tokenizer, self.choices[number].tolist())
            table[f"p choice [{name}]"] = self.choice_probabilities[number, number].numpy()
        table["same"] = (self.choices == torch.tensor(self.ids)).all(0).numpy()
        return pd.DataFrame(table)


def read_along(
    speakers: Sequence[Speaker], prompt: Sequence[int], text: Sequence[int], report: Reporter = silent
) -> Reading:
    """Ask every speaker about a text that goes on from a prompt, token by token, whoever wrote it.

    Raises:
        LimitError: an empty text, or more than a speaker's limits allow.
    """
    if not text:
        raise LimitError("the text is empty", allowed="one token or more", fix="let a model answer first")
    scores = []
    for number, speaker in enumerate(speakers):
        rows = []
        for row in _each_score(speaker.session, prompt, text):
            rows.append(row.log_softmax(-1))
            done = number * len(text) + len(rows)
            report(ProgressEvent("read the first answer", done, len(speakers) * len(text), "tokens"))
        scores.append(torch.stack(rows))
    choices = torch.stack([each.argmax(-1) for each in scores])
    own = torch.tensor(text)
    asked = torch.stack(
        [torch.stack([each.gather(-1, chosen[:, None])[:, 0] for chosen in choices]) for each in scores]
    )
    probabilities = torch.stack([each.gather(-1, own[:, None])[:, 0] for each in scores])
    return Reading(distinct([each.name for each in speakers]), list(text), probabilities.exp(), choices, asked.exp())


def _each_score(session: Session, prompt: Sequence[int], text: Sequence[int]) -> Iterator[Tensor]:
    """Logits that a model has for each token of the text, one ``[vocab]`` float32 on the CPU after the other.

    Token by token, as it would have written it: reading all at once rounds differently, which shows where activations
    are quantized.
    """
    check_prompts([prompt], session.config, session.limits)
    check_output_len(len(prompt), len(text), session.config, session.limits)
    yield session.prefill([prompt])[0].float().cpu()
    for token in text[:-1]:
        yield session.decode(torch.tensor([token]))[0].float().cpu()


def distinct(names: Sequence[str]) -> list[str]:
    """The names, those that stand twice with a number."""
    return [
        name if list(names).count(name) == 1 else f"{name} ({list(names[: place + 1]).count(name)})"
        for place, name in enumerate(names)
    ]
