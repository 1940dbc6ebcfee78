"""What building an engine will take, on disk and in memory, told before it starts. Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.checkpoint.unified_layout import checkpoint_tensors
from workbench.engine.check import sampled_layers
from workbench.model.config import ModelConfig
from workbench.recipe import Recipe

# Peak memory of the builder over the bytes of the weights: they are held for the network, copied, and compiled.
BUILD_OVER_WEIGHTS = 3
# What the builder holds whatever it builds.
BUILDER_BYTES = 400_000_000
# The network check holds each value in float64 and in float32 beside the taps of three runs.
CHECK_BYTES_PER_VALUE = 16


@dataclass(frozen=True)
class BuildNeeds:
    """What a build takes, about.

    Attributes:
        disk_bytes: of the engine's folder.
        builder_bytes: memory of the builder, weights included.
        check_bytes: memory of the network check, on top.
    """

    disk_bytes: int
    builder_bytes: int
    check_bytes: int

    @property
    def memory_bytes(self) -> int:
        """At the peak, beside the interpreter's own."""
        return self.builder_bytes + self.check_bytes


def build_needs(config: ModelConfig, recipe: Recipe, verify: str, *, with_checkpoint: bool) -> BuildNeeds:
    """What an engine of one rank will take.

    Args:
        config: the model.
        recipe: how its weights are stored.
        verify: how much of the network is checked: "full", "sample" or "off".
        with_checkpoint: whether the engine's folder also gets the checkpoint.
    """
    weight_bytes = sum(spec.bytes for spec in checkpoint_tensors(config, recipe).values())
    return BuildNeeds(
        disk_bytes=weight_bytes * (2 if with_checkpoint else 1),
        builder_bytes=BUILDER_BYTES + weight_bytes * BUILD_OVER_WEIGHTS,
        check_bytes=CHECK_BYTES_PER_VALUE * _checked_values(config, verify),
    )


def _checked_values(config: ModelConfig, verify: str) -> int:
    """How many weights the check computes with, quantized or not."""
    if verify == "off":
        return 0
    layers = len(sampled_layers(config.num_layers)) if verify == "sample" else config.num_layers
    specs = checkpoint_tensors(replace(config, num_layers=layers), Recipe())
    return sum(spec.elements for spec in specs.values())
