"""The training scenes: rows, token ids of their captions and, later, their latents."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from sdopt.miniature.rendering import render_rows, tables
from sdopt.miniature.rows import Rows, held_out, sample_crowded_rows, sample_rows
from sdopt.miniature.scenes import Scene, scene_from_row, with_article
from sdopt.miniature.tokenizer import END, MAX_TOKENS, START, token_ids

_ENCODE_BATCH = 512
_BACKGROUND_ONLY, _ONE_OBJECT_ONLY, _SIZE_UNSAID = 0.1, 0.1, 0.5


@dataclass(frozen=True, kw_only=True)
class Bank:
    """N scenes of which none is held out, on one device."""

    rows: Tensor
    """N x 12 integers, see `rows.Rows`."""
    tokens: Tensor
    """N x 32 token ids of a caption of each scene, some of them only partial."""
    empty: Tensor
    """32 token ids of the empty caption."""
    crowded: Tensor
    """M x 47 integers, see `rows.sample_crowded_rows`."""

    def draw(self, count: int) -> Tensor:
        """`count` random indices."""
        return torch.randint(len(self.rows), (count,), device=self.rows.device)

    def images(self, indices: Tensor) -> Tensor:
        """N x 3 x 128 x 128 in -1 to 1, drawn now."""
        return self._drawn(self.rows[indices])

    def mixed_images(self, count: int) -> Tensor:
        """As `images`, of random scenes and, three in four, random crowded rows."""
        scenes = self.rows[self.draw(count // 4)]
        crowds = torch.randint(len(self.crowded), (count - len(scenes),), device=scenes.device)
        both = torch.cat([self._drawn(scenes), self._drawn(self.crowded[crowds])])
        return both.contiguous(memory_format=torch.channels_last)

    def _drawn(self, rows: Tensor) -> Tensor:
        drawn = render_rows(rows, tables(device=str(rows.device.type)))
        return drawn.mul(2).sub(1).contiguous(memory_format=torch.channels_last)


def build_bank(count: int, seed: int, device: str) -> Bank:
    """About 15/16 of `count` scenes: those of a random series that are not held out."""
    rows = sample_rows(seed, count)
    rows = rows[~held_out(rows)]
    generator = np.random.Generator(np.random.PCG64(seed))
    return Bank(
        rows=torch.from_numpy(rows).to(device),
        tokens=torch.from_numpy(_tokenize(rows, generator)).to(device),
        empty=torch.from_numpy(_encode("", token_ids())).to(device),
        crowded=torch.from_numpy(sample_crowded_rows(seed, count)).to(device),
    )


@torch.no_grad()
def encode_bank(bank: Bank, vae: AutoencoderKL) -> Tensor:
    """N x 4 x 16 x 16 float16: the modes of the scenes' latents, before any scaling."""
    kind = bank.rows.device.type
    latents = []
    for indices in torch.split(torch.arange(len(bank.rows), device=kind), _ENCODE_BATCH):
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            mode = vae.encode(bank.images(indices)).latent_dist.mode()
        latents.append(mode.half())
    return torch.cat(latents)


def training_caption(scene: Scene, generator: np.random.Generator) -> str:
    """A caption of `scene`; one in five tells only the background, or only one object.

    Fragments put negative prompts such as "a blue background" into the training distribution.
    """
    kind = generator.random()
    if kind < _BACKGROUND_ONLY:
        return f"{with_article(scene.background)} background"
    things = [thing.caption() for thing in scene.objects]
    if kind < _BACKGROUND_ONLY + _ONE_OBJECT_ONLY:
        thing = things[generator.integers(len(things))]
        # Half without their place: "a small green ring" is a prompt too.
        caption = thing if generator.random() < 0.5 else thing.split(" at ")[0]
    else:
        caption = scene.caption()
    return caption.replace("medium ", "") if generator.random() < _SIZE_UNSAID else caption


def _tokenize(rows: Rows, generator: np.random.Generator) -> NDArray[np.int64]:
    ids = token_ids()
    return np.stack(
        [_encode(training_caption(scene_from_row(row), generator), ids) for row in rows]
    )


def _encode(caption: str, ids: dict[str, int]) -> NDArray[np.int64]:
    words = [ids[START], *(ids[word] for word in caption.split()), ids[END]]
    return np.array(words + [ids[END]] * (MAX_TOKENS - len(words)), np.int64)
