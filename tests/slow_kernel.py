"""A kernel for tests that lets the next one start long before it writes its result."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def copy_slowly(x, out, one, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
    """SIZE entries of `x` to `out`, after so many products with `one`, a 1 unknown to it."""
    at = tl.arange(0, SIZE)
    values = tl.load(x + at).to(tl.float32)
    gdc_launch_dependents()
    for _ in range(ROUNDS):
        values *= one
    tl.store(out + at, values.to(out.dtype.element_ty))
