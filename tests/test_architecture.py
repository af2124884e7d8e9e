"""The way of the data holds in the imports: source -> level -> pipeline -> ... -> plugin."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdopt

PACKAGE = Path(sdopt.__file__).parent

# A module may import from its own box and from the boxes before it.
BOXES = (
    {"errors"},
    {"startup"},
    {"children"},
    {"cache_schedule"},
    {"levels"},
    {"feature_cache"},
    {"embedded"},
    {"hub"},
    {"sources"},
    {"workload"},
    {"sd15"},
    {"arguments", "nested", "saving", "pipeline", "optimizations", "engine"},
    {"measure"},
    {"soundness"},
    {"stored_image"},
    {"baselines"},
    {"latents"},
    {"history"},
    {"latent_limits"},
    {"limits"},
    {"statistics"},
    {"verdict"},
    {"rules"},
    {"gate"},
    {"report"},
    {"ab", "spread"},
    {"suite"},
    {"peers"},
    {"throughput", "tuning", "compile_cache"},
    {"selftest"},
    {"plugin"},
)
BOX_OF = {name: number for number, box in enumerate(BOXES) for name in box}
MODULES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
BOXED = [file for file in MODULES if file != "__init__.py"]


def box_name(file: str) -> str:
    """'measure' for 'measure/timing.py', 'gate' for 'gate.py'."""
    return Path(file).parts[0].removesuffix(".py")


def imports(node: ast.AST) -> Iterator[str]:
    """The full names that running this code imports, inside functions too."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        nodes: list[ast.AST] = [*node.orelse]
    else:
        nodes = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import hides its box"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in nodes:
        yield from imports(child)


def imported_boxes(file: str) -> set[str]:
    """The boxes of this package that a file imports from."""
    names = (name.split(".") for name in imports(MODULES[file]))
    return {parts[1] for parts in names if parts[0] == "sdopt" and len(parts) > 1}


def imports_package(file: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imports(MODULES[file]))


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


def test_every_module_has_a_box() -> None:
    assert {box_name(file) for file in BOXED} == set(BOX_OF)


@pytest.mark.parametrize("file", BOXED)
def test_earlier_boxes_never_import_later_ones(file: str) -> None:
    own = BOX_OF[box_name(file)]
    later = {name for name in imported_boxes(file) if BOX_OF.get(name, len(BOXES)) > own}
    assert later == set()


def test_only_the_plugin_imports_pytest() -> None:
    found = {box_name(file) for file in MODULES if imports_package(file, "pytest")}
    assert found == {"plugin"}


@pytest.mark.parametrize(
    "file",
    ["errors.py", "startup.py", "levels.py", "verdict.py", "statistics.py", "rules.py", "gate.py"],
)
@pytest.mark.parametrize("package", ["torch", "diffusers", "numpy"])
def test_the_pure_modules_import_no_arrays(file: str, package: str) -> None:
    assert not imports_package(file, package)


@pytest.mark.parametrize("statement", ["import sdopt", "import sdopt.gate, sdopt.report.terminal"])
def test_an_import_of_the_pure_parts_loads_neither_torch_nor_diffusers(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "sdopt" in loaded
    assert loaded & {"torch", "diffusers", "transformers", "pytest"} == set()


def test_imports_for_annotations_do_not_count() -> None:
    code = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d"
    assert list(imports(ast.parse(code))) == ["b", "c.d"]
