"""Caps and rules that every source file keeps. Each failure names file and line."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
MAY_PRINT = ("cli", "report")
# Spelt apart, so that this file keeps its own rule.
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "X" + "XX"]

ROOT = Path(__file__).resolve().parent.parent


class Source(NamedTuple):
    """One file, read and parsed."""

    path: Path
    """Relative to the checkout."""
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str | Path, text: str) -> Source:
        return cls(Path(path), text, ast.parse(text))


Offence = tuple[int, str]
Rule = Callable[[Source], Iterator[Offence]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Source]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source.of(path.relative_to(ROOT), path.read_text("utf-8")) for path in files]


def functions(tree: ast.AST) -> Iterator[tuple[FunctionNode, list[ast.arg]]]:
    """Every function with its parameters; ``self`` and ``cls`` are none."""
    methods = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, FunctionNode)
        and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    }
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode):
            a = node.args
            by_place = [*a.posonlyargs, *a.args]
            rest = [*a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            yield node, by_place[id(node) in methods :] + rest


def dotted_calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the full name of what it calls: ``np.load`` is ``numpy.load``."""
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            full |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, tail = ast.unparse(node.func).partition(".")
            yield node, full.get(head, head) + dot + tail


def file_cap(source: Source) -> Iterator[Offence]:
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines; the cap is {MAX_FILE_LINES}"


