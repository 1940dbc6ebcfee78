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
from typing import Any, ClassVar, get_args, get_type_hints

from workbench.errors import RecipeError, nearest

DTYPES = ("float32", "float16", "bfloat16")
TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
SITES = ("attention.qkv", "attention.o", "mlp.gate_up", "mlp.down")
_LINEAR_PATTERN = re.compile(r"lm_head|layers\.(\d+|\*)\.(\*|" + "|".join(map(re.escape, SITES)) + ")")


@dataclass(frozen=True)
class Int8WeightOnly:
    """INT8 weights with one float32 scale per output channel; activations stay in the recipe's dtype."""

    kind: ClassVar[str] = "int8"


WeightQuantization = Int8WeightOnly
WEIGHT_KINDS: dict[str, type[WeightQuantization]] = {cls.kind: cls for cls in (Int8WeightOnly,)}


def _choice(default: Any, flags: str, text: str, **extra: Any) -> Any:
    """A dataclass field that is also a command line flag."""
    return field(default=default, metadata={"flags": flags.split(), "help": text, **extra})


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
            _require_one_of("build.targets", target, TARGETS)


@dataclass(frozen=True)
class Recipe:
    """Every choice for one model.

    Attributes:
        model: the HF checkpoint's folder, as given; empty when the recipe is not bound to a model.
        dtype: type of activations and of every weight that is not quantized.
        weights: how linear layers are quantized; None leaves them in ``dtype``.
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
    build: BuildLimits = field(default_factory=BuildLimits)

    def __post_init__(self) -> None:
        _require_one_of("dtype", self.dtype, DTYPES)
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
        import yaml

        path = Path(path)
        if not path.is_file():
            raise RecipeError(f"recipe {path} is not a file", fix="give the path of a YAML file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"recipe {path} is not YAML ({reason})", fix="mend the file") from error
        return cls.from_dict({} if content is None else content)

    @classmethod
    def from_dict(cls, content: Any) -> Recipe:
        """The recipe that a mapping states; absent keys take their defaults."""
        values = _known(content, cls, "the recipe")
        if "weights" in values:
            values["weights"] = _weights_from(values["weights"])
        if "build" in values:
            limits = _known(values["build"], BuildLimits, "build")
            values["build"] = BuildLimits(**_typed(limits, BuildLimits, "build."))
        return cls(**_typed(values, cls, ""))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that :meth:`from_dict` reads; tuples become lists."""
        weights = None if self.weights is None else {"kind": self.weights.kind, **dataclasses.asdict(self.weights)}
        return {
            "model": self.model,
            "dtype": self.dtype,
            "weights": weights,
            "keep": list(self.keep),
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
        """The flags of ``workbench convert`` and ``workbench build`` that state this recipe; defaults are left out."""
        words: list[str] = []
        for owner, default in ((self, Recipe()), (self.build, BuildLimits())):
            for item in dataclasses.fields(owner):
                value = getattr(owner, item.name)
                if "flags" not in item.metadata or value == getattr(default, item.name):
                    continue
                words.append(item.metadata["flags"][0])
                if item.name == "weights":
                    words.append("none" if value is None else value.kind)
                else:
                    words.extend(map(str, value if isinstance(value, tuple) else (value,)))
        return words


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = nearest(str(value), allowed)
        raise RecipeError(f"{name} is {value!r}", allowed=", ".join(allowed), fix=hint or None)


def _known(content: Any, cls: type, place: str) -> dict[str, Any]:
    """``content`` as a dictionary whose keys are all fields of ``cls``."""
    if not isinstance(content, Mapping):
        raise RecipeError(f"{place} is {type(content).__name__}, not a mapping", fix="write 'key: value' lines")
    names = [item.name for item in dataclasses.fields(cls)]
    for key in content:
        if key not in names:
            hint = nearest(str(key), names)
            raise RecipeError(f"{place} has the unknown key {key!r}", allowed=", ".join(names), fix=hint or None)
    return dict(content)


def _weights_from(content: Any) -> WeightQuantization | None:
    if content is None:
        return None
    if not isinstance(content, Mapping) or "kind" not in content:
        raise RecipeError(
            f"weights is {content!r}", allowed="null or a mapping with 'kind'", fix="write weights: {kind: int8}"
        )
    kind = content["kind"]
    _require_one_of("weights.kind", kind, tuple(WEIGHT_KINDS))
    cls = WEIGHT_KINDS[kind]
    rest = {key: value for key, value in content.items() if key != "kind"}
    return cls(**_typed(_known(rest, cls, f"weights of kind {kind}"), cls, "weights."))


def _typed(values: dict[str, Any], cls: type, prefix: str) -> dict[str, Any]:
    """``values`` with lists made tuples, each checked against its field's type."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        hint = hints[name]
        if hint == tuple[str, ...]:
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise RecipeError(f"{prefix}{name} is {value!r}", allowed="a list of names")
            values[name] = tuple(value)
        elif not isinstance(value, get_args(hint) or hint) or (hint is int and isinstance(value, bool)):
            wanted = {int: "a whole number", str: "a text"}.get(hint, str(hint))
            raise RecipeError(f"{prefix}{name} is {value!r}", allowed=wanted)
    return values
