"""What each stage of training optimizes: the VAE, the Tiny VAE, then UNet and text encoder."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdopt.miniature.architecture import SCHEDULER_CONFIG, Parts
from studies.training.bank import Bank

_KL_WEIGHT = 2e-5
_GRADIENT_WEIGHT = 0.5
_SSIM_WEIGHT = 0.2
_EMPTY_PROMPTS = 0.1
_MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Random inputs, the loss of those inputs, and the modules whose parameters it trains.

    All chance is in `draw`: `loss` can then be compiled without a generator inside.
    """

    name: str
    trained: nn.ModuleList
    draw: Callable[[], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    learning_rate: float
    ema_decay: float


def vae_stage(parts: Parts, bank: Bank, batch: int) -> Stage:
    """Reconstruction of fresh drawings, with a KL term that keeps latents near unit variance."""
    vae = parts.vae
    latent_size = vae.config["sample_size"] // 8

    def draw() -> tuple[Tensor, ...]:
        images = bank.mixed_images(batch)
        return images, torch.randn(batch, 4, latent_size, latent_size, device=images.device)

    def loss(images: Tensor, noise: Tensor) -> Tensor:
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl_per_latent = posterior.kl().mean() / posterior.mean[0].numel()
        total: Tensor = _KL_WEIGHT * kl_per_latent
        return total + reconstruction_loss(decoded.float(), images)

    trained = nn.ModuleList([vae])
    return Stage(
        name="vae", trained=trained, draw=draw, loss=loss, learning_rate=1e-3, ema_decay=0.999
    )


def tiny_vae_stage(parts: Parts, bank: Bank, batch: int) -> Stage:
    """The Tiny VAE decodes the VAE's scaled latents, and encodes images to them."""
    tiny, vae = parts.tiny_vae, parts.vae
    scale = vae.config["scaling_factor"]

    def draw() -> tuple[Tensor, ...]:
        images = bank.mixed_images(batch)
        with torch.no_grad():
            return images, vae.encode(images).latent_dist.mode().float() * scale

    def loss(images: Tensor, scaled: Tensor) -> Tensor:
        encoded = tiny.encode(images).latents
        decoded = tiny.decode(scaled).sample
        return reconstruction_loss(decoded.float(), images) + F.mse_loss(encoded.float(), scaled)

    trained = nn.ModuleList([tiny])
    return Stage(
        name="tiny", trained=trained, draw=draw, loss=loss, learning_rate=2e-3, ema_decay=0.999
    )


def unet_stage(parts: Parts, bank: Bank, latents: Tensor, batch: int) -> Stage:
    """Noise prediction on scaled `latents`, weighted by min-SNR (Hang et al., 2303.09556)."""
    unet, text = parts.unet, parts.text_encoder
    kept = alphas_cumprod().to(latents.device)

    def draw() -> tuple[Tensor, ...]:
        indices = bank.draw(batch)
        clean = latents[indices].float()
        times = torch.randint(len(kept), (batch,), device=clean.device)
        unprompted = torch.rand(batch, 1, device=clean.device) < _EMPTY_PROMPTS
        tokens = torch.where(unprompted, bank.empty, bank.tokens[indices])
        return clean, torch.randn_like(clean), times, tokens

    def loss(clean: Tensor, noise: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        alpha = kept[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = unet(noisy, times, text(tokens)[0]).sample.float()
        error = (predicted - noise).square().mean((1, 2, 3))
        weighted: Tensor = error * min_snr_weight(kept[times])
        return weighted.mean()

    trained = nn.ModuleList([unet, text])
    return Stage(
        name="unet", trained=trained, draw=draw, loss=loss, learning_rate=1e-3, ema_decay=0.9995
    )


def scaling_factor(latents: Tensor) -> float:
    """What latents are multiplied by to have unit variance, as `vae.config.scaling_factor`."""
    return 1 / latents[:8192].float().std().item()


def alphas_cumprod() -> Tensor:
    """1000 values: how much of the image's variance is left after each step of noise."""
    first, last = (float(SCHEDULER_CONFIG[name]) for name in ("beta_start", "beta_end"))
    betas = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def min_snr_weight(kept: Tensor) -> Tensor:
    """min(SNR, 5) / SNR for noise prediction, where SNR = kept / (1 - kept)."""
    ratio = kept / (1 - kept)
    return ratio.clamp(max=_MIN_SNR_GAMMA) / ratio


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 and L2 of pixels, L1 of their differences, 1 - SSIM, of N x 3 x H x W in -1 to 1."""
    loss = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    loss = loss + _SSIM_WEIGHT * (1 - mean_ssim(decoded, images))
    for axis in (-1, -2):
        edges = F.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis))
        loss = loss + _GRADIENT_WEIGHT * edges
    return loss


def mean_ssim(first: Tensor, second: Tensor) -> Tensor:
    """SSIM with a 7 x 7 box window (Wang et al. 2004) of N x 3 x H x W in -1 to 1, averaged."""
    # SSIM compares brightness by products of means: it has no meaning below zero.
    first, second = first + 1, second + 1
    mean_1, mean_2, square_1, square_2, product = (
        F.avg_pool2d(value, 7, stride=1)
        for value in (first, second, first * first, second * second, first * second)
    )
    # The usual (0.01 L)^2 and (0.03 L)^2 for a range L of 2.
    c1, c2 = 4e-4, 3.6e-3
    contrast = (square_1 - mean_1**2) + (square_2 - mean_2**2) + c2
    structure = 2 * (product - mean_1 * mean_2) + c2
    light = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return (light * structure / contrast).mean()
