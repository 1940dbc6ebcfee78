"""The one table of tolerances: relative L2 error allowed between two op sets that do the same arithmetic, by dtype.

``op``: one operation on well-scaled random input. ``model``: logits of a whole small model. Reasons: float32 sums in
another order; half types round once per operation (float16 2^-11, bfloat16 2^-8) and errors grow with depth.
"""

from __future__ import annotations

import torch

from workbench.engine.check import RATIO

TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"op": 1e-12, "model": 1e-11},
    torch.float32: {"op": 2e-6, "model": 1e-5},
    torch.float16: {"op": 1e-3, "model": 4e-3},
    torch.bfloat16: {"op": 8e-3, "model": 3e-2},
}

# Logits of the embedded model against Hugging Face in float32 (relative L2): 30 layers of two implementations.
HF_FLOAT32_LOGITS = 1e-4

# Every tap of a small model against Hugging Face. Float64: our rotary tables are rounded to float32, nothing else is.
HF_TAPS = {torch.float32: TOLERANCE[torch.float32]["model"], torch.float64: 1e-6}

# Error of an interpreted network against float64, as a multiple of the torch op set's own in that precision.
NETWORK_CHECK_RATIO = RATIO


def relative_l2(value: torch.Tensor, reference: torch.Tensor) -> float:
    """``|value - reference| / |reference|`` in float64."""
    value, reference = value.double(), reference.double()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-300))
