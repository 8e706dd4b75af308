"""What may import what, what an import costs, and what the packages export."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import surefoot

ROOT_MARKDOWN = {"CHANGELOG.md", "CONTRIBUTING.md", "README.md"}
LIGHT_MODULES = [
    "surefoot",
    "surefoot.errors",
    "surefoot.records",
    "surefoot.journal",
    "surefoot.doctor",
]
HEAVY_MODULES = {"torch", "torchvision", "timm", "ultralytics"}

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "surefoot"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_go_one_way() -> None:
    linted = lint_imports(ROOT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        (
            "losses",
            "import surefoot.guard",
            "surefoot.losses is not allowed to import surefoot.guard",
        ),
        ("records.py", "import surefoot.data", "surefoot.records is not allowed to import"),
        ("journal", "import torch", "surefoot.journal is not allowed to import torch"),
        ("doctor", "import surefoot.models", "surefoot.doctor is not allowed to import"),
    ],
)
def test_the_import_contract_finds_an_offender(
    tmp_path: Path, module: str, line: str, complaint: str
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    copy = tmp_path / "src" / "surefoot"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / module if module.endswith(".py") else copy / module / "__init__.py"
    file.write_text(file.read_text("utf-8") + f"\n{line}\n", "utf-8")
    linted = lint_imports(tmp_path)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert complaint in linted.stdout


def heavy_modules_after(code: str) -> set[str]:
    """Runs ``code`` in a fresh interpreter and says which heavy modules it left loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return HEAVY_MODULES & set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_log_can_be_read_without_torch(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


@pytest.mark.parametrize("code", ["import surefoot; surefoot.Guard", "import surefoot.shapes"])
def test_what_needs_torch_does_load_it(code: str) -> None:
    assert "torch" in heavy_modules_after(code)


PACKAGES = sorted(
    ".".join(init.parent.relative_to(PACKAGE.parent).parts) for init in PACKAGE.rglob("__init__.py")
)


def documented_values() -> set[str]:
    """Names of the constants with a docstring below them, as under a dataclass's field."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for value, below in pairwise(ast.parse(path.read_text("utf-8")).body):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if said and isinstance(value, ast.Assign | ast.AnnAssign):
                target = value.target if isinstance(value, ast.AnnAssign) else value.targets[0]
                found.add(ast.unparse(target))
    return found


def undocumented(name: str, value: Any) -> bool:
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return name not in documented_values()
    said = value.__doc__ or ""
    return not said or said.startswith(f"{value.__name__}(")  # what a dataclass writes by itself


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists_and_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    names = [name for name in getattr(module, "__all__", []) if not name.startswith("__")]
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{module.__file__}: __all__ names {missing}, which it does not have"
    silent = [name for name in names if undocumented(name, getattr(module, name))]
    assert not silent, f"{module.__file__}: exports without a docstring: {silent}"


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "surefoot"])
def test_a_package_is_a_list_of_exports(package: str) -> None:
    init = (PACKAGE.parent / package.replace(".", "/") / "__init__.py").relative_to(ROOT)
    _, *body = ast.parse((ROOT / init).read_text("utf-8")).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    exports = [node for node in body if ast.unparse(node).startswith("__all__ = ")]
    code = [node for node in body if node not in imports and node not in exports]
    assert not code, f"{init}:{code[0].lineno}: code; a package is a list of exports"
    imported = {a.asname or a.name for node in imports for a in node.names} - {"annotations"}
    listed = set(ast.literal_eval(exports[0].value)) if exports else set[str]()
    assert imported == listed, f"{init}: imported and __all__ differ: {sorted(imported ^ listed)}"


def test_the_front_page_is_sorted_and_every_name_loads() -> None:
    assert surefoot.__all__ == sorted(surefoot.__all__)
    assert dir(surefoot) == surefoot.__all__
    for name in surefoot.__all__:
        assert getattr(surefoot, name) is not None, name


def test_type_checkers_see_the_front_page_that_runs() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    seen = {
        alias.name: str(node.module).removeprefix("surefoot.")
        for branch in tree.body
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == surefoot._HOME
    assert {*seen, "__version__"} == set(surefoot.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'surefoot' has no attribute 'Gaurd'"):
        _ = surefoot.Gaurd


def test_one_version_is_stated() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert surefoot.__version__ == stated


def test_three_documents_lie_at_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.md")} == ROOT_MARKDOWN
