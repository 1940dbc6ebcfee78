"""The sizes of the published InternLM models, for dummy weights and plans. Knows no weights and no files.

Source: the ``config.json`` of internlm-7b, internlm-20b, internlm2-1_8b, internlm2-7b, internlm2-20b and
internlm3-8b-instruct.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from workbench.errors import WorkbenchError, nearest
from workbench.model.config import DYNAMIC, ModelConfig, RopeScaling

# The original's `build.py` has the sizes of this one where nothing else is said.
DEFAULT_PRESET = "internlm-7b"
_INTERMEDIATE_MULTIPLE = 256
_V1, _V2, _V3 = (f"InternLM{version}ForCausalLM" for version in ("", "2", "3"))
_7B = ModelConfig(
    architecture=_V1,
    vocab_size=103168,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    norm_epsilon=1e-6,
    rope_theta=1e4,
    max_position_embeddings=2048,
    qkv_bias=True,
    output_bias=True,
    bos_token_id=1,
    pad_token_id=2,
    eos_token_ids=(2, 103028),
)
_V2_7B = replace(
    _7B,
    architecture=_V2,
    vocab_size=92544,
    intermediate_size=14336,
    num_kv_heads=8,
    norm_epsilon=1e-5,
    rope_theta=1e6,
    max_position_embeddings=32768,
    qkv_bias=False,
    output_bias=False,
    eos_token_ids=(2, 92542),
    rope_scaling=RopeScaling(DYNAMIC, 2.0),
)
PRESETS: dict[str, ModelConfig] = {
    "internlm-7b": _7B,
    "internlm-20b": replace(
        _7B,
        hidden_size=5120,
        intermediate_size=13824,
        num_layers=60,
        num_heads=40,
        num_kv_heads=40,
        max_position_embeddings=4096,
        qkv_bias=False,
        output_bias=False,
        rope_scaling=RopeScaling(DYNAMIC, 1.0),
    ),
    "internlm2-1.8b": replace(_V2_7B, hidden_size=2048, intermediate_size=8192, num_layers=24, num_heads=16),
    "internlm2-7b": _V2_7B,
    "internlm2-20b": replace(
        _V2_7B, hidden_size=6144, intermediate_size=16384, num_layers=48, num_heads=48, rope_scaling=None
    ),
    "internlm3-8b": replace(
        _V2_7B,
        architecture=_V3,
        vocab_size=128512,
        intermediate_size=10240,
        num_layers=48,
        num_kv_heads=2,
        rope_theta=5e7,
        eos_token_ids=(2, 128131),
        rope_scaling=RopeScaling(DYNAMIC, 6.0),
    ),
}


@dataclass(frozen=True)
class Sizes:
    """What a person changes of a preset; None keeps it. Named as the original's ``build.py`` names them.

    Attributes:
        n_layer, n_embd, n_head, vocab_size, n_positions: layers, hidden size, query heads, vocabulary, positions.
        n_kv_head: key/value heads; with ``n_head`` alone, as many.
        inter_size: of the MLP; with ``n_embd`` alone, 8/3 of it, up to the next multiple of 256, as in Llama.
        rms_norm_eps, rotary_base: constants.
    """

    n_layer: int | None = None
    n_embd: int | None = None
    n_head: int | None = None
    n_kv_head: int | None = None
    inter_size: int | None = None
    vocab_size: int | None = None
    n_positions: int | None = None
    rms_norm_eps: float | None = None
    rotary_base: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if not 0 < value < math.inf:
                raise WorkbenchError(f"{name} is {value}", allowed="numbers above 0")

    @property
    def given(self) -> dict[str, float]:
        """What is not None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def preset(name: str) -> ModelConfig:
    """The sizes of a published model.

    Raises:
        WorkbenchError: there is none of that name.
    """
    if name not in PRESETS:
        raise WorkbenchError(
            f"preset {name!r}", allowed=", ".join(PRESETS), fix=nearest(name, PRESETS) or "or give sizes, as --n_layer"
        )
    return PRESETS[name]


def resized(base: ModelConfig, sizes: Sizes) -> ModelConfig:
    """A model of other sizes.

    Raises:
        WorkbenchError: heads that do not divide, or whose width is odd.
    """
    hidden = sizes.n_embd or base.hidden_size
    heads = sizes.n_head or base.num_heads
    kv_heads = sizes.n_kv_head or (heads if sizes.n_head else base.num_kv_heads)
    if hidden % heads or (hidden // heads) % 2:
        raise WorkbenchError(
            f"n_head {heads} for n_embd {hidden}",
            allowed="divisors that leave an even head width",
            fix="give --n_head and --n_embd together",
        )
    if heads % kv_heads:
        raise WorkbenchError(f"n_kv_head {kv_heads} for n_head {heads}", allowed=f"divisors of {heads}")
    vocab = sizes.vocab_size or base.vocab_size
    return replace(
        base,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=sizes.inter_size or (_intermediate(hidden) if sizes.n_embd else base.intermediate_size),
        num_layers=sizes.n_layer or base.num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        # A head keeps its width where nobody changes what it follows from.
        head_dim=hidden // heads if sizes.n_embd or sizes.n_head else base.head_dim,
        norm_epsilon=sizes.rms_norm_eps or base.norm_epsilon,
        rope_theta=sizes.rotary_base or base.rope_theta,
        max_position_embeddings=sizes.n_positions or base.max_position_embeddings,
        bos_token_id=_within(base.bos_token_id, vocab),
        pad_token_id=_within(base.pad_token_id, vocab),
        eos_token_ids=tuple(dict.fromkeys(min(token, vocab - 1) for token in base.eos_token_ids)),
    )


def _intermediate(hidden: int) -> int:
    return _INTERMEDIATE_MULTIPLE * math.ceil(8 * hidden / 3 / _INTERMEDIATE_MULTIPLE)


def _within(token: int | None, vocab: int) -> int | None:
    return None if token is None else min(token, vocab - 1)
