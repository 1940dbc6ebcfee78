"""Where calibration's text comes from: every kind of source, the windows cut from it, and every refusal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from pyarrow import parquet

from workbench.quantization import calibration_data
from workbench.quantization.calibration_data import (
    HUB_TIMEOUT_S,
    DataError,
    DatasetChoice,
    TextSource,
    WindowCounts,
    built_in,
    calibration_windows,
    from_dataset,
    from_file,
    from_strings,
    open_dataset,
)
from workbench.quantization.texts import offline_part, text_sha256

TEXTS = [f"text {number}: " + "abcdefgh " * number for number in range(12)]


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        assert not add_special_tokens
        assert not verbose
        return [ord(letter) for letter in text]


def words(windows: torch.Tensor | None) -> str:
    assert windows is not None
    return "".join(map(chr, windows.flatten().tolist()))


def texts_of(source: TextSource) -> list[str]:
    assert source.texts is not None
    return list(source.texts)


def test_short_texts_share_windows_and_none_is_padded() -> None:
    data = calibration_windows(Letters(), from_strings(TEXTS), WindowCounts(samples=10, length=50, tune=3))
    joined = "".join(text + "\n\n" for text in TEXTS)
    assert data.ranges.shape == (10, 50)
    assert data.ranges.dtype == torch.int64
    assert words(data.ranges) == joined[:500]
    assert words(data.tune) == joined[500:650]
    assert data.dataset == "strings"


def test_samples_and_length_are_honoured_and_the_hash_is_of_the_text_that_was_used() -> None:
    few = calibration_windows(Letters(), from_strings(TEXTS), WindowCounts(samples=2, length=7, tune=0))
    assert few.ranges.shape == (2, 7)
    assert few.tune is None
    assert few.text_sha256 == hashlib.sha256((TEXTS[0] + "\n\n" + TEXTS[1] + "\n\n").encode()).hexdigest()


def test_no_more_text_is_read_than_needed() -> None:
    def endless() -> Any:
        while True:
            yield "some words"

    data = calibration_windows(Letters(), TextSource("endless", endless()), WindowCounts(5, 9, 2))
    assert data.ranges.shape == (5, 9)


def test_rows_come_from_the_windows_that_are_left() -> None:
    some = calibration_windows(Letters(), from_strings(["x" * 58]), WindowCounts(samples=4, length=10, tune=16))
    assert some.tune is not None
    assert some.tune.shape == (2, 10)
    none = calibration_windows(Letters(), from_strings(["x" * 46]), WindowCounts(samples=4, length=10, tune=16))
    assert none.tune is None


def test_the_built_in_text_gives_windows_of_its_own_parts() -> None:
    data = calibration_windows(Letters(), built_in(), WindowCounts(samples=20, length=300, tune=4))
    assert data.dataset == "built-in text"
    assert data.text_sha256 == text_sha256(offline_part("calibrate"))
    for window in data.ranges:
        assert words(window) in offline_part("calibrate")
    for window in data.tune:
        assert words(window) in offline_part("tune")
    assert words(data.ranges[-1]) in offline_part("calibrate")[-len(offline_part("calibrate")) // 20 - 300 :]


def test_files_of_every_kind_give_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS) + "\n\n")
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    parquet.write_table(pyarrow.table({"id": range(12), "article": TEXTS}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("one\n\ntwo", encoding="utf-8")
    for name in ("a.jsonl", "b.jsonl", "c.parquet"):
        source = from_file(tmp_path / name)
        assert source.name == name
        assert texts_of(source) == TEXTS
    assert texts_of(from_file(tmp_path / "a.jsonl", "text")) == TEXTS
    assert texts_of(from_file(tmp_path / "c.parquet", "article")) == TEXTS
    assert texts_of(from_file(tmp_path / "d.txt")) == ["one\n\ntwo"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset saved to disk, with two splits and two columns."""
    both = {"title": ["t"] * 12, "article": TEXTS}
    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(both), "test": datasets.Dataset.from_dict({"article": TEXTS[:2]})}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_datasets_on_disk_by_split_and_column(folder: Path, tmp_path: Path) -> None:
    choice = DatasetChoice.parse(str(folder))
    assert choice.config is None
    source = from_dataset(choice)
    assert texts_of(source) == TEXTS
    assert source.name == f"{folder}:train:article"
    assert texts_of(from_dataset(DatasetChoice(str(folder), split="test"))) == TEXTS[:2]
    assert texts_of(from_dataset(DatasetChoice(str(folder), column="title"))) == ["t"] * 12
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "single"))
    assert texts_of(from_dataset(DatasetChoice(str(tmp_path / "single")))) == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_folders_of_files_are_datasets(tmp_path: Path, kind: str) -> None:
    table = datasets.Dataset.from_dict({"text": TEXTS})
    (tmp_path / "data").mkdir()
    getattr(table, f"to_{kind}")(str(tmp_path / "data" / f"train.{kind}"))
    choice = DatasetChoice(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert texts_of(from_dataset(choice)) == TEXTS
    with pytest.raises(
        DataError, match=r"cannot be read \(Unknown split \"validation\"\. Should be one of \['train'\]"
    ):
        from_dataset(DatasetChoice(choice.name, split="validation", cache_dir=choice.cache_dir))


def test_names_carry_configurations() -> None:
    assert DatasetChoice.parse("cnn_dailymail").config == "3.0.0"
    assert DatasetChoice.parse("cnn_dailymail:2.0.0") == DatasetChoice("cnn_dailymail", "2.0.0")
    assert DatasetChoice.parse("wikitext").config == "wikitext-2-raw-v1"
    assert DatasetChoice.parse("other", split="test") == DatasetChoice("other", None, "test")


def test_a_folder_with_a_colon_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert DatasetChoice.parse(str(tmp_path / "a:b")).name == str(tmp_path / "a:b")


def test_missing_values_are_no_text(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "gaps.parquet")
    assert texts_of(from_file(tmp_path / "gaps.parquet")) == ["a", "b"]


def refuses(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_empty_datasets_are_refused(texts: list[str]) -> None:
    refuses("strings holds no text; choose another split", lambda: calibration_windows(Letters(), from_strings(texts)))


def test_fewer_samples_than_asked_says_how_many_there_are() -> None:
    counts = WindowCounts(samples=8, length=10)
    refuses(
        "strings has 62 tokens: 6 samples of 10, but 8 were asked for; ask for --samples 6, a smaller --length",
        lambda: calibration_windows(Letters(), from_strings(["x" * 60]), counts),
    )
    refuses(
        "0 samples of 10, but 8 were asked for; ask for a smaller --length and fewer --samples, or give",
        lambda: calibration_windows(Letters(), from_strings(["x"]), counts),
    )
    refuses("but 9999 were asked for", lambda: calibration_windows(Letters(), built_in(), WindowCounts(samples=9999)))


@pytest.mark.parametrize(("name", "least"), [("samples", 1), ("length", 2), ("tune", 0)])
def test_impossible_counts_are_refused(name: str, least: int) -> None:
    refuses(f"{name} is {least - 1}; allowed: whole numbers from {least}", lambda: WindowCounts(**{name: least - 1}))


def test_columns_that_are_not_there_are_refused(folder: Path, tmp_path: Path) -> None:
    refuses(
        "has no column 'artcle'; allowed: title, article; did you mean 'article'?",
        lambda: from_dataset(DatasetChoice(str(folder), column="artcle")),
    )
    parquet.write_table(pyarrow.table({"a": ["x"], "b": ["y"]}), tmp_path / "ab.parquet")
    refuses("which column holds the text?; allowed: a, b; name one", lambda: from_file(tmp_path / "ab.parquet"))
    refuses("has no column 'c'; allowed: a, b", lambda: from_file(tmp_path / "ab.parquet", "c"))
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"body": "b", "id": 1}\n')
    refuses("line 2: which column holds the text?", lambda: texts_of(from_file(tmp_path / "x.jsonl")))
    refuses("line 1 has no column 'body'; allowed: text", lambda: texts_of(from_file(tmp_path / "x.jsonl", "body")))
    (tmp_path / "x.txt").write_text("words")
    refuses("columns of .jsonl and .parquet files and datasets", lambda: from_file(tmp_path / "x.txt", "text"))


def test_columns_without_text_are_refused(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "n.parquet")
    refuses("column 'text' holds int values; allowed: text", lambda: texts_of(from_file(tmp_path / "n.parquet")))
    (tmp_path / "n.jsonl").write_text("3\n")
    refuses("line 1 holds int values", lambda: texts_of(from_file(tmp_path / "n.jsonl")))


def test_splits_that_are_not_there_are_refused(folder: Path) -> None:
    refuses(
        "has no split 'tset'; allowed: train, test; did you mean 'test'?",
        lambda: from_dataset(DatasetChoice(str(folder), split="tset")),
    )


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    refuses("none.txt does not exist; give the path", lambda: from_file(tmp_path / "none.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    refuses("bytes.txt is not UTF-8 text", lambda: from_file(tmp_path / "bytes.txt"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    refuses("bad.jsonl line 2 is not JSON", lambda: texts_of(from_file(tmp_path / "bad.jsonl")))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"text": "\xff"}')
    refuses("bytes.jsonl is not UTF-8 text", lambda: texts_of(from_file(tmp_path / "bytes.jsonl")))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    refuses("bad.parquet is no parquet file", lambda: from_file(tmp_path / "bad.parquet"))


def test_datasets_that_cannot_be_reached_are_refused() -> None:
    """Tests run offline, so no name of the hub can be."""
    refuses(
        "dataset 'cnn_dailymail' cannot be reached, and is not in the cache; check its name and the network, or give",
        lambda: from_dataset(DatasetChoice.parse("cnn_dailymail")),
    )


@pytest.mark.parametrize(
    ("told", "offline"),
    [(None, False), (ValueError("no name"), False), (OSError("no route"), True), (RuntimeError("TLS"), True)],
)
def test_the_hub_is_asked_once_before_the_library_asks_it_again_and_again(
    monkeypatch: pytest.MonkeyPatch, told: Exception | None, offline: bool
) -> None:
    asked: list[tuple[str, float]] = []
    seen: list[tuple[bool, int]] = []

    def dataset_info(_: object, name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        if told is not None:
            raise told

    def load_dataset(*_: object, **__: object) -> None:
        seen.append((datasets.config.HF_HUB_OFFLINE, hub_logging.get_verbosity()))
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    before = hub_logging.get_verbosity()
    refuses("cannot be reached", lambda: from_dataset(DatasetChoice("some/name")))
    assert asked == [("some/name", HUB_TIMEOUT_S)]
    assert seen == [(offline, logging.ERROR)]
    assert (datasets.config.HF_HUB_OFFLINE, hub_logging.get_verbosity()) == (False, before)


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda _, name, **__: asked.append(name))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refuses("cannot be reached", lambda: from_dataset(DatasetChoice("some/name")))
    assert asked == []
    assert not DatasetChoice("some/name").asks_hub


def test_an_answer_that_there_is_none_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_info(*_: object, **__: object) -> None:
        raise HfHubHTTPError.__new__(HfHubHTTPError)

    seen: list[bool] = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: seen.append(datasets.config.HF_HUB_OFFLINE))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    open_dataset(DatasetChoice("some/name"))
    assert seen == [False]


def test_settings_of_the_library_are_as_before_when_two_datasets_were_opened_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = threading.Barrier(2)

    def load_dataset(*_: object, **__: object) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # neither lets go before the other has come, if it can

    monkeypatch.setattr(calibration_data, "_hub_answers", lambda _: False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    threads = [threading.Thread(target=open_dataset, args=(DatasetChoice(name),)) for name in ("a/b", "c/d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_folder_is_no_name_of_the_hub(folder: Path) -> None:
    assert DatasetChoice("some/name").on_hub
    assert not DatasetChoice(str(folder)).on_hub


def test_folders_that_are_no_datasets_are_refused(tmp_path: Path) -> None:
    refuses(f"dataset '{tmp_path}' cannot be read", lambda: from_dataset(DatasetChoice(str(tmp_path))))
