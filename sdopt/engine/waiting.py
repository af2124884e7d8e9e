"""How a kernel waits for the one before it and lets the next begin, in Triton's language.

Plain functions, like `epilogue`'s: Triton and Gluon each make their own of the same source. What
DEPENDENT says, and why it is right, stands in `dependent`; with 0 they are nothing.
"""

import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def wait_for_earlier(DEPENDENT: tl.constexpr):
    """Stands before all that reads or writes memory which an earlier kernel may still use."""
    if DEPENDENT:
        gdc_wait()
    if DEPENDENT == 2:
        gdc_launch_dependents()


def let_next_begin(DEPENDENT: tl.constexpr):
    """Stands behind the last loads: from here on programs of the next kernel may be started."""
    if DEPENDENT == 1 or DEPENDENT == 4:
        gdc_launch_dependents()
