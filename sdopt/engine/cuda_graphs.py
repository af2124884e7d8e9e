"""CUDA graphs: a function's kernels captured once per shape of its inputs, then replayed.

One launch replaces hundreds, so a fast GPU does not wait for a slow host. `torch.compile` can do
this itself (mode "reduce-overhead"), but keeps its graphs and their memory for the whole process;
these belong to the pipeline that they were captured for, and go with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

MOST_GRAPHS = 8
"""Shapes kept per function. SD 1.5 needs two: the UNet's batch with guidance and without."""
WARMUP_CALLS = 2
"""Before capture: the first compiles, the second runs what autotuning chose."""

_replaying = True


@contextmanager
def eager_calls() -> Iterator[None]:
    """No replay in here: every call runs its function, so that it can be watched."""
    global _replaying
    before, _replaying = _replaying, False
    try:
        yield
    finally:
        _replaying = before


def replaying() -> bool:
    """Whether captured graphs may be replayed here; not inside of `eager_calls`."""
    return _replaying


_side_streams: dict[int, Any] = {}


@contextmanager
def warm_up_stream() -> Iterator[None]:
    """Work in here precedes a capture: after what was launched before, and ended when it ends.

    One stream for all captures of a device, since cuBLAS keeps 32 MiB for each that it was used on.
    """
    with _side_stream() as side:
        yield
    torch.cuda.current_stream().wait_stream(side)


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any = None, **options: Any) -> Iterator[None]:
    """What runs in here is captured, with the workspaces of cuBLAS in the graph's own memory.

    PyTorch keeps one workspace for each stream, in the memory of the first graph that needed it.
    It frees all of them when anybody asks (`torch.compile`'s own graphs do), newer versions those
    of a stream whenever a graph that was captured on it goes (pytorch/pytorch issue 193402).
    Another graph that uses one would then write to memory that is not its own. So no graph finds
    one here, or leaves one behind.
    """
    _drop_workspaces()
    try:
        with torch.cuda.graph(graph, pool=pool, **options):
            yield
    finally:
        _drop_workspaces()


def _drop_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def beside(first: Callable[[], None]) -> Iterator[None]:
    """In a capture: `first` runs beside what is captured in here, from where it begins."""
    with _side_stream() as side:
        first()
    try:
        yield
    finally:  # else an error in here could not be told: the capture would not end
        torch.cuda.current_stream().wait_stream(side)


@contextmanager
def _side_stream() -> Iterator[Any]:
    device = torch.cuda.current_device()
    side = _side_streams.get(device)
    if side is None:
        side = _side_streams[device] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield side


Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """Captured graphs by what they depend on: the `most` that were used last, in one memory pool.

    They run one after the other and what they wrote is copied at once, so they can share memory.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: OrderedDict[Hashable, Graph] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self.kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def get(self, key: Hashable, capture: Callable[[], Graph]) -> Graph:
        """That of the key, captured if there is none; the one that was used first may go."""
        graph = self.kept.get(key)
        if graph is None:
            graph = capture()
            self.kept[key] = graph
            if len(self.kept) > self.most:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return graph

    def pool(self) -> Any:
        """The memory to capture the next one in."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def forget(self) -> None:
        """Drop all: what they have captured holds no more."""
        if self.kept and torch.cuda.is_available():
            torch.cuda.synchronize()  # one of them may still be replayed
        self.kept.clear()
        self._pool = None  # it ended with the last of its graphs


@dataclass(frozen=True, kw_only=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Any


class GraphedFunction:
    """A function of CUDA tensors that is captured at its first call with new shapes.

    Outputs are copies, safe to keep. `weights` are the tensors that the function reads besides its
    arguments: when one has moved, the graphs that read its old place are dropped. Inputs that are
    not on a CUDA device, or that need gradients, are passed on to the function.
    """

    def __init__(self, function: Callable[..., Any], weights: Sequence[Tensor]) -> None:
        self.function = function
        self.weights = weights
        self.graphs: GraphCache[_Captured] = GraphCache(MOST_GRAPHS)
        self.places: tuple[int, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `function(*args, **kwargs)` returns."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not _replaying or not self._can_capture(tensors):
            return self.function(*args, **kwargs)
        self._forget_moved_weights()
        key = (structure, tuple(_signature(leaf) for leaf in leaves))
        captured = self.graphs.get(key, lambda: self._capture(leaves, structure))
        for static, tensor in zip(captured.inputs, tensors, strict=True):
            static.copy_(tensor)
        captured.graph.replay()
        return pytree.tree_map_only(Tensor, torch.clone, captured.outputs)

    def _can_capture(self, tensors: Sequence[Tensor]) -> bool:
        if torch.is_autocast_enabled("cuda"):  # a graph keeps what was so at capture
            return False
        grad = torch.is_grad_enabled()
        return bool(tensors) and all(t.is_cuda and not (grad and t.requires_grad) for t in tensors)

    def _forget_moved_weights(self) -> None:
        places = tuple(map(Tensor.data_ptr, self.weights))
        if places != self.places:
            self.forget()
            self.places = places

    def forget(self) -> None:
        """Drop all graphs: what they have captured holds no more."""
        self.graphs.forget()

    def _capture(self, leaves: list[Any], structure: Any) -> _Captured:
        static = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(static, structure)
        pool = self.graphs.pool()
        with warm_up_stream():
            for _ in range(WARMUP_CALLS):
                self.function(*args, **kwargs)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, pool):
            outputs = self.function(*args, **kwargs)
        inputs = [leaf for leaf in static if isinstance(leaf, Tensor)]
        return _Captured(graph=graph, inputs=inputs, outputs=outputs)


def _signature(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.dtype, leaf.device, leaf.stride())
    return leaf  # type: ignore[no-any-return]