def function_cap(source: Source) -> Iterator[Offence]:
    for node, _ in functions(source.tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {lines} lines; the cap is {MAX_FUNCTION_LINES}"


def parameter_cap(source: Source) -> Iterator[Offence]:
    for node, parameters in functions(source.tree):
        if len(parameters) > MAX_PARAMETERS:
            count = f"{len(parameters)} parameters; the cap is {MAX_PARAMETERS}"
            yield node.lineno, f"{node.name} takes {count}: gather them in a keyword-only dataclass"


def annotations(source: Source) -> Iterator[Offence]:
    for node, parameters in functions(source.tree):
        bare = [p.arg for p in parameters if p.annotation is None]
        if bare:
            yield node.lineno, f"{node.name} does not annotate {', '.join(bare)}"
        if node.returns is None:
            yield node.lineno, f"{node.name} does not annotate what it returns"


def module_docstring(source: Source) -> Iterator[Offence]:
    said = ast.get_docstring(source.tree)
    if not said:
        yield 1, "no module docstring"
    elif re.fullmatch(r"surefoot(\.\w+)*\.?", said):
        yield 1, f"the module docstring says nothing but its name: {said!r}"


def printing(source: Source) -> Iterator[Offence]:
    if any(word in part for word in MAY_PRINT for part in source.path.with_suffix("").parts):
        return
    for call, name in dotted_calls(source.tree):
        if name in ("print", "rich.print"):
            yield call.lineno, "prints; only the command and the report modules do"


def broad_except(source: Source) -> Iterator[Offence]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = _names(node.type) if node.type else {"everything"}
            ends_in_raise = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            # Cleaning up on the way out of whatever happened is what BaseException is for.
            allowed = {"BaseException"} if ends_in_raise else set[str]()
            for name in caught & {"everything", "Exception", "BaseException"} - allowed:
                yield node.lineno, f"catches {name}; name what can happen here"
    for call, name in dotted_calls(source.tree):
        if name == "contextlib.suppress" and {"Exception", "BaseException"} & _names(*call.args):
            yield call.lineno, "suppresses every exception; name what can happen here"


def _names(*nodes: ast.AST) -> set[str]:
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def code_in_data(source: Source) -> Iterator[Offence]:
    """Loading a pickle runs whatever code its author put there."""
    for call, name in dotted_calls(source.tree):
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if re.fullmatch(r"(pickle|dill|joblib|cloudpickle)\.(loads?|Unpickler)", name):
            yield call.lineno, f"{name} runs code that lies in the file"
        if name == "torch.load" and given.get("weights_only") != "True":
            yield call.lineno, "torch.load without weights_only=True"
        if name == "numpy.load" and given.get("allow_pickle", "False") != "False":
            yield call.lineno, "numpy.load with allow_pickle"


def unfinished(source: Source) -> Iterator[Offence]:
    for number, line in enumerate(source.text.splitlines(), start=1):
        if re.search(rf"\b({'|'.join(UNFINISHED)})\b", line):
            yield number, f"unfinished: {line.strip()}"


RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "file_cap": (file_cap, ("src", "benchmarks")),
    "function_cap": (function_cap, ("src", "benchmarks")),
    "parameter_cap": (parameter_cap, ("src", "benchmarks")),
    "annotations": (annotations, ("src", "benchmarks")),
    "module_docstring": (module_docstring, ("src", "benchmarks")),
    "printing": (printing, ("src",)),
    "broad_except": (broad_except, ("src", "tests", "benchmarks")),
    "code_in_data": (code_in_data, ("src", "benchmarks")),
    "unfinished": (unfinished, ("src", "tests", "benchmarks")),
}
OFFENDERS = {
    "file_cap": "\n" * 400,
    "function_cap": "def f() -> None:\n" + "    pass\n" * 60,
    "parameter_cap": "class C:\n  def f(self, a, b, c, *d, e, f, g, **h): ...",
    "annotations": "def f(a: int, *b) -> None: ...",
    "annotations: returns": "def f(a: int): ...",
    "module_docstring": "x = 1",
    "module_docstring: name": '"""surefoot.guard."""',
    "printing": "print('loss')",
    "printing: rich": "from rich import print as say\nsay('loss')",
    "broad_except": "try: f()\nexcept (OSError, Exception): pass",
    "broad_except: bare": "try: f()\nexcept: pass",
    "broad_except: base": "try: f()\nexcept BaseException: pass",
    "broad_except: suppress": "import contextlib as c\nc.suppress(Exception)",
    "code_in_data": "import pickle as p\np.load(file)",
    "code_in_data: from": "from pickle import loads\nloads(file)",
    "code_in_data: torch": "import torch\ntorch.load(file)",
    "code_in_data: torch, off": "import torch\ntorch.load(file, weights_only=False)",
    "code_in_data: numpy": "import numpy as np\nnp.load(file, allow_pickle=True)",
    "unfinished": f"x = 1  # {UNFINISHED[0]}: y",
}
KEPT = {
    "file_cap": "\n" * 350,
    "function_cap": "def f() -> None:\n" + "    pass\n" * 59,
    "parameter_cap": "class C:\n  def f(self, a, b, c, *d, e, f, **g): ...",
    "annotations": "class C:\n  @classmethod\n  def f(cls, a: int, *b: int, **c: int) -> None: ...",
    "module_docstring": '"""What it is for."""',
    "printing": "report.print('loss')",
    "broad_except": "try: f()\nexcept OSError: pass",
    "broad_except: clean up": "try: f()\nexcept BaseException:\n  g()\n  raise",
    "code_in_data": "import torch\ntorch.load(file, weights_only=True)",
    "unfinished": "mastodons = 1",
}


@pytest.mark.parametrize("name", RULES)
def test_every_file_keeps_the_rule(name: str) -> None:
    rule, folders = RULES[name]
    offences = [
        f"{source.path}:{line}: {what}"
        for source in sources(*folders)
        for line, what in rule(source)
    ]
    assert not offences, "\n" + "\n".join(offences)


@pytest.mark.parametrize("case", OFFENDERS)
def test_the_rule_finds_an_offender(case: str) -> None:
    rule, _ = RULES[case.partition(":")[0]]
    assert list(rule(Source.of("src/surefoot/guard/window.py", OFFENDERS[case])))


@pytest.mark.parametrize("case", KEPT)
def test_the_rule_leaves_the_rest_alone(case: str) -> None:
    rule, _ = RULES[case.partition(":")[0]]
    assert list(rule(Source.of("src/surefoot/guard/window.py", KEPT[case]))) == []


def test_the_command_and_the_reports_may_print() -> None:
    for path in ("src/surefoot/cli/main.py", "src/surefoot/doctor/report.py"):
        assert not list(printing(Source.of(path, "print('loss')")))
