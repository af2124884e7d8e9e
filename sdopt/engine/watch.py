"""Notice that modules, what they compute or their weights changed since a fast path was built."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from types import FunctionType, MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

_version = attrgetter("_version")
_code = attrgetter("__code__")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
UNREAD = frozenset(
    {
        *(f"_forward_hooks_{how}" for how in ("with_kwargs", "always_called")),
        "_forward_pre_hooks_with_kwargs",
        *("_parameters", "_non_persistent_buffers_set", "_is_full_backward_hook"),
        *("_backward_hooks", "_backward_pre_hooks", "_caches"),
        *("_state_dict_hooks", "_state_dict_pre_hooks"),
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    }
)
"""Attributes of a module that no forward pass depends on, and weights, which have places."""
FUNCTIONS = (
    *("scaled_dot_product_attention", "linear", "conv2d", "group_norm", "layer_norm"),
    *("silu", "gelu", "relu", "interpolate", "embedding", "dropout"),
)
"""Functions of torch.nn.functional that the modules of a pipeline call."""


class Watch:
    """Some parts as they are now: modules, classes, attributes, hooks, and weights.

    `called` are modules that are called from outside, such as the parts themselves: what is put
    around their forward pass runs by itself, so their own `forward` and hooks are not looked at.
    They are not kept alive, since their `forward` may lead back here.

    The memory of the weights is kept: a graph may read it once more before it is known that they
    moved, and none can take a freed one's place. Writing in place through a weight's `.data`, or to
    an inference tensor, leaves no trace here: see `sdopt.engine.fingerprint`.
    """

    def __init__(self, parts: Sequence[nn.Module], called: Sequence[nn.Module] = ()) -> None:
        # Their dictionaries: walking the modules at each image would take milliseconds.
        outer = {id(module): module for module in (*parts, *called)}
        modules = [module for part in parts for module in part.modules()]
        self._called = [weakref.ref(module) for module in outer.values()]
        self._modules = [module for module in modules if id(module) not in outer]
        kinds = _classes(modules)
        self._classes = [vars(base) for base in kinds]
        self._code = [f for base in kinds for f in vars(base).values() if type(f) is FunctionType]
        self._registries = attention_registries(kinds)
        self._dicts, self._lists, self._empty = _containers(modules, outer)
        self._parameters = [m._parameters for m in modules if m._parameters]
        self._buffers = [m._buffers for m in modules if m._buffers]
        self._structure, self._values = self._structure_now(), self._values_now()
        self._contents = [*map(class_content, self._classes)]
        weights = self._weights_now()
        self._places, self._versions = _places(weights), _versions(weights)
        self._memory = [weight.detach() for weight in weights]

    def has_changed(self) -> bool:
        """Whether anything is another one now, or a weight was written to."""
        if self.structure_changed():
            return True
        weights = self._weights_now()
        return _places(weights) != self._places or _versions(weights) != self._versions

    def structure_changed(self) -> bool:
        """Whether a module, a class, an attribute, a hook or a function is another one now."""
        try:
            return self._structure_now() != self._structure or self._classes_changed()
        except (RuntimeError, ValueError):  # two tensors or arrays, which have no one answer
            return True

    def _classes_changed(self) -> bool:
        """Whether a class holds something else now, beside what Python keeps there for itself."""
        values = self._values_now()
        if values == self._values:
            return False
        if [*map(class_content, self._classes)] != self._contents:
            return True
        self._values = values
        return False

    def weights_moved(self) -> bool:
        """Whether a weight is elsewhere now; one that was written to in place is not."""
        return _places(self._weights_now()) != self._places

    def _structure_now(self) -> list[Any]:
        called = [ref() for ref in self._called]
        return [
            [*map(type, self._modules), *map(type, called)],
            [*map(tuple, map(dict.values, self._dicts))],
            [*map(tuple, self._lists)],
            [*map(len, self._empty)],
            [_own_values(module) for module in called if module is not None],
            [*map(_code, self._code)],
            [*map(dict, self._registries)],
            _functions(),
        ]

    def _values_now(self) -> list[Any]:
        return [*map(tuple, map(MappingProxyType.values, self._classes))]

    def _weights_now(self) -> list[Tensor]:
        named: Iterable[Mapping[str, Tensor | None]] = chain(self._parameters, self._buffers)
        return [w for weights in named for w in weights.values() if w is not None]


def _containers(
    modules: Iterable[nn.Module], outer: dict[int, nn.Module]
) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """Dictionaries, lists and sets of modules' attributes, each once; and those empty by now."""
    dicts: dict[int, Any] = {}
    lists: dict[int, Any] = {}
    empty: dict[int, Any] = {}
    for module in modules:
        if id(module) not in outer:
            dicts[id(module.__dict__)] = module.__dict__
        for held in _held(module, is_outer=id(module) in outer):
            kind = empty if not held else dicts if isinstance(held, dict) else lists
            kind[id(held)] = held
    return list(dicts.values()), list(lists.values()), list(empty.values())


