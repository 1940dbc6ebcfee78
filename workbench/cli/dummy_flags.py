"""Flags for a model of dummy weights: a published model's sizes, and the sizes that the original ``build.py`` takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workbench.cli.command import UsageError
from workbench.model.presets import DEFAULT_PRESET, PRESETS, Sizes, preset, resized

if TYPE_CHECKING:
    from workbench.checkpoint.dummy_model import DummyModel
    from workbench.model.config import ModelConfig

# Sizes by the original's names, and what each is.
SIZES: dict[str, str] = {
    "n_layer": "decoder layers",
    "n_embd": "width of the residual stream",
    "n_head": "query heads",
    "n_kv_head": "key/value heads, a divisor of n_head",
    "inter_size": "width of the MLP",
    "vocab_size": "vocabulary",
    "n_positions": "positions",
}
CONSTANTS: dict[str, str] = {"rms_norm_eps": "added to the mean square in RMSNorm", "rotary_base": "base of RoPE"}
ACTIVATION = "silu"


def add_dummy_flags(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """``--preset`` and the sizes.

    Args:
        parser: gets the flags.
        default: the preset where no model is named at all; None where one must be.
    """
    always = f"; {default} where nothing is named" if default else ""
    group = parser.add_argument_group("dummy weights, of any size and on no disk")
    group.add_argument(
        "--preset", metavar="NAME", help=f"sizes of a published model, out of {', '.join(PRESETS)}{always}"
    )
    for name, text in SIZES.items():
        group.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default: the preset's)")
    for name, text in CONSTANTS.items():
        group.add_argument(f"--{name}", type=float, metavar="X", help=f"{text} (default: the preset's)")
    group.add_argument("--hidden_act", metavar="NAME", help=f"{ACTIVATION}: every InternLM has it")


def require_no_preset(args: argparse.Namespace, flag: str) -> None:
    """Refuse a preset beside a model that is there.

    Args:
        args: the command line.
        flag: names the model.

    Raises:
        UsageError: both are given.
    """
    if args.preset is not None:
        raise UsageError(f"--preset and {flag} are both given", fix="give one of them")


def sizes_of_the_model(args: argparse.Namespace) -> Iterator[str]:
    """A line for each size that is given beside a model, which has its own."""
    for name in (*SIZES, *CONSTANTS, "hidden_act"):
        value = getattr(args, name)
        if value is not None:
            shown = value if isinstance(value, str) else f"{value:g}"
            yield f"--{name} {shown}: read from the model's config.json"


def dummy_config(args: argparse.Namespace, default: str | None = None) -> ModelConfig | None:
    """The shape that is asked for; None where no preset and no size is given and there is no default.

    Raises:
        WorkbenchError: no such preset, or sizes that make no model.
    """
    given = {name: getattr(args, name) for name in (*SIZES, *CONSTANTS) if getattr(args, name) is not None}
    if args.hidden_act not in (None, ACTIVATION):
        raise UsageError(f"--hidden_act {args.hidden_act}", allowed=f"{ACTIVATION}: every InternLM has it")
    name = args.preset or (DEFAULT_PRESET if given else default)
    return None if name is None else resized(preset(name), Sizes(**given))


def sizes_named(args: argparse.Namespace, default: str | None = None) -> str:
    """The preset, and what was changed of it."""
    given = [f"{name} {getattr(args, name):g}" for name in (*SIZES, *CONSTANTS) if getattr(args, name) is not None]
    return ", ".join([args.preset or default or DEFAULT_PRESET, *given])


def described(args: argparse.Namespace, default: str | None = None) -> str:
    """The dummy model, in words."""
    return f"dummy weights in the sizes of {sizes_named(args, default)}"


def dummy_model(args: argparse.Namespace) -> DummyModel | None:
    """The model that is asked for, as a source of weights; None where none is.

    Raises:
        WorkbenchError: as :func:`dummy_config`.
    """
    config = dummy_config(args)
    if config is None:
        return None
    from workbench.checkpoint.dummy_model import DummyModel

    return DummyModel(config)


def model_or_dummies(args: argparse.Namespace, folder: str) -> str | DummyModel | None:
    """The model in ``folder``, after a line for each size that it has itself; dummies for ""; None where none is named.

    Raises:
        UsageError: a model and a preset.
        WorkbenchError: as :func:`dummy_config`.
    """
    if not folder:
        return dummy_model(args)
    require_no_preset(args, "--model_dir")
    for line in sizes_of_the_model(args):
        print(line)
    return folder
