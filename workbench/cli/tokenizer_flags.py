"""The flag of every command that opens a tokenizer: whether the folder's own code may run."""

from __future__ import annotations

import argparse


def add_trust_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--trust_remote_code``, off unless given."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the tokenizer's own Python code from its folder, with all your rights (default: never)",
    )
