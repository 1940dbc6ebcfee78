"""What a session refuses, and in which words. The same for every backend; knows no tensors beyond token ids."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from torch import Tensor

from workbench.errors import LimitError
from workbench.model.config import ModelConfig
from workbench.recipe import BuildLimits


def sequence_limit(config: ModelConfig, limits: BuildLimits) -> int:
    """The most tokens that one sequence may have, prompt and output together."""
    return min(limits.max_seq_len, config.max_position_embeddings)


def model_limits(config: ModelConfig, limits: BuildLimits) -> BuildLimits:
    """Limits of a checkpoint that no engine was built from: the model's positions, and as many prompts as fit memory.

    Args:
        config: the model.
        limits: those that an engine would have; what they say beside sizes stays.
    """
    most = config.max_position_embeddings
    return dataclasses.replace(limits, max_batch_size=sys.maxsize, max_input_len=most, max_output_len=most)


def fitting_limits(limits: BuildLimits, config: ModelConfig, stated: frozenset[str] = frozenset()) -> BuildLimits:
    """The limits, lowered to the model's positions where nobody chose them.

    Args:
        limits: as they would be.
        config: the model.
        stated: limits that a person chose; they stay.
    """
    most = config.max_position_embeddings
    if limits.max_seq_len <= most:
        return limits
    output = limits.max_output_len if "max_output_len" in stated else min(limits.max_output_len, max(1, most // 4))
    if "max_input_len" in stated:
        # Too long a prompt stays as it is, and is refused with the model's own limit.
        room = most - limits.max_input_len
        return limits if "max_output_len" in stated or room < 1 else dataclasses.replace(limits, max_output_len=room)
    return limits if output >= most else dataclasses.replace(limits, max_input_len=most - output, max_output_len=output)


def lowering(before: BuildLimits, after: BuildLimits, config: ModelConfig) -> str:
    """What :func:`fitting_limits` made of limits, in words; empty where it left them as they were."""
    if before == after:
        return ""
    return (
        f"max_input_len {after.max_input_len} and max_output_len {after.max_output_len}: lowered to the model's "
        f"{config.max_position_embeddings} positions"
    )


def output_room(longest_prompt: int, config: ModelConfig, limits: BuildLimits) -> int:
    """The most new tokens that there is room for after a prompt; below 1 when there is none."""
    return min(limits.max_output_len, config.max_position_embeddings - longest_prompt)


def check_prompts(prompts: Sequence[Sequence[int]], config: ModelConfig, limits: BuildLimits) -> None:
    """Refuse an empty or too large batch, an empty or too long prompt, and ids outside the vocabulary.

    Raises:
        LimitError: says which prompt (counted from 1), its length or id, and the limit.
    """
    if not prompts:
        raise LimitError("no prompts were given", fix="give at least one")
    if len(prompts) > limits.max_batch_size:
        raise LimitError(
            f"{len(prompts)} prompts in one batch",
            allowed=f"up to max_batch_size {limits.max_batch_size}",
            fix="run them in several batches, or convert and build with a larger max_batch_size",
        )
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise LimitError(f"prompt {number} is empty", allowed="at least 1 token", fix="give it some text")
        if len(prompt) > limits.max_input_len < config.max_position_embeddings:
            raise LimitError(
                f"prompt {number} has {len(prompt)} tokens",
                allowed=f"up to max_input_len {limits.max_input_len}",
                fix="shorten it, or convert and build with a larger max_input_len",
            )
        check_positions(len(prompt), config, what=f"prompt {number}")
        _check_range(min(prompt), max(prompt), config, f"prompt {number}")


def check_ids(ids: Tensor, config: ModelConfig) -> None:
    """Refuse token ids outside the vocabulary, and a tensor without any.

    Raises:
        LimitError: says the id and the vocabulary.
    """
    if ids.numel() == 0:
        raise LimitError(f"token ids of shape {list(ids.shape)}", allowed="at least 1 token", fix="give some text")
    low, high = ids.aminmax()
    _check_range(int(low), int(high), config, "the input")


def check_positions(length: int, config: ModelConfig, what: str = "the input") -> None:
    """Refuse more tokens than the model has positions.

    Raises:
        LimitError: says the length and max_position_embeddings.
    """
    if length > config.max_position_embeddings:
        raise LimitError(
            f"{what} has {length} tokens",
            allowed=f"up to the model's max_position_embeddings {config.max_position_embeddings}",
            fix="shorten it, or convert the model with a larger max_positions",
        )


def check_decode(length: int, config: ModelConfig, limits: BuildLimits) -> None:
    """Refuse to go on with a sequence that would have ``length`` tokens.

    Raises:
        LimitError: says which of the two limits was reached.
    """
    if length > limits.max_seq_len:
        raise LimitError(
            f"a sequence of {length} tokens",
            allowed=f"up to max_input_len {limits.max_input_len} + max_output_len {limits.max_output_len}",
            fix="generate fewer tokens, or convert and build with a larger max_output_len",
        )
    check_positions(length, config, what="the sequence")


def check_output_len(longest_prompt: int, max_output_len: int, config: ModelConfig, limits: BuildLimits) -> None:
    """Refuse, before anything is computed, an output that could not be finished.

    Raises:
        LimitError: says the length asked for and the limit.
    """
    # Where the limits are as wide as the model, only the model's positions are in the way.
    if max_output_len < 1 or max_output_len > limits.max_output_len < config.max_position_embeddings:
        raise LimitError(
            f"max_output_len {max_output_len}",
            allowed=f"1 to {limits.max_output_len}",
            fix="ask for fewer tokens, or convert and build with a larger max_output_len"
            if max_output_len > 0
            else "ask for at least one",
        )
    room = config.max_position_embeddings - longest_prompt
    if max_output_len > room:
        raise LimitError(
            f"a prompt of {longest_prompt} tokens with max_output_len {max_output_len}",
            allowed=f"up to the model's max_position_embeddings {config.max_position_embeddings} together",
            fix=f"ask for at most {room} tokens" if room >= 1 else "shorten the prompt",
        )


def _check_range(low: int, high: int, config: ModelConfig, what: str) -> None:
    wrong = low if low < 0 else high
    if not 0 <= wrong < config.vocab_size:
        raise LimitError(
            f"{what} has the token id {wrong}",
            allowed=f"0 to {config.vocab_size - 1}",
            fix="use the tokenizer of this model",
        )
