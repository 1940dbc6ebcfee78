"""The flags of the original ``build.py`` that this ``build`` takes, and what becomes of each today.

Those that choose a quantization are turned into recipe flags; those that chose a kernel or a way to build are taken and
explained in a line. Knows the original's command line, and nothing about models.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.cli.command import UsageError
from workbench.cli.recipe_flags import destination_of
from workbench.recipe import Int4WeightOnly, Int8KVCache, Int8WeightOnly, SmoothQuant

WEIGHT_ONLY_PRECISIONS = {"int8": Int8WeightOnly.kind, "int4": Int4WeightOnly.kind}


@dataclass(frozen=True)
class Mapped:
    """A flag that is taken and has nothing to choose.

    Attributes:
        became: what happens instead, for the line that says so.
        nargs: argparse's; 0 for a switch, "?" where a value may follow.
    """

    became: str
    nargs: int | str = 0

    def add_to(self, group: Any, name: str) -> None:
        """Add the flag to a parser's argument group."""
        shape: dict[str, Any] = {"action": "store_true"} if self.nargs == 0 else {"nargs": self.nargs, "const": ""}
        if self.nargs == 1:
            shape = {"metavar": "VALUE"}
        group.add_argument(f"--{name}", help=self.became, **shape)


_FUSED = "attention is always one fused operation; TensorRT chooses its kernel"
_GEMM = "TensorRT's own GEMM: there are no plugins"
_ONE_RANK = "nothing to spread: one rank holds the whole model"
MAPPED = {
    "use_gpt_attention_plugin": Mapped(_FUSED, "?"),
    "enable_context_fmha": Mapped(_FUSED + ", for prompts too"),
    "enable_context_fmha_fp32_acc": Mapped("the accumulator is TensorRT's choice"),
    "use_gemm_plugin": Mapped(_GEMM, "?"),
    "use_rmsnorm_plugin": Mapped("RMSNorm computes in float32 without a plugin", "?"),
    "use_weight_only_quant_plugin": Mapped(_GEMM, "?"),
    "remove_input_padding": Mapped(
        "not packed: rows are padded on the right, and each row's last token is gathered before the head"
    ),
    "parallel_build": Mapped("one rank is built: there is nothing to build in parallel"),
    "use_parallel_embedding": Mapped(_ONE_RANK),
    "embedding_sharding_dim": Mapped(_ONE_RANK, 1),
    "use_custom_all_reduce": Mapped(_ONE_RANK),
    "gpus_per_node": Mapped(_ONE_RANK, 1),
    "timing_cache": Mapped("no timings are kept between builds", 1),
    "builder_opt": Mapped("TensorRT's own optimization level", 1),
    "log_level": Mapped("TensorRT's log is read for kernels and errors, and not printed", 1),
    "enable_debug_output": Mapped("'workbench compare' shows every layer's output, in any checkpoint"),
    "visualize": Mapped("the outcome lists each linear layer and how it was compiled"),
    "strongly_typed": Mapped("networks are always strongly typed"),
}


