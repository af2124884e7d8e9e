"""How a kernel's work is cut, and the names of the shapes that have tiles of their own."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT8 = "float8-"
"""How the kind of a product begins whose operands are in float8."""
STATIONARY_END = 5120
"""Bytes of barriers, and of what threads exchange before they write a result."""
LEAST_STAGES = 3
"""Of a stationary tile: two may still be read when the third is waited for."""
OLD_KINDS = {"doubled": "upsample", "halved": "downsample"}
Sizes = tuple[int, int, int, int]
"""Images, height, width and channels of a convolution's input."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One program's share: `images` x `height` x `width` pixels by `columns` of the result.

    A program computes `extra` columns more, where powers of 2 do not fit the width.
    `depth` entries of the sum are loaded at a time, `stages` such loads are under way, and the sum
    is cut into `splits` that different programs compute. A matrix product's rows are its `height`.
    Attention's has `height` tokens and `columns` keys at a time; `boxed` ones come through the
    tensor memory accelerator. A `specialized` tile is a program of three roles
    (`sdopt.engine.specialized`) and has two such boxes; GEGLU's `extra` columns are then the gate,
    and `warps` says nothing. Of a `stationary` one, for GEGLU alone, the weights stay in shared
    memory while boxes of x stream past (`sdopt.engine.stationary`); it is `specialized` too, and
    its stages are those of x. Specialized attention (`sdopt.engine.specialized_attention`) has all
    its tokens together as `height`, 4 of the `warps` for each of two or three shares of them, heads
    of `depth` and `extra` more entries, and `stages` blocks of keys under way. `ahead`, the next
    scores are multiplied under the exponentials of the last; every so many-th exponential is a
    `polynomial`, none is 0. One with `pointers` reads without that accelerator, for GPUs that have
    none. `library` leaves the operation to cuDNN or cuBLAS.
    """

    images: int = 1
    height: int = 8
    width: int = 16
    columns: int = 64
    extra: int = 0
    depth: int = 64
    stages: int = 4
    warps: int = 4
    splits: int = 1
    boxed: bool = False
    specialized: bool = False
    stationary: bool = False
    ahead: bool = False
    polynomial: int = 0
    pointers: bool = False
    library: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a stationary tile that its kernel could not be launched with."""
        shape = (self.images, self.width, self.splits, self.extra)
        whole = self.specialized and self.stages >= LEAST_STAGES
        if self.stationary and not (whole and shape == (1, 1, 1, self.columns)):
            raise ValueError(
                f"{self}: a stationary tile is specialized, of one image, of width 1, not split, "
                f"of {LEAST_STAGES} stages or more, and has as many extra columns as columns"
            )

    @property
    def pixels(self) -> int:
        """Rows of the matrix product that one program computes."""
        return self.images * self.height * self.width

    def stationary_bytes(self, k: int) -> int:
        """Shared memory of a program with the weights of all k entries of the sum, if they stay."""
        entries = (self.columns + self.extra) * k + self.pixels * self.depth * self.stages
        return 2 * entries + STATIONARY_END

    def keeps(self, k: int, n: int, shared_bytes: int) -> bool:
        """Whether GEGLU of k entries and n columns can be cut by this stationary tile.

        The kernel has no masks along either, and all weights of a program have to fit.
        """
        whole = k % self.depth == 0 and n % self.columns == 0
        return self.stationary and whole and self.stationary_bytes(k) <= shared_bytes


LIBRARY = Tile(library=True)


def convolution_key(sizes: Sizes, n: int, kind: str) -> str:
    """The name of a convolution's shape: 'conv 2x64x64x320-320'; `kind` is conv, plain, upsample or
    downsample; of the first two in float8, float8-conv and float8-plain.

    A plain one has no bias and no residual, for which the library needs kernels of their own.
    """
    return f"{kind} {'x'.join(map(str, sizes))}-{n}"


def product_key(m: int, k: int, n: int, kind: str) -> str:
    """The name of a matrix product's shape: 'linear 8192x320-320'; `kind` is linear, added, joined
    or geglu, or in float8 float8-linear or float8-geglu.

    An added one ends with a residual, for which the library needs a kernel of its own.
    """
    return f"{kind} {m}x{k}-{n}"


def attention_key(sizes: tuple[int, int, int], heads: int, size: int) -> str:
    """The name of an attention's shape, `sizes` its images, tokens and keys: '2x4096x77-8x40'."""
    return f"attention {'x'.join(map(str, sizes))}-{heads}x{size}"


def current_key(key: str) -> str:
    """A key of an older table as it is called now."""
    kind, space, shape = key.partition(" ")
    return OLD_KINDS.get(kind, kind) + space + shape
