"""What the small kernels of the machine's own tests take, as the beginning of their source and as a structure."""

from __future__ import annotations

import ctypes

BEGIN = """
struct Argument { const int* in; int* out; u32* counter; int size; };
extern __shared__ __align__(128) char memory[];
"""


class Argument(ctypes.Structure):
    _fields_ = (
        ("input", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("counter", ctypes.c_void_p),
        ("size", ctypes.c_int),
    )
