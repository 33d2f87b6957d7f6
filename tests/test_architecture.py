"""The layers hold: who may import what, how long things may be, and that each file says what it is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capgap_core.fingerprint import NEUTRAL

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for name in ("capgap_core", "tasks", "flows") for path in (ROOT / name).rglob("*.py"))
LINES, FUNCTION_LINES = 301, 60


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def imported(names: list[str], banned: tuple[str, ...], before: str = "") -> str:
    """Import modules in a process of their own; return which banned ones came with them."""
    code = f"{before}\nimport importlib, sys\n[importlib.import_module(n) for n in {names}]\n"
    code += f"print(*sorted(set({banned}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_core_imports_no_prefect():
    assert imported(modules("capgap_core"), ("prefect",)) == ""


def test_tasks_and_flows_import_no_torch():
    assert imported([*modules("tasks"), *modules("flows")], ("torch", "transformers")) == ""


def test_the_check_of_the_input_imports_no_torch_and_no_prefect():
    names = ["flows.cli", "capgap_core.preflight", "capgap_core.build"]
    assert imported(names, ("torch", "transformers", "prefect")) == ""


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_module_that_moves_no_number_imports_none_that_could(name):
    assert imported([f"capgap_core.{name}"], ("torch", "numpy")) == ""


@pytest.mark.parametrize("banned", ["prefect", "torch", "numpy"])
def test_a_broken_rule_would_be_seen(banned):
    """The tests above can fail: what is banned is named when it is imported."""
    assert imported(["capgap_core.errors"], (banned,), before=f"import {banned}") == banned


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_is_and_is_read_in_one_sitting(path):
    text = path.read_text(encoding="utf8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert len(text.splitlines()) < LINES
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if (f.end_lineno or 0) - f.lineno >= FUNCTION_LINES}
    assert not long


def test_a_package_file_holds_a_docstring_only():
    for path in SOURCES:
        if path.name == "__init__.py":
            assert [type(n) for n in ast.parse(path.read_text(encoding="utf8")).body] == [ast.Expr], path


def test_no_pickle():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib"}, path


def calls(path):
    """Yield the dotted name of each call in a file, with its keywords and their sources."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def unsafe(name, words):
    """Return whether a call could run what it reads."""
    if name.endswith("torch.load"):
        return words.get("weights_only") != "True"
    return (
        name in ("eval", "exec", "__import__")
        or name.endswith(("read_pickle", "to_pickle", "yaml.load", "marshal.loads", "shelve.open"))
        or words.get("trust_remote_code", "False") != "False"
        or words.get("allow_pickle", "False") != "False"
        or words.get("shell", "False") != "False"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_what_it_reads(path):
    assert [name for name, words in calls(path) if unsafe(name, words)] == []


@pytest.mark.parametrize(
    "call", ["torch.load(p)", "f(x, trust_remote_code=True)", "exec(t)", "np.load(p, allow_pickle=1)"]
)
def test_such_a_call_would_be_seen(call, tmp_path):
    (tmp_path / "a.py").write_text(call)
    assert [unsafe(name, words) for name, words in calls(tmp_path / "a.py")] == [True]


def test_the_file_map_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8").split("## Files")[1]
    named = set(re.findall(r"`([\w./*]+\.py)`", text))
    for path in SOURCES:
        short = str(path.relative_to(ROOT)).removeprefix("capgap_core/")
        if path.name == "__init__.py" or f"{Path(short).parent}/*.py" in named:
            continue
        assert short in named, short
    for name in named:
        assert [*ROOT.glob(name), *(ROOT / "capgap_core").glob(name)], name
