"""How much memory a model takes, and how much there is: asked before one is opened. Opens and closes nothing."""

from __future__ import annotations

import math
import re

import torch

from workbench.checkpoint import available_memory, hf_names
from workbench.errors import LimitError
from workbench.model.config import ModelConfig


def parameters(config: ModelConfig) -> int:
    """How many values a model has."""
    return sum(math.prod(shape) for shape in hf_names.tensor_shapes(config).values())


def largest_tensor(config: ModelConfig) -> int:
    """How many values the largest tensor of a model has."""
    return max(math.prod(shape) for shape in hf_names.tensor_shapes(config).values())


def free_bytes(device: str) -> float:
    """Memory that a model could take on a device; infinite where the system does not say.

    On the CPU this heeds the limits of control groups. What torch keeps of a GPU's memory for its next tensors is free
    for a model too.
    """
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    available = available_memory.available_bytes()
    return math.inf if available is None else float(available)


def give_back() -> None:
    """Give what closed models held back to the system, torch's cached GPU blocks too."""
    available_memory.give_back()
    torch.cuda.empty_cache()  # nothing where no GPU was used


def require_memory(what: str, needed_bytes: float, device: str) -> None:
    """Refuse what does not fit.

    Raises:
        LimitError: ``what`` needs more than is free; says both sizes.
    """
    free = free_bytes(device)
    if needed_bytes > free:
        raise LimitError(
            f"{what} needs {gigabytes(needed_bytes)} of memory on {device}",
            allowed=f"{gigabytes(free)}, which is free there now",
            fix="end what else takes memory there, or use a machine that has more",
        )


def out_of_gpu_memory(error: BaseException) -> LimitError | None:
    """What torch says when a GPU's memory is used up, as a mistake that a person can mend; None for other errors."""
    if not isinstance(error, torch.cuda.OutOfMemoryError):
        return None
    wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    return LimitError(
        "the GPU's memory is used up" + (f": {wanted[1]} more were wanted" if wanted else ""),
        fix="run fewer or shorter prompts at once, end what else takes memory there, or use the CPU",
    )


def gigabytes(size_bytes: float) -> str:
    """Bytes as "1.5 GB"; decimal prefixes."""
    value = size_bytes / 1e9
    return f"{value:.0f} GB" if value >= 100 else f"{value:.2g} GB"
