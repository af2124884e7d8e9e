"""The arithmetic that ends a product, in Triton's language: every family of kernels compiles it.

Plain functions: Triton and Gluon each make their own of the same source.
"""

import triton.language as tl

NO_ACTIVATION, RELU, QUICK_GELU = 0, 1, 2


def activated(x, ACTIVATION: tl.constexpr):
    """No activation, ReLU, or CLIP's x * sigmoid(1.702 * x). NaN stays NaN, so that it is seen."""
    if ACTIVATION == 1:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == 2:
        x = x / (1.0 + tl.exp(-1.702 * x))
    return x


def gelu(x):
    """GELU to 2e-7, in half the instructions of the one by `tl.erf`.

    The error function is Hastings' (Abramowitz and Stegun 1964, 7.1.26): 1 - p(t) exp(-x * x).
    """
    size = tl.abs(x)
    root = tl.rsqrt(1.0 + 0.2316418882663604 * size)
    t = root * root
    p = 0.530702715 * t - 0.7265760135
    p = ((p * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796
    return tl.maximum(x, 0.0) - p * t * size * tl.exp2(x * x * -0.7213475204444817)
