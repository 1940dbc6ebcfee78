"""Small ahead-of-time builds and what the builder says about them.

``python -m tests.recorded_builds`` records tests/engine/golden anew. Only the messages that the workbench reads are
recorded: errors, warnings, memory, and the list of kernels.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.random_model import SMALL, random_weights
from workbench.engine.kernels import LogMessage, collecting_logger
from workbench.engine.network import DecoderNetwork, add_profiles, build_network
from workbench.model.internlm import InternLM
from workbench.model.rotary import rotary_tables
from workbench.model.weights import DenseWeight, Int8Weight, SmoothQuantWeight
from workbench.recipe import BuildLimits

GOLDEN = Path(__file__).parent / "engine" / "golden"
KINDS = {"dense": DenseWeight, "int8": Int8Weight, "smoothquant": SmoothQuantWeight}
LIMITS = BuildLimits(max_batch_size=4, max_input_len=64, max_output_len=64)
CONFIG = dataclasses.replace(
    SMALL,
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=704,
    num_layers=1,
    num_kv_heads=4,
    head_dim=64,
    max_position_embeddings=128,
)


@dataclass(frozen=True)
class BuildLog:
    """What one build said, and its linear layers: ``{name: (out, in)}`` in the network's order."""

    product: str
    linears: dict[str, tuple[int, int]]
    messages: list[LogMessage]

    @classmethod
    def load(cls, name: str) -> BuildLog:
        content = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        linears = {linear: (shape[0], shape[1]) for linear, shape in content["linears"].items()}
        return cls(content["product"], linears, [LogMessage(**each) for each in content["messages"]])

    def save(self, name: str) -> None:
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{name}.json").write_text(json.dumps(dataclasses.asdict(self), indent=0) + "\n", encoding="utf-8")


def build_decoder(trt: Any, kind: str, *, target: str = "SM80") -> BuildLog:
    """Build a one-layer random decoder in float16, its linear layers (but not the head) of one weight kind."""
    builder = _builder(trt)
    model = InternLM(
        CONFIG, random_weights(CONFIG, torch.float16, KINDS[kind]), rotary_tables(CONFIG, LIMITS.max_seq_len)
    )
    decoder = build_network(trt, builder, model, torch.float16, LIMITS)
    config = _config(trt, builder, target)
    add_profiles(builder, config, decoder)
    return _build(trt, builder, decoder.network, config, _shapes(decoder))


def build_expanded(trt: Any, *, target: str = "SM80") -> BuildLog:
    """Build one INT4 linear layer in the spelling that the builder expands to float16 at every run."""
    builder = _builder(trt)
    network = builder.create_network(0)
    packed, scale = torch.full((256 * 128 // 2,), 0x21, dtype=torch.uint8), torch.full((128,), 0.1).half()
    weight = network.add_constant((256, 128), trt.Weights(trt.DataType.INT4, packed.data_ptr(), 256 * 128))
    scales = network.add_constant((128,), trt.Weights(trt.DataType.HALF, scale.data_ptr(), 128))
    real = network.add_dequantize(weight.get_output(0), scales.get_output(0), trt.DataType.HALF)
    real.axis = 1
    x = network.add_input("x", trt.DataType.HALF, (-1, 256))
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(x, none, real.get_output(0), none)
    product.name = "layers.0.mlp.down"
    network.mark_output(product.get_output(0))
    config = _config(trt, builder, target)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 256), (8, 256), (64, 256))
    config.add_optimization_profile(profile)
    return _build(trt, builder, network, config, {"layers.0.mlp.down": (128, 256)})


def _builder(trt: Any) -> Any:
    return trt.Builder(collecting_logger(trt))


def _config(trt: Any, builder: Any, target: str) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[target], 0)
    return config


def _build(trt: Any, builder: Any, network: Any, config: Any, linears: dict[str, tuple[int, int]]) -> BuildLog:
    logger = collecting_logger(trt)
    logger.clear()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"no plan was built: {[each.text for each in logger.messages]}")
    return BuildLog(f"{trt.__name__} {trt.__version__}", linears, list(logger.messages))


def _shapes(decoder: DecoderNetwork) -> dict[str, tuple[int, int]]:
    return {name: (weight.weight.shape[0], weight.weight.shape[1]) for name, weight in decoder.record.linears.items()}


def record() -> None:
    """Write the golden logs of the TensorRT-RTX that is installed."""
    import tensorrt_rtx as trt

    for kind in KINDS:
        build_decoder(trt, kind).save(kind)
    build_expanded(trt).save("expanded")


if __name__ == "__main__":
    record()
