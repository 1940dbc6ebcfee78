"""What Triton's interpreter needs here before a kernel runs in it."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def let_the_interpreter_count() -> None:
    """Its shortcomings made good.

    Triton 3.6 takes ``int`` of arrays with one element in ``range``; numpy 2.4 no longer allows it. And it rounds the
    product of a fused multiplication and addition, which no GPU does.
    """
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched

    def fused(_: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype("float64") * y.data + z.data  # a product of float32 values is exact in float64
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = fused
