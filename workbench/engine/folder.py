"""The engine folder: ``config.json`` and ``rankN.engine``. Reads and writes the first, knows the names of the second.

The folder points at its checkpoint by a relative path and a checksum, so that a machine which cannot execute the plan
can still run the same weights.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import BackendError, CheckpointError
from workbench.recipe import Recipe

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class EngineConfig:
    """What an engine folder says of itself.

    Attributes:
        folder: the engine folder.
        product, version: the TensorRT that built the plan; another version cannot read it.
        targets: compute capabilities the plan was compiled for; empty when it was built on its own GPU.
        recipe: with the limits the engine was built for.
        checkpoint_dir: folder of the checkpoint it was built from.
        checkpoint_checksum: that checkpoint's checksum at the time.
    """

    folder: Path
    product: str
    version: str
    targets: tuple[str, ...]
    recipe: Recipe
    checkpoint_dir: Path
    checkpoint_checksum: str

    def plan_path(self, rank: int = 0) -> Path:
        return plan_path(self.folder, rank)


def plan_path(folder: Path, rank: int = 0) -> Path:
    """Where a rank's plan lies."""
    return folder / f"rank{rank}.engine"


def write_engine_config(folder: Path, config: EngineConfig, build: dict[str, Any]) -> None:
    """Write ``config.json``; ``build`` holds the figures of the build and is never read back.

    ``config.folder`` is where the folder will stand once it is complete; the checkpoint's path is relative to it.
    """
    content = {
        "workbench": {
            "kind": "engine",
            "format_version": FORMAT_VERSION,
            "product": config.product,
            "version": config.version,
            "targets": list(config.targets),
            "limits": asdict(config.recipe.build) | {"targets": list(config.targets)},
            "recipe": config.recipe.to_dict(),
            "checkpoint": {
                "path": Path(os.path.relpath(config.checkpoint_dir.resolve(), config.folder.resolve())).as_posix(),
                "checksum": config.checkpoint_checksum,
            },
            "build": build,
        }
    }
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_engine(folder: str | Path) -> bool:
    """Whether the folder's config.json says that it is an engine of ours."""
    try:
        section = json.loads((Path(folder) / CONFIG_NAME).read_text(encoding="utf-8"))["workbench"]
        return bool(section["kind"] == "engine")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_engine_config(folder: str | Path) -> EngineConfig:
    """Read ``config.json``.

    Raises:
        CheckpointError: no such folder, not an engine of ours, of another format version, or a part is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"engine folder {folder} does not exist", fix="build one with workbench build")
    if not is_engine(folder):
        raise CheckpointError(
            f"{folder} has no {CONFIG_NAME} of kind 'engine'", fix="give a folder that workbench build wrote"
        )
    section = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["workbench"]
    if section.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"engine {folder} has format version {section.get('format_version')}",
            allowed=str(FORMAT_VERSION),
            fix="build it again",
        )
    try:
        return EngineConfig(
            folder=folder,
            product=str(section["product"]),
            version=str(section["version"]),
            targets=tuple(section["targets"]),
            recipe=Recipe.from_dict(section["recipe"]),
            checkpoint_dir=Path(os.path.normpath(folder / section["checkpoint"]["path"])),
            checkpoint_checksum=str(section["checkpoint"]["checksum"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} lacks {error}", fix="build it again") from error


def require_version(config: EngineConfig, product: str, version: str) -> None:
    """A plan is read only by the very TensorRT that wrote it.

    Raises:
        BackendError: product or version differ; names both and the way out.
    """
    if (config.product, config.version) != (product, version):
        raise BackendError(
            f"engine {config.folder} was built with {config.product} {config.version}, here is {product} {version}",
            fix="build it again here, or run its checkpoint with --backend cpu",
        )
