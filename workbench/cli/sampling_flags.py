"""The flags of ``run`` that say how tokens are chosen and where a text ends, in the original's names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from workbench.cli.command import UsageError

if TYPE_CHECKING:
    from workbench.runtime.sampling import SamplingOptions
    from workbench.runtime.tokenizer import Tokenizer

# Any of these asks for draws: what is not given then sets no limit.
_DRAWING = ("temperature", "top_k", "top_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of :class:`~workbench.runtime.sampling.SamplingOptions`, and those that end a text."""
    group = parser.add_argument_group("sampling (default: the most probable token, always)")
    group.add_argument("--temperature", type=float, metavar="T", help="divides the logits; 0 is greedy (default: 1)")
    group.add_argument("--top_k", type=int, metavar="K", help="draw from the K most probable; 0 for all, 1 is greedy")
    group.add_argument("--top_p", type=float, metavar="P", help="draw from the fewest tokens of this probability")
    group.add_argument("--random_seed", type=int, metavar="N", help="of the draws (default: 0)")
    group.add_argument(
        "--repetition_penalty", type=float, metavar="X", help="above 1: prompt and output repeat less (default: 1)"
    )
    group.add_argument(
        "--presence_penalty", type=float, metavar="X", help="off the logit of what the output holds (default: 0)"
    )
    group.add_argument("--frequency_penalty", type=float, metavar="X", help="the same, each time (default: 0)")
    ends = parser.add_argument_group("ends")
    ends.add_argument("--end_id", type=int, nargs="+", metavar="ID", help="ids that end a text (default: the model's)")
    ends.add_argument("--stop_words", nargs="+", default=[], metavar="TEXT", help="end a text before any of these")
    ends.add_argument("--bad_words", nargs="+", default=[], metavar="TEXT", help="never generate these")
    beams = parser.add_argument_group("flags of the original that choose nothing here")
    beams.add_argument("--num_beams", type=int, default=1, metavar="N", help="1: there is no beam search yet")
    beams.add_argument("--length_penalty", type=float, metavar="X", help="weighs beams, of which there is one")
    beams.add_argument("--streaming", action="store_true", help="texts are always streamed")


def check_sampling_flags(args: argparse.Namespace) -> None:
    """Refuse values without a meaning, before anything is loaded.

    Raises:
        SamplingError, UsageError: there is one.
    """
    sampling_options(args)
    if args.num_beams != 1:
        raise UsageError(f"--num_beams {args.num_beams}", allowed="1: there is no beam search yet")
    for flag in ("stop_words", "bad_words"):
        if "" in getattr(args, flag):
            raise UsageError(f"--{flag} holds an empty text", allowed="texts of at least one character")


def sampling_options(args: argparse.Namespace, tokenizer: Tokenizer | None = None) -> SamplingOptions:
    """How tokens are chosen; bad words need a tokenizer.

    Raises:
        SamplingError: a value without a meaning.
    """
    from workbench.runtime.sampling import SamplingOptions

    given = {name: getattr(args, name) for name in (*_DRAWING, *_PENALTIES)}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if any(name in chosen for name in _DRAWING):
        chosen.setdefault("top_k", 0)
    words = () if tokenizer is None else tuple(ids for word in args.bad_words for ids in _spellings(tokenizer, word))
    return SamplingOptions(random_seed=args.random_seed or 0, bad_words=tuple(dict.fromkeys(words)), **chosen)


def _spellings(tokenizer: Tokenizer, word: str) -> list[tuple[int, ...]]:
    """The ids of a word at the start of a text, after a space, and right after something else."""
    start, inside = (tokenizer.encode(text, add_special_tokens=False) for text in ("\n", f"\n{word}"))
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}")]
    if inside[: len(start)] == start:
        texts.append(inside[len(start) :])
    return [tuple(ids) for ids in texts if ids]
