"""Where calibration's text comes from, and how it becomes windows of tokens. Knows nothing about models.

The texts of a source are joined by an empty line and cut into windows of exactly ``length`` tokens: a short text shares
its window with the next one, and no window is padded. No special tokens are added.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import WorkbenchError, nearest
from workbench.quantization.calibration import CalibrationWindows
from workbench.quantization.texts import BUILT_IN, SEPARATOR, offline_part, text_sha256

# Columns that hold the text, where none is named; the first that is there.
TEXT_COLUMNS = ("text", "article", "content", "document", "sentence")
# The configuration of datasets that have several, where none is named.
DEFAULT_CONFIGS = {"cnn_dailymail": "3.0.0", "abisee/cnn_dailymail": "3.0.0"} | dict.fromkeys(
    ("wikitext", "Salesforce/wikitext"), "wikitext-2-raw-v1"
)


# How long the hub may take to say that it has a dataset, before the cache is looked into.
HUB_TIMEOUT_S = 10.0
_SETTINGS = threading.Lock()  # of the `datasets` library, while a dataset is opened


class DataError(WorkbenchError):
    """A dataset or text file that calibration cannot read, or that has too little text."""


@dataclass(frozen=True)
class DatasetChoice:
    """One dataset of the ``datasets`` library.

    Attributes:
        name: on the Hugging Face hub, or a folder: saved with ``save_to_disk``, or of parquet, json or text files.
        config: the dataset's configuration; None takes :data:`DEFAULT_CONFIGS`, then the dataset's own default.
        split: which part.
        column: which column holds the text; None takes the first of :data:`TEXT_COLUMNS` that is there.
        cache_dir: where downloads are kept; None is the library's own place.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    cache_dir: str | None = None

    @classmethod
    def parse(cls, text: str, **rest: Any) -> DatasetChoice:
        """``NAME`` or ``NAME:CONFIG``; a folder that exists is a name, whatever it contains."""
        name, _, config = (text, "", "") if Path(text).exists() else text.partition(":")
        return cls(name, config or DEFAULT_CONFIGS.get(name), **rest)

    @property
    def on_hub(self) -> bool:
        """Whether the name is one of the hub: nothing of this machine has it."""
        return not Path(self.name).exists()

    @property
    def asks_hub(self) -> bool:
        """Whether the hub is asked for it: not where the person told its library to work offline."""
        import datasets

        return self.on_hub and not datasets.config.HF_HUB_OFFLINE


@dataclass(frozen=True)
class TextSource:
    """Texts in their order; read once.

    Attributes:
        name: what they are, in words; recorded in the ranges.
        texts: the texts; None stands for the built-in one, which has a part of its own for tuning.
    """

    name: str
    texts: Iterable[str] | None = None


@dataclass(frozen=True)
class WindowCounts:
    """How many windows to cut: ``samples`` for ranges and up to ``tune`` for rows, each of ``length`` tokens."""

    samples: int = 128
    length: int = 512
    tune: int = 16

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("length", 2), ("tune", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}", allowed=f"whole numbers from {least}")


def built_in() -> TextSource:
    """The built-in text, Python's language reference (:func:`workbench.quantization.texts.offline_part`)."""
    return TextSource(BUILT_IN)


def from_strings(texts: Sequence[str], name: str = "strings") -> TextSource:
    """Texts at hand."""
    return TextSource(name, texts)


