"""Triton kernels compile, without a GPU, for every architecture we serve. In a process of its own: no interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")

ARCHITECTURES = ["80", "89", "90", "120"]
ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from workbench.backends.kernels import attention, choice, int8_gemm, rope, rowwise

HEADS = dict(NUM_HEADS=8, KV_HEADS=2, DIM=64, PER_HEAD=True)
DECODE = dict(**HEADS, GROUP=4, BLOCK=16, HALF=32, WIDTH=64, KEYS=64, SPLITS=4, EVICTION="", AHEAD=0)
AHEAD = DECODE | dict(GROUP=1, BLOCK=1, SPLITS=1, EVICTION="evict_first", AHEAD=64)
TYPES = dict(
    x="*fp16", residual="*fp16", weight="*fp16", summed="*fp16", normed="*fp16", integers="*i8", features="i32",
    eps="fp32", gate_up="*fp16", y="*fp16", sums="*i32", bias="*fp16", qkv="*fp16", positions="*i64", start="*i32",
    query="*fp16", key="*fp16", value="*fp16", context="*fp16", arrived="*i32", seq="i32", max_len="i32", tokens="i32",
    rows="i32", k="i32",
)
CASES = [
    (rowwise._norm_kernel, dict(HAS_RESIDUAL=True, QUANTIZE=True, STATIC=False, BLOCK=1024), {}),
    (rowwise._quantize_kernel, dict(STATIC=False, BLOCK=1024), {}),
    (rowwise._swiglu_kernel, dict(BLOCK=1024), {}),
    (rowwise._rescale_kernel, dict(PER_ROW=True, HAS_BIAS=True, BLOCK=1024), {}),
    (choice._keys_kernel, dict(BLOCK=8192), {"keys": "*i64"}),
    (choice._choose_kernel, dict(BLOCK=16), {"keys": "*i64", "ids": "*i64", "parts": "i32"}),
    (rope._rope_kernel, dict(**HEADS, BLOCK=16, HALF=32, INT8=True), {"*cache": "*i8"}),
    (attention._decode_kernel, dict(**DECODE, INT8=False, PERMUTE=False), {"*cache": "*fp16"}),
    (attention._decode_kernel, dict(**DECODE, INT8=True, PERMUTE=True), {"*cache": "*i8"}),
    (attention._decode_kernel, dict(**DECODE | dict(GROUP=1, BLOCK=1), INT8=True, PERMUTE=True), {"*cache": "*i8"}),
    (attention._decode_kernel, dict(**AHEAD, INT8=True, PERMUTE=True), {"*cache": "*i8"}),
    (
        int8_gemm._int8_kernel,
        dict(STATIC=False, HAS_BIAS=True, GLU=True, TOKENS=64, ROWS=32, DEPTH=128),
        {"x": "*i8", "weight": "*i8"},
    ),
]
def check(kernel, constants, types, architecture):
    names = kernel.arg_names
    overlap = {"PDL": architecture >= 90} if "PDL" in names else {}
    known = constants | overlap
    scale = {"scale": "fp32"} if kernel in (rope._rope_kernel, attention._decode_kernel) else {}
    cache = {name: types["*cache"] for name in names if name.endswith("_cache") and "*cache" in types}
    given = TYPES | types | scale | cache
    signature = {name: "constexpr" if name in known else given.get(name, "*fp32") for name in names}
    source = ASTSource(kernel, signature=signature, constexprs={(names.index(n),): v for n, v in known.items()})
    options = {"num_warps": 4, **({"launch_pdl": True} if overlap.get("PDL") else {})}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert compiled.asm["cubin"].startswith(b"\\x7fELF")


for case in CASES:
    for architecture in map(int, sys.argv[1:]):
        check(*case, architecture)
print("compiled", len(CASES) * (len(sys.argv) - 1))
"""


def test_every_kernel_compiles_for_every_architecture(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *ARCHITECTURES], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "compiled 48" in done.stdout
