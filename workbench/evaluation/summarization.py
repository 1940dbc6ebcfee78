"""How well a model summarizes articles: greedy summaries, ROUGE with an interval over articles, and their speed.

Judges any model that continues token ids; opens none. Scores are F1 times 100 by the ``rouge-score`` package (Lin 2004)
without stemming. It drops all characters but a-z and 0-9: scores of texts in other scripts mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.perplexity import next_token_nll
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.calibration_data import DataError, DatasetChoice, open_dataset
from workbench.runtime.generate import generate
from workbench.runtime.limits import sequence_limit
from workbench.runtime.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = ("rouge1", "rouge2", "rougeL")
COLUMNS = ("article", "highlights")
# What follows the article, in the words that GPT-2 made a habit of.
ASK = "\nTL;DR:"
RESAMPLES = 2000


@dataclass(frozen=True)
class Article:
    """A text, and the summary that a person wrote of it."""

    text: str
    highlights: str


@dataclass(frozen=True)
class SummarizationOptions:
    """What is asked of a model.

    Attributes:
        output_len: most new tokens of a summary.
        max_input_len: tokens of article and request together; a longer article loses its end.
        batch_size: articles at once.
        perplexity: score the reference summaries, too.
    """

    output_len: int = 100
    max_input_len: int = 923
    batch_size: int = 1
    perplexity: bool = False

    def __post_init__(self) -> None:
        for name in ("output_len", "max_input_len", "batch_size"):
            if getattr(self, name) < 1:
                raise LimitError(f"{name} is {getattr(self, name)}", allowed="whole numbers from 1")


@dataclass(frozen=True)
class Interval:
    """A mean over articles, with a 95 % bootstrap interval (percentiles)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summaries:
    """What one model made of the articles.

    Attributes:
        texts: a summary per article.
        scores: metric -> F1 times 100 of every article.
        tokens: generated in all.
        seconds: of generation, prompts included.
        perplexity: of the reference summaries, given the articles; None when it was not asked for.
    """

    texts: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    tokens: int
    seconds: float
    perplexity: float | None = None
    rouge: Mapping[str, Interval] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rouge", {name: bootstrap(values) for name, values in self.scores.items()})

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Figures, without the texts."""
        return {
            **{name: asdict(interval) for name, interval in self.rouge.items()},
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "perplexity": self.perplexity,
        }


@dataclass(frozen=True)
class Summarizer:
    """A model as this module sees it.

    Attributes:
        generate: prompts and a number of tokens -> the new ids of each.
        nll: prompt and continuation -> mean negative log-likelihood of the continuation's tokens, in nats.
    """

    generate: Callable[[list[list[int]], int], list[list[int]]]
    nll: Callable[[list[int], list[int]], float]

    @classmethod
    def of_session(cls, session: Session) -> Summarizer:
        """A loaded checkpoint or engine."""
        return cls(
            lambda prompts, most: generate(session, prompts, most),
            lambda prompt, target: _session_nll(session, prompt, target),
        )

    @classmethod
    def of_hugging_face(cls, reference: HFReference) -> Summarizer:
        """Hugging Face's model."""
        return cls(reference.generate, lambda prompt, target: _reference_nll(reference, prompt, target))


