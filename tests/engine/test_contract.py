"""Every TensorRT name that the workbench uses exists, with the same signature, in both products.

The full product needs a GPU to make anything, but its Python bindings can be imported against stub libraries, and then
tell their names. Names are collected from the source: every attribute and every text in files that handle TensorRT.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import workbench

BINDINGS = "tensorrt-cu13-bindings==11.4.0.106"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
HERE = Path(__file__).parent / "contract"
Surface = dict[str, dict[str, str]]

# Used for TensorRT-RTX alone, each behind a question which product it is. The reasons are in engine/product.py.
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
# Both products have it; RTX adds an optional argument that we do not pass.
OTHER_SIGNATURE = {("Builder", "build_serialized_network")}


def read_surface(module: str, *paths: Path, libraries: Path | None = None) -> Surface:
    environment = dict(os.environ, **({} if libraries is None else {"LD_LIBRARY_PATH": str(libraries)}))
    command = [sys.executable, str(HERE / "surface.py"), module, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    content: Surface = json.loads(done.stdout)
    return content


@pytest.fixture(scope="module")
def rtx() -> Surface:
    pytest.importorskip("tensorrt_rtx")
    return read_surface("tensorrt_rtx")


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest) -> Surface:
    """The full product's names; its bindings are fetched once into pytest's cache."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("needs a C compiler on x86-64 Linux to make stub libraries")
    folder = Path(request.config.cache.mkdir(BINDINGS.replace("==", "-")))
    with FileLock(folder / ".lock"):  # tests may run in several processes
        _fetch_bindings(folder, compiler)
        return read_surface("tensorrt_bindings", folder, libraries=folder)


def _fetch_bindings(folder: Path, compiler: str) -> None:
    if not (folder / "tensorrt_bindings").is_dir():
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), BINDINGS]
        if subprocess.run(fetch, capture_output=True, timeout=300).returncode != 0:
            pytest.skip(f"{BINDINGS} cannot be fetched here")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    for library in LIBRARIES:
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / library), str(HERE / "stubs.c")]
        subprocess.run(command, check=True, capture_output=True)


# ---- what the source uses


def handles_tensorrt(tree: ast.AST) -> bool:
    return any(is_module(node) for node in ast.walk(tree))


def is_module(node: ast.AST) -> bool:
    """``trt``, or ``something.trt``."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("trt", "_trt")


def sources() -> Iterator[ast.AST]:
    for path in sorted(Path(workbench.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if handles_tensorrt(tree):
            yield tree


def names_in(tree: ast.AST) -> set[str]:
    """Attributes, and texts that may name one (``getattr``, tables of enum members)."""
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return attributes | {text for text in texts if text.isidentifier()}


def module_paths(tree: ast.AST) -> set[tuple[str, ...]]:
    """``trt.DataType.INT8`` as ``("DataType", "INT8")``; also the shorter ``("DataType",)``."""
    paths: set[tuple[str, ...]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            continue
        if isinstance(node, ast.Attribute) and is_module(node.value):
            paths.add((node.attr,))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and is_module(node.value.value):
            paths.add((node.value.attr, node.attr))
    return paths


def differences(names: set[str], rtx: Surface, full: Surface) -> set[str]:
    """``Class.name`` that only one product has, or has with another signature, for each name in use.

    What object an attribute belongs to is not known, so every class of RTX that has the name must agree.
    """
    found = set()
    for owner, members in rtx.items():
        for name in names & members.keys() - RTX_ONLY:
            theirs = full.get(owner, {})
            same = name in theirs and (members[name] == theirs[name] or (owner, name) in OTHER_SIGNATURE)
            # The members of a class of RTX alone matter only where that class is in use unasked.
            if not same and (owner in full or owner in names - RTX_ONLY):
                found.add(f"{owner}.{name}".lstrip("."))
    return found


# ---- the contract


def test_the_source_is_seen() -> None:
    names = set().union(*map(names_in, sources()))
    assert {"add_attention_v2", "add_kv_cache_update", "IMatrixMultiplyLayer", "PROD", "HALF"} <= names
    paths = set().union(*map(module_paths, sources()))
    assert {("Builder",), ("DataType", "INT8"), ("MatrixOperation", "TRANSPOSE")} <= paths


def test_names_reached_from_the_module_exist_in_rtx(rtx: Surface) -> None:
    missing = {
        path
        for path in set().union(*map(module_paths, sources()))
        if path[0] not in rtx[""] or (len(path) == 2 and path[1] not in rtx[path[0]])
    }
    assert missing == set()


def test_every_name_in_use_is_in_both_products(rtx: Surface, full: Surface) -> None:
    assert differences(set().union(*map(names_in, sources())), rtx, full) == set()


def test_exceptions_are_in_use_and_needed(rtx: Surface, full: Surface) -> None:
    names = set().union(*map(names_in, sources()))
    everywhere = {name for members in full.values() for name in members}
    assert names >= RTX_ONLY
    assert everywhere.isdisjoint(RTX_ONLY)
    assert all(rtx[owner][name] != full[owner][name] for owner, name in OTHER_SIGNATURE)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("trt.EngineValidity", {"EngineValidity"}),
        ("layer = network.add_quantize(x, y, z)", set()),
        ("runtime.get_engine_validity(data)", {"Runtime.get_engine_validity"}),
        ("getattr(trt, 'CudaGraphStrategy')", {"CudaGraphStrategy"}),
    ],
)
def test_a_name_of_one_product_is_noticed(source: str, expected: set[str], rtx: Surface, full: Surface) -> None:
    assert differences(names_in(ast.parse(source)), rtx, full) == expected
