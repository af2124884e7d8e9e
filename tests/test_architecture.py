"""The walls of the house hold in the imports: seven layers, and nothing but studies above them.

Imports for annotations count too: what a module's types name, it depends on.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sdopt

PACKAGE = Path(sdopt.__file__).parent
STUDIES = PACKAGE.parent / "studies"

LAYERS = (
    {"errors", "levels", "util"},
    {"miniature", "weights"},
    {"engine"},
    {"pipelines", "compile_cache", "tuning"},
    {"service"},
    {"bench"},
    {"cli", "evaluate"},
)
"""A module may import from its own layer and from those before it."""
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}

ROOMS = (
    *("own", "metrics", "measure", "stored", "judge"),
    *("report", "evaluation", "ab", "session", "review", "faults", "plugin"),
)
"""Of the bench, in the order that numbers flow in: a room imports from those before it."""

BENCH_FOR_COMMANDS = {
    "sdopt/cli/levels.py": {"report", "stored"},
    "sdopt/cli/compare.py": {"metrics"},
    "sdopt/cli/evaluate.py": {"evaluation", "judge"},
    "sdopt/cli/history.py": {"review"},
    "sdopt/cli/accept.py": {"judge", "report", "review", "session"},
    "sdopt/cli/baseline.py": {"metrics", "review", "stored"},
    "sdopt/cli/report.py": {"report"},
}
"""What of the bench a command may use, inside its functions: a plain installation has no pytest.

`evaluate`, `history`, `accept` and `baseline` say first what they need installed.
"""

BENCH_ONLY = {
    *("pytest", "_pytest", "pytest_benchmark", "jsonschema"),
    *("pyarrow", "scipy", "skimage"),
}
NEVER = {"matplotlib", "hypothesis"}

MODULES = {
    str(path.relative_to(PACKAGE.parent)): ast.parse(path.read_text(encoding="utf-8"))
    for folder in (PACKAGE, STUDIES)
    for path in sorted(folder.rglob("*.py"))
}
OWN = [file for file in MODULES if file.startswith("sdopt/") and file != "sdopt/__init__.py"]
BENCH = [file for file in OWN if file.startswith("sdopt/bench/") and file.count("/") > 2]


def place(file: str, depth: int) -> str:
    """'bench' for 'sdopt/bench/judge/gate.py' at depth 1, 'judge' at depth 2."""
    return Path(file).parts[depth].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """The full names that a module imports, inside functions and for annotations too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def named(file: str, prefix: str) -> set[str]:
    """What follows `prefix` in the names that a file imports: 'measure' after 'sdopt.bench.'."""
    names = (
        name.removeprefix(prefix)
        for name in imports(MODULES[file])
        if name[: len(prefix)] == prefix
    )
    return {name.split(".")[0] for name in names}


def packages(file: str) -> set[str]:
    return {name.split(".")[0] for name in imports(MODULES[file])}


def test_every_module_has_a_layer() -> None:
    assert {place(file, 1) for file in OWN} == set(LAYER_OF)
    assert {place(file, 2) for file in BENCH} == set(ROOMS)


@pytest.mark.parametrize("file", OWN)
def test_lower_layers_never_import_higher_ones(file: str) -> None:
    own = LAYER_OF[place(file, 1)]
    assert {name for name in named(file, "sdopt.") if LAYER_OF.get(name, -1) > own} == set()
    assert "studies" not in packages(file)


@pytest.mark.parametrize("file", BENCH)
def test_the_rooms_of_the_bench_are_in_order(file: str) -> None:
    own = ROOMS.index(place(file, 2))
    assert {room for room in named(file, "sdopt.bench.") if ROOMS.index(room) > own} == set()


@pytest.mark.parametrize("file", [file for file in OWN if place(file, 1) == "cli"])
def test_commands_use_of_the_bench_what_a_plain_installation_can_import(file: str) -> None:
    assert named(file, "sdopt.bench.") <= BENCH_FOR_COMMANDS.get(file, set())
    loaded_at_once = ast.Module([node for node in MODULES[file].body if is_import(node)], [])
    heavy = {"torch", "diffusers", "numpy", "PIL", "rich", "skimage", "pynvml"}
    names = imports(loaded_at_once)
    assert {name.split(".")[0] for name in names} & heavy == set()
    assert {name for name in names if name.startswith("sdopt.bench")} == set()


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def circles(modules: dict[str, ast.Module]) -> set[str]:
    """The modules, by file, whose imports lead back to them."""
    files = {file.removesuffix(".py").replace("/", "."): file for file in modules}
    reached = {}
    for file, tree in modules.items():
        names = imports(tree)
        found = {files.get(name) or files.get(name.rpartition(".")[0]) for name in names}
        reached[file] = {one for one in found if one is not None} - {file}
    for middle in reached:
        for file, found in reached.items():
            if middle in found:
                reached[file] = found | reached[middle]
    return {file for file, found in reached.items() if file in found}


