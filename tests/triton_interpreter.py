"""What Triton's interpreter needs here before a kernel runs in it."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def let_the_interpreter_count() -> None:
    """Triton 3.6 takes ``int`` of arrays with one element in ``range``; numpy 2.4 no longer allows it."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched
