"""The recipe: every choice a person makes about one model, and nothing that was measured.

One YAML file holds one recipe. Widgets, notebooks and the command line read and write the same object, so an
exported command line and a notebook mean the same thing. Knows nothing about tensors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from workbench.errors import RecipeError, nearest
from workbench.recipe_values import known_keys, require_one_of, typed, variant_from, variant_to

DTYPES = ("float32", "float16", "bfloat16")
TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
SITES = ("attention.qkv", "attention.o", "mlp.gate_up", "mlp.down")
# The linear layers that share one smoothing scale, by the name that a recipe gives them.
SMOOTHING_GROUPS = {"qkv": "attention.qkv", "o": "attention.o", "gate_up": "mlp.gate_up", "down": "mlp.down"}
INT4_GROUPS = (128, 64, 32)
_LINEAR_PATTERN = re.compile(r"lm_head|layers\.(\d+|\*)\.(\*|" + "|".join(map(re.escape, SITES)) + ")")
WEIGHT_SCALES = ("per_channel", "per_tensor")
INPUT_SCALES = ("per_token", "per_tensor")
KV_SCALES = ("per_head", "per_tensor")
_GROUP_NAME = re.compile(r"layers\.\d+\.(" + "|".join(SMOOTHING_GROUPS) + ")")


def _choice(default: Any, flags: str, text: str, **extra: Any) -> Any:
    """A dataclass field that is also a command line flag."""
    return field(default=default, metadata={"flags": flags.split(), "help": text, **extra})


@dataclass(frozen=True)
class Int8WeightOnly:
    """INT8 weights with one float32 scale per output channel; activations stay in the recipe's dtype."""

    kind: ClassVar[str] = "int8"


@dataclass(frozen=True)
class Int4WeightOnly:
    """INT4 weights, symmetric, with one float16 scale per group of input channels; activations stay in the dtype."""

    kind: ClassVar[str] = "int4"
    group_size: int = _choice(
        128, "--group_size", "input channels that share an INT4 scale; 0 for one scale per output channel"
    )

    def __post_init__(self) -> None:
        if self.group_size not in (0, *INT4_GROUPS):
            raise RecipeError(
                f"weights.group_size is {self.group_size}",
                allowed=", ".join(map(str, INT4_GROUPS)) + ", or 0 for one scale per output channel",
            )


@dataclass(frozen=True)
class SmoothQuant:
    """INT8 weights and INT8 activations, with the difficulty moved from one to the other (arXiv:2211.10438).

    Attributes:
        weight: one scale per output channel, or one per projection (q, k, v, gate and up have one each).
        activation: one scale per token, found at run time, or one per linear layer, from calibration.
        alpha: how much of an activation's range moves into the weight: 0 none, 1 all.
        groups: smoothing groups that are smoothed; the others are quantized as they are.
        alpha_by_group: exceptions to ``alpha``, by ``layers.N.GROUP``.
    """

    kind: ClassVar[str] = "smoothquant"
    weight: str = _choice("per_channel", "--sq_weight", "SmoothQuant weight scales", choices=WEIGHT_SCALES)
    activation: str = _choice("per_token", "--sq_activation", "SmoothQuant activation scales", choices=INPUT_SCALES)
    alpha: float = _choice(0.85, "--alpha", "SmoothQuant migration strength, 0 to 1")
    groups: tuple[str, ...] = _choice(
        tuple(SMOOTHING_GROUPS), "--groups", "smoothing groups to smooth", choices=tuple(SMOOTHING_GROUPS)
    )
    alpha_by_group: Mapping[str, float] = field(
        default_factory=dict,
        metadata={"flags": ["--alpha_by_group"], "help": "exceptions to alpha, as layers.N.GROUP=ALPHA"},
    )

    def __post_init__(self) -> None:
        require_one_of("weights.weight", self.weight, WEIGHT_SCALES)
        require_one_of("weights.activation", self.activation, INPUT_SCALES)
        _require_alpha("weights.alpha", self.alpha)
        for group in self.groups:
            require_one_of("weights.groups", group, tuple(SMOOTHING_GROUPS))
        for name, alpha in self.alpha_by_group.items():
            match = _GROUP_NAME.fullmatch(str(name))
            if not match:
                raise RecipeError(
                    f"weights.alpha_by_group names {name!r}",
                    allowed="layers.N.GROUP, GROUP one of " + ", ".join(SMOOTHING_GROUPS),
                )
            if match[1] not in self.groups:
                raise RecipeError(
                    f"weights.alpha_by_group names {name!r}, but {match[1]} is not among weights.groups",
                    fix=f"add {match[1]} to groups, or remove the entry",
                )
            _require_alpha(f"weights.alpha_by_group[{name!r}]", alpha)

    def alpha_of(self, layer: int, group: str) -> float | None:
        """The migration strength of one smoothing group; None where it is not smoothed."""
        return self.alpha_by_group.get(f"layers.{layer}.{group}", self.alpha) if group in self.groups else None

    def __hash__(self) -> int:
        return hash((self.weight, self.activation, self.alpha, self.groups, tuple(sorted(self.alpha_by_group.items()))))