def test_no_imports_lead_in_a_circle() -> None:
    assert circles({file: MODULES[file] for file in OWN}) == set()


def test_a_circle_of_three_is_found_one_for_annotations_too() -> None:
    code = {
        "a/one.py": "from a.two import x",
        "a/two.py": "if TYPE_CHECKING:\n    import a.three",
        "a/three.py": "def f():\n    from a import one",
        "a/four.py": "import a.one",
    }
    assert circles({file: ast.parse(text) for file, text in code.items()}) == set(code) - {
        "a/four.py"
    }


@pytest.mark.parametrize("file", OWN)
def test_only_the_bench_imports_what_only_the_bench_installs(file: str) -> None:
    used = packages(file)
    assert used & NEVER == set()
    if place(file, 1) != "bench":
        assert used & BENCH_ONLY == set()


def test_only_the_plugin_imports_pytest() -> None:
    found = {file for file in OWN if packages(file) & {"pytest", "_pytest"}}
    assert {place(file, 2) for file in found} == {"plugin"}


def test_graphs_are_captured_in_one_place() -> None:
    """PyTorch's own way may take another graph's workspace: see `capturing` there."""
    found = {
        file
        for file, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "graph"
        if ast.unparse(node) == "torch.cuda.graph"
    }
    assert found == {"sdopt/engine/cuda_graphs.py"}


@pytest.mark.parametrize("file", BENCH)
def test_what_is_too_large_is_split(file: str) -> None:
    """A module has 350 lines at most, a function 60, a class 15 methods."""
    assert len((PACKAGE.parent / file).read_text(encoding="utf-8").splitlines()) <= 350
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(MODULES[file]):
        if isinstance(node, functions):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
        elif isinstance(node, ast.ClassDef):
            assert sum(isinstance(part, functions) for part in node.body) <= 15, node.name


def test_a_plain_installation_brings_nothing_of_the_bench() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    plain = {re.split(r"[^\w-]", line)[0] for line in project["project"]["dependencies"]}
    assert "torch" in plain
    assert plain & {"pytest", "pytest-benchmark", "scikit-image", "scipy", "matplotlib"} == set()


@pytest.mark.parametrize("file", ["errors", "levels", "bench/judge", "util/startup"])
@pytest.mark.parametrize("package", ["torch", "diffusers", "numpy"])
def test_the_pure_modules_import_no_arrays(file: str, package: str) -> None:
    pure = [name for name in OWN if name.startswith((f"sdopt/{file}.", f"sdopt/{file}/"))]
    assert pure
    assert all(package not in packages(name) for name in pure)


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter holds after the statement."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import sdopt", "import sdopt.bench.judge.gate, sdopt.bench.report.terminal"]
)
def test_an_import_of_the_pure_parts_loads_neither_torch_nor_diffusers(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "sdopt" in loaded
    assert loaded & {"torch", "diffusers", "transformers", "pytest"} == set()


def test_the_help_of_the_command_line_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import io, sys; out, sys.stdout = sys.stdout, io.StringIO()\n"
        "from sdopt.cli.app import main; main(['generate', '--help']); sys.stdout = out"
    )
    assert "typer" in loaded
    assert loaded & {"torch", "diffusers", "transformers", "numpy", "PIL", "pytest"} == set()


def test_the_front_of_the_service_loads_no_torch() -> None:
    """Else it would hold hundreds of MiB beside its workers, and a context on the first GPU."""
    loaded = loaded_by("import sdopt.service.server, sdopt.service.encoding")
    assert "fastapi" in loaded
    assert loaded & {"torch", "diffusers", "transformers", "pytest"} == set()


@pytest.mark.slow
def test_a_pipeline_loads_nothing_of_the_bench() -> None:
    loaded = loaded_by("import sdopt.pipelines.pipeline, sdopt.compile_cache, sdopt.tuning.jobs")
    assert "diffusers" in loaded
    assert loaded & (BENCH_ONLY | NEVER | {"studies"}) <= {"scipy"}  # diffusers looks for scipy


def test_imports_for_annotations_and_inside_functions_count() -> None:
    code = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d"
    assert imports(ast.parse(code)) == {"a", "b", "c.d"}
