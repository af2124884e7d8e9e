"""The warp-specialized kernels on a Hopper GPU: right at every edge, the same bits each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import references
import torch
import torch.nn.functional as F
from references import error, random
from torch import Tensor

from sdopt.engine.cards import H100
from sdopt.engine.float8 import rounded_weight, to_float8
from sdopt.engine.rules import (
    ruled_float8_convolution,
    ruled_float8_product,
    ruled_specialized_convolution,
)
from sdopt.engine.tiles import Tile
from sdopt.engine.upsampling import upsample_weights
from sdopt.tuning.repeats import FLOAT8_ERROR

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9,
    reason="needs CUDA: a Hopper GPU",
)

ROUNDED = 5e-4
"""Relative error of float16 results of float32 sums; they have about 2e-4."""
REPEATS = 20


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No gradients, and references in all of float32."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def half(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).to("cuda", torch.float16)


def box(height: int, width: int, columns: int, extra: int = 0, **more: int) -> Tile:
    return Tile(height=height, width=width, columns=columns, extra=extra, specialized=True, **more)


def check(compute: Callable[[], Tensor], wanted: Tensor, limit: float = ROUNDED) -> None:
    """Right over memory full of NaN, and bit-identical when repeated beside other work."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = compute()
        assert error(first.cpu(), wanted.cpu()) < limit
        other = torch.randn(2048, 2048, device="cuda").half()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(REPEATS):
                other @ other
        assert all(torch.equal(compute(), first) for _ in range(REPEATS))
        torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(False)


CONVOLUTIONS = [
    ((2, 8, 8, 64), 64, box(8, 8, 64)),
    ((1, 16, 16, 128), 160, box(4, 16, 128, 32)),
    # Boxes and columns that reach over the edges, an odd number of boxes, half a block of channels.
    ((1, 7, 10, 24), 40, box(8, 8, 64)),
    ((3, 9, 13, 40), 96, box(4, 16, 64, 16, stages=3)),
    ((3, 4, 4, 72), 200, Tile(images=4, height=4, width=4, columns=128, specialized=True)),
    ((1, 40, 70, 64), 256, box(1, 64, 256, stages=3)),
    ((1, 40, 70, 64), 128, box(2, 64, 128, stages=3)),
    ((2, 8, 8, 320), 320, box(8, 8, 128, 32, splits=5)),
    ((1, 8, 8, 64), 64, box(8, 8, 64, splits=12)),
    ((2, 12, 20, 64), 160, ruled_specialized_convolution((2, 12, 20, 64), 160, "conv", H100)),
    ((5, 1, 3, 64), 128, ruled_specialized_convolution((5, 1, 3, 64), 128, "conv", H100)),
]


@pytest.mark.parametrize("ends", ["plain", "biased", "all"])
@pytest.mark.parametrize(("sizes", "n", "tile"), CONVOLUTIONS)
def test_a_convolution(sizes: tuple[int, int, int, int], n: int, tile: Tile, ends: str) -> None:
    from sdopt.engine import launch

    x, weight = half(*sizes), half(n, 3, 3, sizes[3], seed=1) * 0.1
    bias = None if ends == "plain" else half(n, seed=2)
    residual = half(*sizes[:3], n, seed=3) if ends == "all" else None
    wanted = references.convolution(x, weight, bias, residual)
    check(
        lambda: launch.convolution(x, weight, bias, tile, residual=residual, relu=ends == "all"),
        F.relu(wanted) if ends == "all" else wanted,
    )


@pytest.mark.parametrize("tile", [box(8, 8, 64), Tile(), Tile(pointers=True)])
def test_relu_keeps_what_is_no_number(tile: Tile) -> None:
    from sdopt.engine import launch

    x = half(1, 8, 8, 64)
    x[0, 0, 0, 0] = float("nan")
    found = launch.convolution(x, half(64, 3, 3, 64, seed=1), None, tile, relu=True)
    assert found[0, :2, :2].isnan().all()
    assert found[0, 2:, 2:].isfinite().all()


