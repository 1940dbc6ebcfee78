"""A folder that a test may break."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Breakable:
    """A folder with a ``config.json`` and one file of tensors."""

    folder: Path
    weights: str

    def edit_config(self, **changes: Any) -> None:
        """Set fields; ``...`` removes one."""
        path = self.folder / "config.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    def edit_tensors(self, edit: Callable[[dict[str, Tensor]], object]) -> None:
        """Rewrite the file with the library after ``edit`` has changed the tensors."""
        tensors = {name: tensor.clone() for name, tensor in load_file(self.folder / self.weights).items()}
        edit(tensors)
        save_file(tensors, self.folder / self.weights)
