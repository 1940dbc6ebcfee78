"""The flags that say what text calibration reads and how it runs: the same for every command that may calibrate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.command import UsageError
from workbench.cli.tokenizer_flags import add_trust_flag

if TYPE_CHECKING:
    from workbench.quantization.calibration_data import DatasetChoice, TextSource


def add_text_flags(group: Any) -> None:
    """Which text, and how much of it; ``group`` is a parser's argument group."""
    group.add_argument("--dataset", metavar="NAME[:CONFIG]", help="dataset of the hub (cnn_dailymail), or a folder")
    group.add_argument("--text", type=Path, metavar="FILE", help="text, .jsonl or .parquet file instead")
    group.add_argument("--column", help="column that holds the text (default: text, article ..., what is there)")
    group.add_argument("--split", help="part of the dataset (default: train)")
    group.add_argument("--dataset_dir", metavar="DIR", help="where downloads are kept")
    group.add_argument("--samples", type=int, default=128, help="windows of tokens to see (default: 128)")
    group.add_argument("--length", type=int, default=512, help="tokens in each (default: 512)")
    add_trust_flag(group)


def add_pace_flags(group: Any) -> None:
    """Where it runs, and how many windows at once."""
    group.add_argument("--batch", type=int, default=8, help="windows that run together (default: 8)")
    group.add_argument("--chunk", type=int, default=32, help="windows after which progress is saved (default: 32)")
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def check_text_flags(args: argparse.Namespace) -> None:
    """Refuse flags that speak of a text which is not chosen.

    Raises:
        UsageError: there are some.
    """
    if args.dataset is not None and args.text is not None:
        raise UsageError("--dataset and --text are both given", fix="give one of them")
    if args.column is not None and args.dataset is None and args.text is None:
        raise UsageError("--column without a text", fix="give --dataset or --text, too")
    for flag in ("split", "dataset_dir"):
        if getattr(args, flag) is not None and args.dataset is None:
            raise UsageError(f"--{flag} without a dataset", fix="give --dataset, too")


def tell_of_the_hub(choice: DatasetChoice) -> None:
    """Say that somebody elsewhere is asked, which may take a while."""
    if choice.asks_hub:
        print(f"asking the hub for {choice.name}", flush=True)


def text_paths(args: argparse.Namespace) -> list[Path]:
    """What is read of this machine for the text: a file, or a dataset's folder."""
    paths = [] if args.text is None else [args.text]
    if args.dataset is not None:
        from workbench.quantization.calibration_data import DatasetChoice

        paths.append(Path(DatasetChoice.parse(args.dataset).name))
    return [path for path in paths if path.exists()]


def text_source(args: argparse.Namespace) -> TextSource:
    """The texts that the flags name.

    Raises:
        DataError: they cannot be read.
    """
    from workbench.quantization import calibration_data as data

    if args.dataset is not None:
        rest = {"split": args.split or "train", "column": args.column, "cache_dir": args.dataset_dir}
        choice = data.DatasetChoice.parse(args.dataset, **rest)
        tell_of_the_hub(choice)
        return data.from_dataset(choice)
    return data.built_in() if args.text is None else data.from_file(args.text, args.column)