def from_file(path: str | Path, column: str | None = None) -> TextSource:
    """The texts of a file: ``.jsonl`` (an object or a text a line), ``.parquet``, else one UTF-8 text.

    Args:
        path: the file.
        column: which column or key holds the text; None takes the first of :data:`TEXT_COLUMNS` that is there.

    Raises:
        DataError: the file is missing or unreadable, or has no such column; for a line of ``.jsonl``, when it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"text file {path} does not exist", fix="give the path of a text, jsonl or parquet file")
    if path.suffix == ".jsonl":
        return TextSource(path.name, _json_lines(path, column))
    if path.suffix == ".parquet":
        return TextSource(path.name, _parquet(path, column))
    if column is not None:
        raise DataError(f"column {column!r} of {path}", allowed="columns of .jsonl and .parquet files and datasets")
    try:
        return TextSource(path.name, [path.read_text(encoding="utf-8")])
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def from_dataset(choice: DatasetChoice) -> TextSource:
    """The texts of a dataset; it is downloaded where it is not there.

    Raises:
        DataError: it cannot be found, reached or read; no such configuration, split or column.
    """
    rows = open_dataset(choice)
    column = _text_column(rows.column_names, choice.column, choice.name)
    name = ":".join(filter(None, (choice.name, choice.config, choice.split, column)))
    return TextSource(name, _strings(rows[column], f"{choice.name}: column {column!r}"))


def calibration_windows(tokenizer: Any, source: TextSource, counts: WindowCounts | None = None) -> CalibrationWindows:
    """Tokens of a source. Rows for tuning come from windows that the ranges never see: what follows them in the
    source, as far as that reaches, or the built-in text's own part.

    Args:
        tokenizer: has ``encode``.
        source: the texts.
        counts: how many windows, and how long.

    Raises:
        DataError: the source holds no text, or gives fewer windows than ``counts.samples``.
    """
    counts = counts or WindowCounts()
    if source.texts is None:
        return _built_in_windows(tokenizer, source.name, counts)
    ids: list[int] = []
    digest, wanted = hashlib.sha256(), counts.samples * counts.length
    for text in source.texts:
        if not text.strip():
            continue
        if len(ids) < wanted:
            digest.update((text + SEPARATOR).encode())
        ids += _encode(tokenizer, text + SEPARATOR)
        if len(ids) >= wanted + counts.tune * counts.length:
            break
    _check_enough(source.name, len(ids), counts)
    cut = torch.tensor(ids[: len(ids) // counts.length * counts.length]).view(-1, counts.length)
    tune = cut[counts.samples : counts.samples + counts.tune]
    return CalibrationWindows(cut[: counts.samples], source.name, digest.hexdigest(), tune=tune if len(tune) else None)


def _built_in_windows(tokenizer: Any, name: str, counts: WindowCounts) -> CalibrationWindows:
    """Windows spread evenly over the parts of the built-in text."""
    text = offline_part("calibrate")
    ids, tune = _encode(tokenizer, text), _encode(tokenizer, offline_part("tune"))
    _check_enough(name, len(ids), counts)
    tune_count = min(counts.tune, len(tune) // counts.length)
    return CalibrationWindows(
        _spread(ids, counts.samples, counts.length),
        name,
        text_sha256(text),
        tune=_spread(tune, tune_count, counts.length) if tune_count else None,
    )


def _spread(ids: list[int], count: int, length: int) -> Tensor:
    stride = len(ids) // count
    return torch.tensor([ids[i * stride : i * stride + length] for i in range(count)], dtype=torch.int64)


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def _check_enough(name: str, tokens: int, counts: WindowCounts) -> None:
    if not tokens:
        raise DataError(f"{name} holds no text", fix="choose another split, column or file")
    there = tokens // counts.length
    if there < counts.samples:
        fix = f"ask for --samples {there}, a smaller --length, or give more text"
        if not there:
            fix = "ask for a smaller --length and fewer --samples, or give more text"
        raise DataError(
            f"{name} has {tokens} tokens: {there} samples of {counts.length}, but {counts.samples} were asked for",
            fix=fix,
        )


def _text_column(columns: Sequence[str], wanted: str | None, place: str) -> str:
    if wanted is not None:
        if wanted not in columns:
            hint = nearest(wanted, columns)
            raise DataError(f"{place} has no column {wanted!r}", allowed=", ".join(columns), fix=hint or None)
        return wanted
    found = [name for name in TEXT_COLUMNS if name in columns] or (list(columns) if len(columns) == 1 else [])
    if not found:
        raise DataError(
            f"{place}: which column holds the text?", allowed=", ".join(columns), fix="name one with --column"
        )
    return found[0]


def _strings(values: Iterable[Any], place: str) -> Iterator[str]:
    """The values that are there; a missing one is no text."""
    for value in values:
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(
                f"{place} holds {type(value).__name__} values", allowed="text", fix="name a column of texts"
            )
        yield value


def _json_lines(path: Path, column: str | None) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error) from error
            except ValueError as error:
                raise DataError(f"{place} is not JSON ({error})", fix="write one JSON object a line") from error
            if isinstance(value, dict):
                value = value[_text_column(list(value), column, place)]
            yield from _strings([value], place)


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no parquet file ({_sentence(error)})", fix="give another file") from error
    name = _text_column(file.schema_arrow.names, column, str(path))
    return (
        text
        for batch in file.iter_batches(columns=[name])
        for text in _strings(batch.column(0).to_pylist(), f"{path}: column {name!r}")
    )


def open_dataset(choice: DatasetChoice) -> Any:
    """A split of a dataset, as the `datasets` library gives it; downloaded where it is not there.

    Raises:
        DataError: it cannot be found, reached or read; no such configuration or split.
    """
    import datasets

    folder = Path(choice.name)
    if folder.is_file():
        raise DataError(
            f"{choice.name} is a file, not a dataset",
            fix="'calibrate' and 'convert' read it as --text, 'summarize' reads articles from .jsonl and .parquet",
        )
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            opened = datasets.load_from_disk(str(folder))
            return _split(opened, choice) if isinstance(opened, datasets.DatasetDict) else opened
        with _one_request(choice):
            return datasets.load_dataset(choice.name, choice.config, split=choice.split, cache_dir=choice.cache_dir)
    except ConnectionError as error:
        raise DataError(
            f"dataset {choice.name!r} cannot be reached, and is not in the cache",
            fix="check its name and the network, or give a folder or a file that is here",
        ) from error
    except WorkbenchError:
        raise
    except Exception as error:  # the library raises what it likes: not found, unknown configuration, unknown split
        raise DataError(f"dataset {choice.name!r} cannot be read ({_sentence(error)})", fix="choose another") from error


@contextmanager
def _one_request(choice: DatasetChoice) -> Iterator[None]:
    """Ask the hub once whether it is there, and else let the `datasets` library look into its cache only.

    By itself the library asks a hub that is out of reach six times within half a minute, and logs each of them. It is
    told by settings of its own that hold for the whole process, so one dataset is opened after the other.
    """
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    with _SETTINGS:
        verbosity, offline = hub_logging.get_verbosity(), datasets.config.HF_HUB_OFFLINE
        hub_logging.set_verbosity(logging.ERROR)
        try:
            datasets.config.HF_HUB_OFFLINE = offline or (choice.on_hub and not _hub_answers(choice.name))
            yield
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
            hub_logging.set_verbosity(verbosity)


def _hub_answers(name: str) -> bool:
    """Whether the hub says anything of a dataset, be it that there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)
    except (HfHubHTTPError, ValueError):  # an answer, or no name at all: `datasets` words both
        return True
    except Exception:  # of the HTTP library, whichever it is
        return False
    return True


def _split(opened: Any, choice: DatasetChoice) -> Any:
    if choice.split not in opened:
        hint = nearest(choice.split, opened)
        raise DataError(
            f"dataset {choice.name!r} has no split {choice.split!r}", allowed=", ".join(opened), fix=hint or None
        )
    return opened[choice.split]


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path} is not UTF-8 text ({error.reason})", fix="give a file in UTF-8")


def _sentence(error: Exception) -> str:
    """An error of another library in one line of reasonable length."""
    return " ".join(str(error).split())[:300]
