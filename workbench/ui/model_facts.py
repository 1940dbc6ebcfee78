"""What a bench knows of its model, in a few lines of HTML. Reads the bench; opens nothing."""

from __future__ import annotations

import html

from workbench.bench.state import BenchState


def model_facts(state: BenchState) -> str:
    """Sizes, device, and the calibrations at hand; of a plain state what calibration it holds."""
    from workbench.bench.bench import Bench

    lines = []
    if isinstance(state, Bench):
        config = state.config
        heads = f"{config.num_heads} heads of {config.head_dim}"
        shared = f" sharing {config.num_kv_heads} KV heads" if config.num_kv_heads != config.num_heads else ""
        lines.append(
            f"<b>{html.escape(state.model_dir.name)}</b>: {config.num_layers} layers, hidden {config.hidden_size}, "
            f"MLP {config.intermediate_size}, {heads}{shared}, vocabulary {config.vocab_size:,}; on {state.device}"
        )
    lines.append(_calibrations(state))
    return "".join(f'<div class="wb-line">{line}</div>' for line in lines if line)


def _calibrations(state: BenchState) -> str:
    from workbench.bench.bench import Bench

    used = state.calibration.name if state.calibration is not None else ""
    others = [name for name in state.calibrations() if name != used] if isinstance(state, Bench) else []
    kept = f"; also in the cache: {html.escape(', '.join(others))}" if others else ""
    if used:
        return f"Calibrated with {html.escape(used)}{kept}"
    if isinstance(state, Bench):
        return f"Nothing is calibrated yet{kept or ': bench.ranges() does it'}"
    return ""
