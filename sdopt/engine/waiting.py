"""How a kernel waits for the one before it and lets the next start, in Triton's language.

Plain functions, like `epilogue`'s: Triton and Gluon each make their own of the same source. Why
that is right stands in `dependent`.
"""

import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def wait_for_earlier(DEPENDENT: tl.constexpr):
    """Stands before all that reads or writes memory."""
    if DEPENDENT:
        gdc_wait()


def let_next_start(DEPENDENT: tl.constexpr):
    """Stands behind the last loads."""
    if DEPENDENT:
        gdc_launch_dependents()
