"""Summaries: prompts, scores, intervals, perplexity, and the datasets that they are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.summarization import (
    ASK,
    Article,
    Interval,
    Summaries,
    SummarizationOptions,
    Summarizer,
    bootstrap,
    difference,
    fitting_input_len,
    prompt_ids,
    read_articles,
    rouge_scores,
    summarize,
)
from workbench.quantization.calibration_data import DataError
from workbench.recipe import BuildLimits
from workbench.runtime.session import SessionOptions, TorchSession

ROWS = [
    {"article": "one two three", "highlights": "one"},
    {"article": "", "highlights": "nothing to summarize"},
    {"article": "four five", "highlights": "four"},
]


class Words:
    """A tokenizer of bytes."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode()


@pytest.fixture
def tokenizer() -> Any:
    return Words()


def parrot(says: str) -> Summarizer:
    """A model that says the same of everything, and is as sure of each token as one in four."""
    return Summarizer(lambda prompts, most: [list(says.encode()[:most]) for _ in prompts], lambda *_: math.log(4))


@pytest.fixture
def session(random_model_dir: Callable[..., Path]) -> TorchSession:
    source = HFCheckpoint.open(random_model_dir(vocab=256))
    options = SessionOptions(torch.float32, "cpu", BuildLimits(2, 40, 9))
    return TorchSession(source.config, source.weights(torch.float32), options)


# ---- articles


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_articles_of_files_and_folders(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"articles.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif kind == "parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        import datasets

        datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(path))
    expected = [Article("one two three", "one"), Article("four five", "four")]
    assert read_articles(str(path), 20) == expected
    assert read_articles(str(path), 1) == expected[:1]


def test_what_holds_no_articles(tmp_path: Path) -> None:
    path = tmp_path / "articles.jsonl"
    with pytest.raises(DataError, match=r"articles\.jsonl does not exist; check the path"):
        read_articles(str(path), 1)
    path.write_text('{"article": "a", "summary": "b"}\n')
    with pytest.raises(DataError, match="has no column 'highlights'; allowed: article, summary; rename its columns"):
        read_articles(str(path), 1)
    path.write_text('{"article": "", "highlights": "b"}\n')
    with pytest.raises(DataError, match="holds no article; give another dataset or split"):
        read_articles(str(path), 1)
    path.write_text("{not json\n")
    with pytest.raises(DataError, match=r"cannot be read \(.*\); mend it, or give another"):
        read_articles(str(path), 1)
    (tmp_path / "articles.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"articles\.parquet cannot be read"):
        read_articles(str(tmp_path / "articles.parquet"), 1)


# ---- prompts and scores


def test_a_long_article_loses_its_end_and_keeps_the_request(tokenizer: Any) -> None:
    assert bytes(prompt_ids(tokenizer, " abcdef ", 100)) == b"abcdef" + ASK.encode()
    assert bytes(prompt_ids(tokenizer, "abcdef", len(ASK) + 2)) == b"ab" + ASK.encode()
    with pytest.raises(LimitError, match="max_input_length 3; allowed: more than 7, which the request takes"):
        prompt_ids(tokenizer, "abcdef", 3)


def test_rouge_is_worked_out_by_hand() -> None:
    scores = rouge_scores(["the cat sat", "dog"], ["the cat lay down", "Dog."])
    # Two of three words and two of four: F1 = 2 * (2/3) * (2/4) / (2/3 + 2/4) = 4/7; one of two and one of three pairs.
    assert scores["rouge1"] == pytest.approx((400 / 7, 100))
    assert scores["rouge2"] == pytest.approx((40, 0))
    assert scores["rougeL"] == pytest.approx((400 / 7, 100))


def test_an_interval_holds_the_mean_and_narrows_with_more_articles() -> None:
    few, many = bootstrap([0.0, 10.0, 20.0]), bootstrap([0.0, 10.0, 20.0] * 30)
    assert few.mean == many.mean == 10
    assert few.low <= many.low < 10 < many.high <= few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * math.sqrt(200 / 3 / 90), rel=0.15)
    assert bootstrap([0.0, 10.0, 20.0]) == few
    assert bootstrap([5.0, 5.0]) == Interval(5, 5, 5)


def test_a_difference_is_paired() -> None:
    def made(scores: tuple[float, ...]) -> Summaries:
        return Summaries(("",) * 3, {"rouge1": scores}, 1, 1.0)

    assert difference(made((1.0, 50.0, 90.0)), made((0.0, 49.0, 89.0)), "rouge1") == Interval(1, 1, 1)


def test_a_model_is_judged(tokenizer: Any) -> None:
    articles = [Article("the cat sat on the mat", "the cat"), Article("a dog", "dog")]
    options = SummarizationOptions(output_len=7, batch_size=2, perplexity=True)
    judged = summarize(parrot("the cat!"), tokenizer, articles, options)
    assert judged.texts == ("the cat", "the cat")
    assert judged.tokens == 14
    assert judged.rouge["rouge1"].mean == 50
    assert judged.perplexity == pytest.approx(4)
    assert judged.tokens_per_s == pytest.approx(14 / judged.seconds)
    assert judged.to_dict()["rouge1"]["mean"] == 50


@pytest.mark.parametrize("name", ["output_len", "max_input_len", "batch_size"])
def test_numbers_from_one(name: str) -> None:
    with pytest.raises(LimitError, match=f"{name} is 0; allowed: whole numbers from 1"):
        SummarizationOptions(**{name: 0})


# ---- models


def test_a_session_and_hugging_face_agree(session: TorchSession, random_model_dir: Callable[..., Path]) -> None:
    reference = Summarizer.of_hugging_face(HFReference.open(random_model_dir(vocab=256)))
    ours = Summarizer.of_session(session)
    prompts = [list(b"an article"), list(b"another one")]
    assert ours.generate(prompts, 5) == reference.generate(prompts, 5)
    for target in (list(b"and its"), [7]):
        assert ours.nll(prompts[0], target) == pytest.approx(reference.nll(prompts[0], target), rel=1e-4)
    assert ours.nll(prompts[0], [1, 2]) != pytest.approx(ours.nll(prompts[0], [2, 1]), rel=1e-3)


def test_prompts_leave_a_session_room_for_the_output(session: TorchSession) -> None:
    assert fitting_input_len(session, SummarizationOptions(output_len=9, max_input_len=923)) == 40
    assert fitting_input_len(session, SummarizationOptions(output_len=9, max_input_len=20)) == 20
    assert fitting_input_len(session, SummarizationOptions(output_len=19)) == 30