def _held(module: nn.Module, *, is_outer: bool) -> Iterator[Any]:
    """The containers that a module holds, also as the attributes of its processor or config."""
    skipped = UNREAD.union(HOOKS, ["_modules"]) if is_outer else UNREAD
    for name, value in module.__dict__.items():
        if name in skipped:
            continue
        if isinstance(value, (dict, list, set)):
            yield value
            if hasattr(value, "__dict__"):  # a configuration, whose options are attributes too
                yield vars(value)
        elif _is_record(value):
            yield vars(value)


def _is_record(value: Any) -> bool:
    """Whether it is an object whose attributes may be read by a forward pass."""
    plain = isinstance(value, (type, nn.Module, Tensor)) or callable(value)
    return hasattr(value, "__dict__") and (not plain or "Processor" in type(value).__name__)


def _own_values(module: nn.Module) -> Any:
    """The attributes of a module that is called from outside, without its `forward`.

    Its children are not kept alive either: one of them may be called from outside too.
    """
    children = [child and weakref.ref(child) for child in module._modules.values()]
    own = {name: value for name, value in vars(module).items() if name not in ITS_OWN}
    return own, children


ITS_OWN = ("forward", "_modules", "text_model")
"""The last is a text encoder itself, while diffusers encodes prompts."""


KEPT_BY_PYTHON = frozenset({"__slotnames__", "__annotations__", "__annotations_cache__"})
"""What Python puts into a class when one of its objects is copied, or its annotations are read."""
ONLY_FOR_NEW_MODULES = frozenset({"__init__", "__setstate__", "___needs_generation_tag_patch"})
"""What no module calls that is there already. The first `torch.compile` of a process wraps these in
`nn.Module`, to see modules that a forward pass makes (`install_generation_tagging_init` of Dynamo).
"""
UNREAD_IN_CLASSES = KEPT_BY_PYTHON | ONLY_FOR_NEW_MODULES


def class_content(of_class: Mapping[str, Any]) -> dict[str, Any]:
    """What `vars` of a class holds that calls of its objects depend on."""
    return {name: value for name, value in of_class.items() if name not in UNREAD_IN_CLASSES}


def _classes(modules: Iterable[nn.Module]) -> list[type]:
    """Those of modules and of what they hold, such as attention processors, with their bases."""
    kinds = {type(module): None for module in modules}
    held = (value for module in modules for value in vars(module).values() if _is_record(value))
    kinds |= {type(value): None for value in held}
    return [*{base: None for kind in kinds for base in kind.__mro__ if base is not object}]


def attention_registries(kinds: Iterable[type]) -> list[Any]:
    """Where transformers' modules find their attention and its masks, if there are any of them."""
    if not any(kind.__module__.startswith("transformers.") for kind in kinds):
        return []
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return [ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS]


def _functions() -> list[Any]:
    """What modules call whatever they are, and hooks of all modules."""
    return [
        *(tuple(getattr(torch_modules, name).values()) for name in GLOBAL_HOOKS),
        *(getattr(F, name) for name in FUNCTIONS),
    ]


def _places(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """Where each weight is.

    A thousand weights of which none is in the processor's cache: `map` saves what it can.
    """
    return tuple(map(Tensor.data_ptr, weights))


def _versions(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each weight was written to, which inference tensors don't tell."""
    try:
        return tuple(map(_version, weights))
    except RuntimeError:
        return tuple(0 if weight.is_inference() else weight._version for weight in weights)