def add_original_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag of the original that is taken."""
    group = parser.add_argument_group("quantization, as the original writes it")
    group.add_argument("--use_smooth_quant", action="store_true", help="--weights smoothquant, one scale per tensor")
    group.add_argument("--per_token", action="store_true", help="--sq_activation per_token")
    group.add_argument("--per_channel", action="store_true", help="--sq_weight per_channel")
    group.add_argument("--use_weight_only", action="store_true", help="--weights int8, or as the next flag says")
    group.add_argument("--weight_only_precision", choices=tuple(WEIGHT_ONLY_PRECISIONS), help="(default: int8)")
    group.add_argument("--int8_kv_cache", action="store_true", help="--kv_cache int8")
    ranks = parser.add_argument_group("ranks (one for now)")
    for name in ("world_size", "tp_size", "pp_size"):
        ranks.add_argument(f"--{name}", type=int, default=1, metavar="N", help="(default: 1)")
    ranks.add_argument("--max_beam_width", type=int, default=1, metavar="N", help="1: generation is greedy")
    mapped = parser.add_argument_group(
        "flags of the original that choose nothing here; a line says what became of each"
    )
    for name, flag in MAPPED.items():
        flag.add_to(mapped, name)
    parser.add_argument("--meta_ckpt_dir", help=argparse.SUPPRESS)


def explained(args: argparse.Namespace) -> Iterator[str]:
    """A line for each flag that was given and chooses nothing."""
    for name, flag in MAPPED.items():
        value = getattr(args, name)
        if value is not None and value is not False:
            words = f"--{name} {value}" if isinstance(value, str) and value else f"--{name}"
            yield f"{words}: {flag.became}"


def check_ranks(args: argparse.Namespace) -> None:
    """Refuse sizes that contradict one another, and more than one rank.

    Raises:
        UsageError: with the size that would fit.
    """
    for name in ("world_size", "tp_size", "pp_size", "max_beam_width"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}", allowed="whole numbers from 1")
    ranks = args.tp_size * args.pp_size
    if ranks != args.world_size:
        raise UsageError(
            f"--world_size {args.world_size} with --tp_size {args.tp_size} and --pp_size {args.pp_size}",
            allowed="tp_size * pp_size ranks",
            fix=f"give --world_size {ranks}",
        )
    if ranks > 1:
        raise UsageError(
            f"--tp_size {args.tp_size} and --pp_size {args.pp_size}: an engine of {ranks} ranks",
            allowed="one rank: engines of several are not there yet",
            fix="leave --world_size, --tp_size and --pp_size out",
        )
    if args.max_beam_width > 1:
        raise UsageError(f"--max_beam_width {args.max_beam_width}", allowed="1: there is no beam search yet")


def to_recipe_flags(args: argparse.Namespace) -> Iterator[str]:
    """Set the recipe flags that the original's quantization flags mean; yields a line where more must be said.

    Raises:
        UsageError: flags that contradict one another, or lack the one that they belong to.
    """
    if args.meta_ckpt_dir is not None:
        raise UsageError(
            "--meta_ckpt_dir names a checkpoint in the layout of Meta's Llama, and InternLM has none",
            fix="give the Hugging Face folder: --model_dir",
        )
    _require_partners(args)
    if args.use_smooth_quant:
        _set(args, "--use_smooth_quant", "", "weights", SmoothQuant.kind)
        for flag, name in (("per_channel", "weight"), ("per_token", "activation")):
            if getattr(args, flag):
                _set(args, f"--{flag}", "weights", name, flag)
            elif getattr(args, destination_of("weights", name)) is None:
                _set(args, "--use_smooth_quant", "weights", name, "per_tensor")
    if args.use_weight_only:
        kind = WEIGHT_ONLY_PRECISIONS[args.weight_only_precision or "int8"]
        _set(args, "--use_weight_only", "", "weights", kind)
        if kind == Int4WeightOnly.kind and getattr(args, destination_of("weights", "group_size")) is None:
            yield "--weight_only_precision int4: groups of 128; the original's one scale per channel is --group_size 0"
    if args.int8_kv_cache:
        _set(args, "--int8_kv_cache", "", "kv_cache", Int8KVCache.kind)


def _require_partners(args: argparse.Namespace) -> None:
    if args.use_smooth_quant and args.use_weight_only:
        raise UsageError(
            "--use_smooth_quant and --use_weight_only are both given",
            fix="give one: the first quantizes activations too, the second weights alone",
        )
    partners = {"per_token": "use_smooth_quant", "per_channel": "use_smooth_quant"}
    for name, partner in {**partners, "weight_only_precision": "use_weight_only"}.items():
        if getattr(args, name) and not getattr(args, partner):
            raise UsageError(f"--{name} without --{partner}", fix=f"add --{partner}, or leave --{name} out")


def _set(args: argparse.Namespace, flag: str, section: str, name: str, value: str) -> None:
    destination = destination_of(section, name)
    held = getattr(args, destination)
    if held not in (None, value):
        raise UsageError(f"{flag} asks for {name} {value}, another flag for {held}", fix="give one of them")
    setattr(args, destination, value)
