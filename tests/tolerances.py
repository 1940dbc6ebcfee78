"""The one table of tolerances: relative L2 error allowed between two op sets that do the same arithmetic, by dtype.

``op``: one operation on well-scaled random input. ``model``: logits of a whole small model. Reasons: float32 sums in
another order; half types round once per operation (float16 2^-11, bfloat16 2^-8) and errors grow with depth.
"""

from __future__ import annotations

import torch

TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"op": 1e-12, "model": 1e-11},
    torch.float32: {"op": 2e-6, "model": 1e-5},
    torch.float16: {"op": 1e-3, "model": 4e-3},
    torch.bfloat16: {"op": 8e-3, "model": 3e-2},
}

# Logits of the embedded model against Hugging Face in float32 (relative L2), and integer weights of any mode.
HF_FLOAT32_LOGITS = 1e-4
INTEGERS = 0

# Error of an interpreted network against float64, as a multiple of the torch op set's own in that precision.
NETWORK_CHECK_RATIO = 1.25


def relative_l2(value: torch.Tensor, reference: torch.Tensor) -> float:
    """``|value - reference| / |reference|`` in float64."""
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-300))
