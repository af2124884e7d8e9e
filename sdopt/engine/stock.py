"""Tell the modules of PyTorch, diffusers, transformers and peft from what was put into them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_modules

from sdopt.engine.watch import FUNCTIONS, GLOBAL_HOOKS, HOOKS, attention_registries

PACKAGES = ("torch", "diffusers", "transformers", "peft")
"""Whose modules compute with tensors and nothing else, so that a graph may stand for them."""
WRAPPERS = ("huggingface_hub",)
"""Whose decorators stand around functions of PACKAGES; so do those of `contextlib`."""
SHADOWED = frozenset({"__call__", "__getattr__", "__getattribute__"})
"""Special methods that are looked at: the others are not part of a forward pass."""
_first_seen: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()
"""What stock classes had in them when they were first looked at."""
_unchanged: WeakKeyDictionary[type, list[Any]] = WeakKeyDictionary()
"""What was in classes that were found to be stock."""
_ORIGINALS = {name: getattr(F, name) for name in FUNCTIONS}


def foreign(parts: dict[str, nn.Module], called: Sequence[nn.Module] = ()) -> str | None:
    """What is in these parts that is nobody's stock code, in words; None if there is nothing.

    Such a thing may do anything at each call, print or count, which a graph that is replayed would
    leave out. The own `forward` and hooks of what is `called` from outside run by themselves.
    """
    return next(_foreign(parts, {id(module) for module in (*parts.values(), *called)}), None)


def _foreign(parts: dict[str, nn.Module], called: set[int]) -> Iterator[str]:
    if any(getattr(torch_modules, name) for name in GLOBAL_HOOKS):
        yield "the hook for all modules that was registered with torch.nn.modules.module"
    for name, original in _ORIGINALS.items():
        if getattr(F, name) is not original or not is_stock_function(original):
            yield f"the {name} that was put into torch.nn.functional"
    seen: set[type] = set()
    for part, root in parts.items():
        yield from _inserted_attention(part, root)
        for path, module in root.named_modules(prefix=part):
            yield from _of_another_class(type(module), path, seen)
            yield from _inserted(path, module, but=("forward",) if id(module) in called else ())
            if module._compiled_call_impl is not None:
                yield f"the compilation of a module by its compile(), {path}"
            if id(module) not in called and any(getattr(module, name) for name in HOOKS):
                yield f"the forward hook of a module, {path}"
            processor = vars(module).get("processor")
            if processor is not None:
                yield from _of_another_class(type(processor), path, seen)
                yield from _inserted(f"{path}.processor", processor)


def _of_another_class(kind: type, path: str, seen: set[type]) -> Iterator[str]:
    """That a class is nobody's, or what was put into it; each class is told of once."""
    if kind in seen:
        return
    seen.add(kind)
    if not _is_of_package(kind):
        yield f"the {kind.__name__} that was put into a module, {path}"
    elif (patch := patched(kind)) is not None:
        yield f"{patch}, of {path}"


def _inserted(path: str, owner: Any, but: Sequence[str] = ()) -> Iterator[str]:
    """Methods of an object that are not its class's."""
    for name, value in vars(owner).items():
        own = getattr(type(owner), name, None)
        if isinstance(own, FunctionType) and callable(value) and name not in but:
            yield f"the {name} that was put into a module, {path}"


def _inserted_attention(part: str, module: nn.Module) -> Iterator[str]:
    """Functions that transformers' modules find by the name of their configuration."""
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is None or not attention_registries([type(module)]):
        return
    home = sys.modules[type(module).__module__]
    found = [
        registry[name] for registry in attention_registries([type(module)]) if name in registry
    ]
    found.append(getattr(home, "eager_attention_forward", None))
    if not all(one is None or is_stock_function(one) for one in found):
        yield f"the attention {name!r} that was put into transformers, {part}"


def is_stock(kind: type) -> bool:
    """Whether a class is of one of PACKAGES, and has in it what it had there."""
    return _is_of_package(kind) and patched(kind) is None


def patched(kind: type, packages: Sequence[str] = PACKAGES) -> str | None:
    """The first thing that was put into a class or into one that it derives from, in words.

    Names say nothing, since `functools.wraps` copies them: a function has to be one that stands in
    the files of a package, and the one that it was when the class was first looked at.
    """
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in packages:
            continue
        first = _first_seen.setdefault(base, {})
        for name, value in vars(base).items():
            if not _is_looked_at(name, value):
                continue
            if not _is_own(base, name, value) or first.setdefault(name, value) is not value:
                return f"the {name} that was put into the class {base.__qualname__}"
        gone = next((name for name in first if name not in vars(base)), None)
        if gone is not None:
            return f"the class {base.__qualname__}, whose {gone} was deleted"
    return None


def changed(kind: type) -> str | None:
    """What is in a class that no package put there, at next to no cost while nothing changes."""
    now = [*map(tuple, map(MappingProxyType.values, map(vars, kind.__mro__)))]
    if _unchanged.get(kind) == now:
        return None
    packages = (*PACKAGES, "sdopt", *sys.stdlib_module_names)
    own = next((b for b in kind.__mro__ if b.__module__.split(".")[0] not in packages), None)
    patch = patched(kind, (*PACKAGES, "sdopt")) if own is None else f"the class {own.__name__}"
    if patch is None:
        _unchanged[kind] = now
    return patch


def _is_looked_at(name: str, value: Any) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return name in SHADOWED
    return callable(value) or isinstance(value, (property, staticmethod, classmethod))


def _is_own(base: type, name: str, value: Any) -> bool:
    """Whether something in a class is of a package, and a forward pass the class's own."""
    functions = _functions_in(value)
    if not all(map(is_stock_function, functions)):
        return False
    if name in ("forward", "step") and base is not nn.Module:
        return bool(functions[0].__qualname__ == f"{base.__qualname__}.{name}")
    return True


def _functions_in(value: Any) -> list[Any]:
    """The functions that something in a class's dictionary consists of."""
    if isinstance(value, property):
        return [one for one in (value.fget, value.fset, value.fdel) if one is not None]
    return [value.__func__ if isinstance(value, (staticmethod, classmethod)) else value]


def is_stock_function(function: Any) -> bool:
    """Whether a function stands in the files of a package, and so does all that it is wrapped in.

    A class counts as one; any other object that can be called is nobody's.
    """
    if isinstance(function, MethodType):
        function = function.__func__
    if isinstance(function, (type, BuiltinFunctionType)):
        return True
    inner = getattr(function, "__wrapped__", None)
    if not isinstance(function, FunctionType):
        if type(function).__module__ == "functools" and inner is not None:  # a cache
            return is_stock_function(inner)
        return type(function).__module__.split(".")[0] in PACKAGES
    if not function.__code__.co_filename.startswith(_places() if inner is None else _wrapping()):
        return False
    return inner is None or is_stock_function(inner)


@cache
def _places() -> tuple[str, ...]:
    """The folders of PACKAGES."""
    return tuple(map(_folder, (*PACKAGES, "sdopt")))


@cache
def _wrapping() -> tuple[str, ...]:
    """Files whose functions may stand around those of PACKAGES."""
    return (*_places(), *map(_folder, WRAPPERS), contextlib.__file__)


def _folder(package: str) -> str:
    spec = find_spec(package)
    origin = spec.origin if spec is not None else None
    return f"{Path(origin).parent}/" if origin else f"no {package} here"


def _is_of_package(kind: type) -> bool:
    return kind.__module__.split(".")[0] in PACKAGES