def read_articles(
    source: str,
    most: int,
    *,
    split: str = "test",
    cache_dir: str | None = None,
    opening: Callable[[DatasetChoice], None] = lambda _: None,
) -> list[Article]:
    """The first articles of a dataset; rows without an article or a summary are left out.

    Args:
        source: ``NAME[:CONFIG]`` on the hub, a folder saved with ``save_to_disk`` or of data files, or a ``.jsonl`` or
            ``.parquet`` file; with the columns ``article`` and ``highlights``.
        most: how many to read; a dataset may have fewer.
        split: which part of a dataset; a file has none.
        cache_dir: where downloads are kept.
        opening: told a dataset before it is opened.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    path = Path(source)
    if path.suffix in (".jsonl", ".parquet"):
        columns = _file_columns(path)
    else:
        choice = DatasetChoice.parse(source, split=split, cache_dir=cache_dir)
        opening(choice)
        columns = open_dataset(choice)
    names = list(getattr(columns, "column_names", columns))
    for name in COLUMNS:
        if name not in names:
            raise DataError(
                f"{source} has no column {name!r}",
                allowed=", ".join(map(str, names)) or "no columns at all",
                fix=f"rename its columns to {' and '.join(COLUMNS)}",
            )
    pairs = zip(*(columns[name] for name in COLUMNS), strict=True)
    complete = (Article(str(text), str(highlights)) for text, highlights in pairs if text and highlights)
    articles = list(islice(complete, most))
    if not articles:
        raise DataError(f"{source} holds no article", fix="give another dataset or split")
    return articles


def _file_columns(path: Path) -> Mapping[str, Sequence[Any]]:
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{path} does not exist", fix="check the path")
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)
    except Exception as error:  # whatever the two readers raise for a broken file
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read ({reason})", fix="mend it, or give another") from error
    return {str(name): frame[name].tolist() for name in frame.columns}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, article: str, max_input_len: int) -> list[int]:
    """Article and request as ids; an article that is too long loses its end, never the request.

    Raises:
        LimitError: there is no room for any of the article.
    """
    start: list[int] = tokenizer.encode(article.strip(), verbose=False)
    ask: list[int] = tokenizer.encode(ASK, add_special_tokens=False)
    room = max_input_len - len(ask)
    if room < 1:
        raise LimitError(f"max_input_length {max_input_len}", allowed=f"more than {len(ask)}, which the request takes")
    return start[:room] + ask


def summarize(
    model: Summarizer,
    tokenizer: PreTrainedTokenizerBase,
    articles: Sequence[Article],
    options: SummarizationOptions,
    report: Reporter = silent,
) -> Summaries:
    """Summaries of ``articles`` and their scores.

    Raises:
        LimitError: a batch, prompt or output beyond the model's limits.
    """
    prompts = [prompt_ids(tokenizer, article.text, options.max_input_len) for article in articles]
    rows: list[list[int]] = []
    seconds = 0.0
    for first in range(0, len(prompts), options.batch_size):
        start = time.perf_counter()
        rows += model.generate(prompts[first : first + options.batch_size], options.output_len)
        seconds += time.perf_counter() - start
        report(ProgressEvent("summarize", len(rows), len(prompts), "articles"))
    texts = tuple(str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows)
    targets = [_target_ids(tokenizer, article.highlights, options.output_len) for article in articles]
    return Summaries(
        texts,
        rouge_scores(texts, [article.highlights for article in articles]),
        sum(map(len, rows)),
        seconds,
        _perplexity(model, prompts, targets, report) if options.perplexity else None,
    )


def rouge_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """F1 times 100 of every text, by metric."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(METRICS))
    each = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: tuple(100 * float(scores[name].fmeasure) for scores in each) for name in METRICS}


def bootstrap(values: Sequence[float]) -> Interval:
    """Mean and interval; the same values always give the same interval."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high))


def difference(ours: Summaries, theirs: Summaries, metric: str) -> Interval:
    """Ours minus theirs, article by article (a paired interval)."""
    return bootstrap([a - b for a, b in zip(ours.scores[metric], theirs.scores[metric], strict=True)])


def _target_ids(tokenizer: PreTrainedTokenizerBase, highlights: str, most: int) -> list[int]:
    ids: list[int] = tokenizer.encode(" " + highlights.strip(), add_special_tokens=False)
    return ids[:most]


def _perplexity(model: Summarizer, prompts: list[list[int]], targets: list[list[int]], report: Reporter) -> float:
    """``exp`` of the mean over all tokens of the reference summaries."""
    total = 0.0
    for done, (prompt, target) in enumerate(zip(prompts, targets, strict=True), start=1):
        total += model.nll(prompt, target) * len(target)
        report(ProgressEvent("perplexity", done, len(prompts), "articles"))
    return float(np.exp(total / sum(map(len, targets))))


def _session_nll(session: Session, prompt: list[int], target: list[int]) -> float:
    """Token by token, for a session tells only the last position's logits."""
    logits: list[Tensor] = [session.prefill([prompt])]
    logits += [session.decode(torch.tensor([token])) for token in target[:-1]]
    return _mean_nll(torch.cat([row.float().cpu() for row in logits]), target)


def _reference_nll(reference: HFReference, prompt: list[int], target: list[int]) -> float:
    logits = reference.logits(torch.tensor([prompt + target]))[0]
    return _mean_nll(logits[len(prompt) - 1 : -1], target)


def _mean_nll(logits: Tensor, target: list[int]) -> float:
    """From the logits before each token of ``target``, ``[len(target), vocab]``."""
    padded = torch.cat([logits, logits[-1:]])
    return float(next_token_nll(padded, torch.tensor([0, *target])).double().mean())


def fitting_input_len(session: Session, options: SummarizationOptions) -> int:
    """The longest prompt, no longer than asked for, that leaves a session room for the output."""
    room = sequence_limit(session.config, session.limits) - options.output_len
    return min(options.max_input_len, session.limits.max_input_len, room)