WeightQuantization = Int8WeightOnly | Int4WeightOnly | SmoothQuant
WEIGHT_KINDS: dict[str, type[WeightQuantization]] = {
    cls.kind: cls for cls in (Int8WeightOnly, Int4WeightOnly, SmoothQuant)
}


@dataclass(frozen=True)
class Int8KVCache:
    """INT8 keys (after RoPE) and values, each with scales of its own, from calibration.

    Attributes:
        granularity: one scale per KV head, or one per layer.
        percentile: of the calibrated magnitudes that a scale covers; what lies beyond is clipped. 100 covers all.
    """

    kind: ClassVar[str] = "int8"
    granularity: str = _choice("per_head", "--kv_granularity", "INT8 KV cache scales", choices=KV_SCALES)
    percentile: float = _choice(100.0, "--kv_percentile", "share of calibrated K and V magnitudes covered, in percent")

    def __post_init__(self) -> None:
        require_one_of("kv_cache.granularity", self.granularity, KV_SCALES)
        if not 50.0 <= self.percentile <= 100.0:
            raise RecipeError(f"kv_cache.percentile is {self.percentile}", allowed="50 to 100")


@dataclass(frozen=True)
class BuildLimits:
    """What an engine must be able to take. Lengths in tokens."""

    max_batch_size: int = _choice(8, "--max_batch_size", "most sequences in one batch")
    max_input_len: int = _choice(2048, "--max_input_len", "longest prompt in tokens")
    max_output_len: int = _choice(512, "--max_output_len", "most tokens generated for one prompt")
    targets: tuple[str, ...] = _choice(
        ("sm80", "sm86", "sm89", "sm120"),
        "--targets",
        "compute capabilities that one ahead-of-time plan must run on",
        choices=TARGETS,
    )

    @property
    def max_seq_len(self) -> int:
        """Positions that a KV cache holds: prompt and output together."""
        return self.max_input_len + self.max_output_len

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_input_len", "max_output_len"):
            value = getattr(self, name)
            if value < 1:
                raise RecipeError(f"build.{name} is {value}", allowed="whole numbers from 1", fix="raise it")
        if not self.targets:
            raise RecipeError("build.targets is empty", allowed=", ".join(TARGETS), fix="name at least one")
        for target in self.targets:
            require_one_of("build.targets", target, TARGETS)