@pytest.mark.parametrize(
    ("sizes", "n", "tile"),
    [
        ((2, 8, 8, 64), 64, box(8, 8, 64)),
        ((1, 7, 9, 40), 96, box(4, 16, 64, 16)),
        ((1, 20, 36, 128), 160, box(2, 32, 128, 32)),
        ((2, 6, 6, 64), 128, ruled_specialized_convolution((2, 6, 6, 64), 128, "upsample", H100)),
    ],
)
def test_a_upsample_convolution(sizes: tuple[int, int, int, int], n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, weight, bias = half(*sizes), random(n, sizes[3], 3, 3, seed=1) * 0.1, half(n, seed=2)
    folded = upsample_weights(weight).to("cuda", torch.float16)
    wanted = references.upsample_convolution(x.cpu(), weight, bias.cpu())
    check(lambda: launch.convolution(x, folded, bias, tile, phases=2), wanted)


@pytest.mark.parametrize(
    ("sizes", "n", "tile"),
    [
        ((2, 16, 16, 64), 64, box(8, 8, 64)),
        ((1, 18, 44, 128), 160, box(4, 16, 128, 32)),
        ((2, 8, 12, 64), 64, box(8, 8, 64, splits=3)),
        (
            (1, 4, 4, 128),
            128,
            ruled_specialized_convolution((1, 4, 4, 128), 128, "downsample", H100),
        ),
    ],
)
def test_a_downsample_convolution(sizes: tuple[int, int, int, int], n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, weight, bias = half(*sizes), half(n, 3, 3, sizes[3], seed=1) * 0.1, half(n, seed=2)
    first = x.float().permute(0, 3, 1, 2)
    wanted = F.conv2d(
        first, weight.float().permute(0, 3, 1, 2), bias.float(), stride=2, padding=1
    ).permute(0, 2, 3, 1)
    check(lambda: launch.convolution(x, weight, bias, tile, downsample=True), wanted)


PRODUCTS = [
    (128, 64, 0, 64, box(64, 1, 64)),
    (300, 200, 0, 320, box(64, 1, 128, 32)),
    (77, 768, 0, 320, box(64, 1, 64, splits=4)),
    (200, 72, 136, 96, box(64, 1, 64, 16, stages=3)),
    (512, 320, 640, 160, box(64, 1, 128, 32, splits=3)),
    (300, 128, 0, 256, box(128, 1, 128, stages=3)),
    (1, 64, 64, 64, box(64, 1, 64)),
]


@pytest.mark.parametrize(("m", "k", "k2", "n", "tile"), PRODUCTS)
def test_a_product(m: int, k: int, k2: int, n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, x2 = half(m, k), half(m, k2, seed=4) if k2 else None
    weight, bias, residual = half(n, k + k2, seed=1), half(n, seed=2), half(m, n, seed=3)
    check(
        lambda: launch.matrix_product(x, weight, bias, tile, x2=x2, residual=residual),
        references.product(*(t if t is None else t.cpu() for t in (x, weight, bias, x2, residual))),
    )


@pytest.mark.parametrize(
    ("m", "k", "n", "tile"),
    [
        (128, 64, 64, box(64, 1, 64, 64)),
        (300, 200, 96, box(64, 1, 64, 64, stages=3)),
        (256, 320, 256, box(64, 1, 128, 128, stages=3)),
        (200, 64, 64, box(128, 1, 64, 64, stages=3)),
    ],
)
def test_geglu(m: int, k: int, n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, weight, bias = half(m, k), half(2 * n, k, seed=1) * 0.1, half(2 * n, seed=2)
    values, gate = references.product(x.cpu(), weight.cpu(), bias.cpu()).chunk(2, -1)
    check(lambda: launch.matrix_product(x, weight, bias, tile, geglu=True), values * F.gelu(gate))


def keeping(height: int, columns: int, stages: int) -> Tile:
    return box(height, 1, columns, columns, stages=stages, stationary=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "k", "n", "tile"),
    [
        # One box, and so a consumer without any; rows over the edge; fewer boxes than programs.
        (64, 64, 128, keeping(64, 128, 3)),
        (1, 128, 64, keeping(64, 64, 3)),
        (300, 320, 256, keeping(64, 128, 7)),
        (500, 640, 640, keeping(64, 64, 7)),
        # Many boxes for each program, of more steps than stages and of fewer.
        (9000, 320, 1280, keeping(64, 128, 7)),
        (9000, 320, 1280, keeping(64, 64, 8)),
        (9000, 320, 1280, keeping(64, 128, 3)),
        (3000, 640, 2560, keeping(64, 64, 7)),
        (3000, 640, 2560, keeping(128, 64, 3)),
        (20000, 64, 64, keeping(128, 64, 8)),
    ],
)
def test_geglu_whose_weights_stay(m: int, k: int, n: int, tile: Tile, dtype: torch.dtype) -> None:
    from sdopt.engine import launch

    x, weight, bias = half(m, k), half(2 * n, k, seed=1) * 0.1, half(2 * n, seed=2)
    x, weight, bias = (one.to(dtype) for one in (x, weight, bias))
    values, gate = references.product(x.cpu(), weight.cpu(), bias.cpu()).chunk(2, -1)
    check(
        lambda: launch.matrix_product(x, weight, bias, tile, geglu=True),
        values * F.gelu(gate),
        ROUNDED if dtype == torch.float16 else 8 * ROUNDED,
    )


def parted(tokens: int, warps: int, ahead: int, columns: int, depth: int, extra: int) -> Tile:
    return Tile(height=tokens, width=1, columns=columns, depth=depth, extra=extra, stages=2,
                warps=warps, specialized=True, ahead=ahead > 1)  # fmt: skip


ATTENTIONS = [
    # Images of keys and of queries, tokens, keys, heads, entries of each.
    ((2, 2, 256, 256, 8, 40), parted(128, 8, 1, 128, 32, 16)),
    ((2, 2, 256, 256, 8, 40), parted(128, 8, 2, 128, 32, 16)),
    ((2, 2, 256, 256, 8, 40), parted(128, 8, 2, 64, 64, 0)),
    ((2, 1, 300, 512, 3, 40), parted(128, 8, 2, 64, 32, 16)),
    ((4, 2, 200, 384, 2, 40), parted(192, 12, 1, 128, 32, 16)),
    ((1, 1, 77, 512, 5, 48), parted(192, 12, 2, 64, 32, 16)),
    ((1, 1, 1000, 128, 4, 40), parted(256, 8, 1, 64, 32, 16)),
    ((1, 1, 128, 128, 1, 24), parted(128, 8, 1, 64, 16, 16)),
    ((2, 2, 1024, 1024, 8, 80), parted(128, 8, 2, 64, 64, 16)),
    ((2, 2, 256, 256, 8, 160), parted(128, 8, 2, 64, 128, 32)),
    ((2, 2, 256, 256, 2, 160), parted(128, 8, 1, 64, 128, 32)),
    # Some exponentials by a polynomial.
    ((2, 2, 256, 256, 8, 40), replace(parted(128, 8, 2, 128, 32, 16), polynomial=16)),
    ((2, 2, 256, 512, 8, 40), replace(parted(192, 12, 1, 64, 64, 0), polynomial=8)),
    # More tiles than multiprocessors, so that a program has several in turn.
    ((2, 2, 4096, 4096, 8, 40), parted(128, 8, 2, 128, 32, 16)),
    ((3, 3, 4000, 1920, 8, 40), parted(192, 12, 1, 64, 32, 16)),
    ((1, 1, 4096, 1024, 8, 64), parted(128, 8, 2, 128, 64, 0)),
]


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q = q.repeat(len(k) // len(q), 1, 1)
    parts = (t.float().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("shape", "tile"), ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention(shape: tuple[int, ...], tile: Tile, dtype: torch.dtype) -> None:
    from sdopt.engine import launch

    images, own, tokens, keys, heads, size = shape
    q = half(own, tokens, heads * size).to(dtype) * 2
    k, v = half(images, keys, 3 * heads * size, seed=1).to(dtype).chunk(3, dim=-1)[1:]
    limit = ROUNDED * (8 if dtype == torch.bfloat16 else 1)
    check(lambda: launch.attention(q, k, v, heads, tile), attended(q, k, v, heads), limit)


@pytest.mark.parametrize("polynomial", [0, 8])
@pytest.mark.parametrize("ahead", [1, 2])
def test_attention_to_keys_far_above_the_others(ahead: int, polynomial: int) -> None:
    """The first block's or the last's: all that was summed up before becomes nothing."""
    from sdopt.engine import launch

    for far in (3, 130, 511):
        q, k, v = half(1, 256, 80), half(1, 512, 80, seed=1), half(1, 512, 80, seed=2)
        k[:, far] = 40 * q[:, 7]
        tile = replace(parted(128, 8, ahead, 128, 32, 16), polynomial=polynomial)
        check(lambda: launch.attention(q, k, v, 2, tile), attended(q, k, v, 2))  # noqa: B023


def test_a_head_of_attention_sees_nothing_of_the_next_one() -> None:
    """Whose entries lie beside its own in a row, and in the box that is loaded."""
    from sdopt.engine import launch

    q, k, v = (half(2, 256, 120, seed=seed) for seed in range(3))
    tile = parted(128, 8, 2, 128, 32, 16)
    wanted = launch.attention(q, k, v, 3, tile)
    for part in (q, k, v):
        part[..., 40:80] = float("nan")
    found = launch.attention(q, k, v, 3, tile)
    assert found[..., 40:80].isnan().all()
    assert torch.equal(found[..., :40], wanted[..., :40])
    assert torch.equal(found[..., 80:], wanted[..., 80:])


def test_causal_attention_with_such_a_tile_is_computed_otherwise() -> None:
    from sdopt.engine import launch

    q, k, v = (half(1, 256, 80, seed=seed) for seed in range(3))
    found = launch.attention(q, k, v, 2, parted(128, 8, 2, 128, 32, 16), causal=True)
    assert error(found.cpu(), references.attention(q.cpu(), k.cpu(), v.cpu(), 2, causal=True)) < (
        ROUNDED
    )


def deep(height: int, width: int, columns: int, extra: int = 0, **more: int) -> Tile:
    return box(height, width, columns, extra, depth=128, **more)


@pytest.mark.parametrize("ends", ["plain", "biased", "all"])
@pytest.mark.parametrize(
    ("sizes", "n", "tile"),
    [
        ((2, 8, 8, 128), 64, deep(8, 8, 64)),
        # Less than half a block of channels; boxes and columns that reach over the edges.
        ((1, 7, 10, 16), 40, deep(8, 8, 64)),
        ((3, 9, 13, 48), 96, deep(4, 16, 64, 16, stages=3)),
        ((2, 8, 8, 320), 320, deep(8, 8, 128, 32, splits=5)),
        ((1, 40, 70, 320), 320, ruled_float8_convolution((1, 40, 70, 320), 320, H100)),
        ((2, 12, 20, 96), 64, ruled_float8_convolution((2, 12, 20, 96), 64, H100)),
    ],
)
def test_a_convolution_in_float8(
    sizes: tuple[int, int, int, int], n: int, tile: Tile, ends: str
) -> None:
    from sdopt.engine import launch

    x = to_float8(half(*sizes), 8.0)
    weight = rounded_weight(half(n, 3, 3, sizes[3], seed=1) * 0.1, 8.0)
    bias = None if ends == "plain" else half(n, seed=2)
    residual = half(*sizes[:3], n, seed=3) if ends == "all" else None
    wanted = references.convolution(x.float(), weight.whole.float(), bias, residual)
    check(
        lambda: launch.convolution(x, weight, bias, tile, residual=residual, relu=ends == "all"),
        F.relu(wanted) if ends == "all" else wanted,
        FLOAT8_ERROR,
    )


@pytest.mark.parametrize(
    ("m", "k", "n", "tile"),
    [
        (128, 128, 64, deep(64, 1, 64)),
        (300, 208, 320, deep(64, 1, 128, 32)),
        (77, 768, 320, deep(64, 1, 64, splits=4)),
        (1, 16, 64, deep(64, 1, 64)),
        (500, 640, 1920, ruled_float8_product(500, 640, 1920, "linear", H100)),
    ],
)
def test_a_product_in_float8(m: int, k: int, n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, weight = to_float8(half(m, k), 8.0), rounded_weight(half(n, k, seed=1), 8.0)
    bias, residual = half(n, seed=2), half(m, n, seed=3)
    wanted = references.product(
        x.float().cpu(), weight.whole.float().cpu(), bias.cpu(), None, residual.cpu()
    )
    check(
        lambda: launch.matrix_product(x, weight, bias, tile, residual=residual),
        wanted,
        FLOAT8_ERROR,
    )


@pytest.mark.parametrize(
    ("m", "k", "n", "tile"),
    [
        (300, 208, 96, deep(64, 1, 64, 64, stages=3)),
        (500, 640, 2560, ruled_float8_product(500, 640, 2560, "geglu", H100)),
    ],
)
def test_geglu_in_float8(m: int, k: int, n: int, tile: Tile) -> None:
    from sdopt.engine import launch

    x, weight = to_float8(half(m, k), 8.0), rounded_weight(half(2 * n, k, seed=1) * 0.1, 8.0)
    bias = half(2 * n, seed=2)
    wanted = references.product(x.float().cpu(), weight.whole.float().cpu(), bias.cpu())
    values, gate = wanted.chunk(2, -1)
    check(
        lambda: launch.matrix_product(x, weight, bias, tile, geglu=True),
        values * F.gelu(gate),
        FLOAT8_ERROR,
    )


@pytest.mark.parametrize("pixels", [64, 4096])
def test_norms_saturate_and_keep_nan(pixels: int) -> None:
    """As on a CPU; both kernels of GroupNorm, and LayerNorm's."""
    from sdopt.engine import ops

    x = half(1, pixels, 1, 320)
    group, layer = torch.nn.GroupNorm(32, 320), torch.nn.LayerNorm(320)
    for norm in (group, layer):
        norm.to("cuda", torch.float16).requires_grad_(False)
        norm.weight[:40] = 400.0
    for compute in (
        lambda x: ops.group_norm(x, group, silu=True, factor=8.0),
        lambda x: ops.layer_norm(x, layer, 8.0),
    ):
        found = compute(x).cpu().float()
        assert float(found.abs().max()) == 448.0
        group.cpu().float()
        layer.cpu().float()
        wanted = compute(x.cpu().float()).float()
        group.to("cuda", torch.float16)
        layer.to("cuda", torch.float16)
        # A value between two of float8 goes to the other one where the input differs by a rounding.
        assert error(found, wanted) < 0.01
        assert float((found != wanted).float().mean()) < 0.02
        broken = x.clone()
        broken[0, 0, 0, :] = float("nan")
        assert bool(compute(broken).float().isnan().any())
