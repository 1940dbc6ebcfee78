"""Which folder a model's name means: a path, a downloaded model of the hub, or the embedded one. Opens nothing."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.bench.workspace import cache_root
from workbench.errors import CheckpointError
from workbench.progress import Reporter, silent


def find_model(name: str | Path | None, cache_dir: str | Path | None = None, report: Reporter = silent) -> Path:
    """The folder that a name means.

    Args:
        name: a folder; the name of a model of the hub that is in its local cache; None for the embedded model, which
            is written into the cache when it is first asked for.
        cache_dir: see :func:`workbench.bench.workspace.cache_root`.
        report: told the bytes of the embedded model.

    Raises:
        CheckpointError: there is no such folder.
    """
    if name is None:
        from workbench.checkpoint.demo import write_demo_model

        folder = cache_root(cache_dir) / "embedded-model"
        write_demo_model(folder, report=report)
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    cached = _from_hub_cache(str(name))
    if cached is None:
        raise CheckpointError(
            f"model {str(name)!r} is neither a folder nor in the local cache of the hub",
            allowed="a folder of a Hugging Face checkpoint, the name of a downloaded one, or none: the embedded model",
            fix=f"check the path, or download it first: hf download {_hub_name(str(name))}",
        )
    return cached


def _hub_name(name: str) -> str:
    """The name as the hub has it; what none can be stands for one."""
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) else "OWNER/NAME"


def _from_hub_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None