@dataclass(frozen=True)
class Recipe:
    """Every choice for one model.

    Attributes:
        model: the HF checkpoint's folder, as given; empty when the recipe is not bound to a model.
        dtype: type of activations and of every weight that is not quantized.
        weights: how linear layers are quantized; None leaves them in ``dtype``.
        kv_cache: how keys and values are stored; None stores them in ``dtype``.
        max_positions: positions that the model takes, its rotary base raised for them; 0 leaves it its own.
        keep: linear layers left in ``dtype``; ``*`` stands for every layer or site (``layers.*.mlp.down``).
        build: limits and targets of an engine.
    """

    model: str = _choice("", "--model_dir", "folder of the Hugging Face checkpoint")
    dtype: str = _choice("float16", "--dtype", "type of activations and unquantized weights", choices=DTYPES)
    weights: WeightQuantization | None = _choice(
        None, "--weights", "how linear layers are quantized", choices=("none", *WEIGHT_KINDS)
    )
    keep: tuple[str, ...] = _choice(
        ("lm_head",), "--keep", "linear layers left in dtype, such as lm_head or layers.*.mlp.down"
    )
    kv_cache: Int8KVCache | None = _choice(
        None, "--kv_cache", "how keys and values are stored", choices=("none", "int8")
    )
    max_positions: int = _choice(0, "--max_positions", "positions to raise the rotary base for; 0 for the model's own")
    build: BuildLimits = field(default_factory=BuildLimits)

    def __post_init__(self) -> None:
        self._check_types()
        require_one_of("dtype", self.dtype, DTYPES)
        if self.max_positions < 0:
            raise RecipeError(f"max_positions is {self.max_positions}", allowed="whole numbers from 0")
        for name in self.keep:
            if not _LINEAR_PATTERN.fullmatch(name):
                raise RecipeError(
                    f"keep names {name!r}, which is no linear layer",
                    allowed="lm_head, layers.N.SITE or layers.*.SITE, SITE one of " + ", ".join(SITES),
                    fix=nearest(name, ["lm_head", *(f"layers.*.{site}" for site in SITES)]) or None,
                )
        if self.weights is None and set(self.keep) - {"lm_head"}:
            raise RecipeError(
                f"keep is {list(self.keep)} but weights is not quantized, so there is nothing to keep layers out of",
                fix="set weights.kind, or remove keep",
            )

    def _check_types(self) -> None:
        """Refuse parts that are no parts of a recipe, such as the mappings that stand for them in YAML."""
        for name, allowed in (
            ("weights", (*WEIGHT_KINDS.values(), type(None))),
            ("kv_cache", (Int8KVCache, type(None))),
            ("build", (BuildLimits,)),
            ("keep", (tuple,)),
        ):
            value = getattr(self, name)
            if not isinstance(value, allowed):
                kinds = ", ".join("None" if each is type(None) else each.__name__ for each in allowed)
                raise RecipeError(
                    f"{name} is {value!r}", allowed=kinds, fix="Recipe.from_dict reads what a YAML file holds"
                )

    def weights_of(self, linear: str) -> WeightQuantization | None:
        """How one linear layer, named as its tap (``layers.3.mlp.down``, ``lm_head``), is quantized."""
        kept = any(fnmatch.fnmatchcase(linear, pattern) for pattern in self.keep)
        return None if kept else self.weights

    # ---- files

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file.

        Raises:
            RecipeError: the file is missing, is not YAML, or holds an unknown key or an illegal value.
        """
        path = Path(path)
        if not path.is_file():
            raise RecipeError(f"recipe {path} is not a file", fix="give the path of a YAML file")
        return cls._read(path.read_bytes(), f"recipe {path}", "mend the file")

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """The recipe that a YAML text states; absent keys take their defaults.

        Raises:
            RecipeError: the text is not YAML, or holds an unknown key or an illegal value.
        """
        return cls._read(text.encode(), "the text", "mend the line")

    @classmethod
    def _read(cls, text: bytes, name: str, fix: str) -> Recipe:
        from workbench.strict_yaml import read_yaml

        try:
            content = read_yaml(text)
        except ValueError as error:
            raise RecipeError(f"{name} is not YAML ({error})", fix=fix) from error
        return cls.from_dict({} if content is None else content)

    @classmethod
    def from_dict(cls, content: Any) -> Recipe:
        """The recipe that a mapping states; absent keys take their defaults."""
        values = known_keys(content, cls, "the recipe")
        if "weights" in values:
            values["weights"] = variant_from(values["weights"], "weights", WEIGHT_KINDS)
        if "kv_cache" in values:
            values["kv_cache"] = variant_from(values["kv_cache"], "kv_cache", {Int8KVCache.kind: Int8KVCache})
        if "build" in values:
            limits = known_keys(values["build"], BuildLimits, "build")
            values["build"] = BuildLimits(**typed(limits, BuildLimits, "build."))
        return cls(**typed(values, cls, ""))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that :meth:`from_dict` reads; tuples become lists."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "weights": variant_to(self.weights),
            "keep": list(self.keep),
            "kv_cache": variant_to(self.kv_cache),
            "max_positions": self.max_positions,
            "build": {**dataclasses.asdict(self.build), "targets": list(self.build.targets)},
        }

    def to_yaml(self) -> str:
        """The recipe as the text of a YAML file."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    def save(self, path: str | Path) -> None:
        """Write the YAML file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")

    def to_cli(self) -> list[str]:
        """The flags of ``workbench convert`` and ``build`` that state this recipe; ``shlex.join`` quotes them."""
        words: list[str] = []
        for owner in (self, self.weights, self.kv_cache, self.build):
            if owner is not None:
                words += _flags_of(owner)
        return words


def _flags_of(owner: Any) -> list[str]:
    """Flags for the fields of one part of a recipe that differ from their defaults."""
    words: list[str] = []
    default = type(owner)()
    for item in dataclasses.fields(owner):
        value = getattr(owner, item.name)
        if "flags" not in item.metadata or value == getattr(default, item.name):
            continue
        words += [item.metadata["flags"][0], *_flag_values(value)]
    return words


def _flag_values(value: Any) -> list[str]:
    """The words after a flag that give it this value."""
    if value is None:
        return ["none"]
    if hasattr(value, "kind"):
        return [value.kind]
    if isinstance(value, Mapping):
        return [f"{name}={number}" for name, number in value.items()]
    return [str(item) for item in (value if isinstance(value, tuple) else (value,))]


def _require_alpha(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise RecipeError(f"{name} is {value}", allowed="0 to 1")
