"""What a stranger meets first: imports are light, files are listed, numbers of the house are kept."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parents[1]
SUFFIXES = (".py", ".cu", ".cuh")
FILES = sorted(path for path in (ROOT / "workbench").rglob("*") if path.suffix in SUFFIXES)
LISTED = [path.relative_to(ROOT).as_posix() for path in FILES if path.name != "__init__.py"]
SOURCES = [path.relative_to(ROOT).as_posix() for path in FILES if path.suffix == ".py"]
MODULES = [name for name in SOURCES if not name.endswith("__init__.py")]
FILE_LINES, FUNCTION_LINES = 400, 60


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, workbench; workbench.Recipe()\n"
        "heavy = {'torch', 'transformers', 'tensorrt', 'tensorrt_rtx', 'mpi4py', 'numpy', 'IPython', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'Recipes'"):
        _ = workbench.Recipes


def test_every_name_of_the_package_loads() -> None:
    assert dir(workbench) == sorted(workbench.__all__)
    for name in workbench.__all__:
        assert getattr(workbench, name) is not None


def test_the_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == workbench.__version__
    assert f"## {workbench.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LISTED)
def test_the_readme_has_a_line_for_every_source_file(name: str) -> None:
    assert f"`{name.removeprefix('workbench/')}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_no_file_that_is_gone() -> None:
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Source files\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([a-z0-9_/]+\.(?:py|cuh?))` \|", text, flags=re.MULTILINE)
    assert sorted(f"workbench/{name}" for name in listed) == LISTED


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_what_it_is_and_stays_short(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


def test_links_between_documents_lead_somewhere() -> None:
    import re

    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_shows_what_make_demo_does() -> None:
    import re

    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndemo:")[1].split("\n\n")[0]
    (prompt,) = re.findall(r"^PROMPT \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    made = recipe.replace("$(BIN)/", "").replace("$(DEMO)", "demo").replace("$(PROMPT)", prompt)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("What `make demo` does, by hand:")[1].split("```")[1]
    commands = re.findall(r"^\t(workbench .*)$", made, flags=re.MULTILINE)
    assert len(commands) == 5
    assert re.findall(r"^\$ (workbench .*)$", shown, flags=re.MULTILINE) == commands


def test_everything_but_python_is_packaged() -> None:
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    others = [path for path in (ROOT / "workbench").rglob("*.*") if path.is_file() and "__pycache__" not in path.parts]
    packaged = {path for pattern in held["workbench"] for path in (ROOT / "workbench").glob(pattern)}
    assert [path.name for path in others if path.suffix not in (".py", ".pyc") and path not in packaged] == []
