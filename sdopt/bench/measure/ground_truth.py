"""The true rendering of each prompt that is a caption of the embedded source's scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdopt.miniature.scenes import parse_caption, render
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source


def ground_truth(source: Source, requests: Sequence[Request]) -> dict[str, NDArray[np.uint8]]:
    """Renderings of shape (height, width, 3) by prompt name; none for any other source."""
    images = {}
    for request in requests if source.is_embedded else ():
        try:
            scene = parse_caption(request.prompt)
        except ValueError:
            continue  # a prompt of known words that describes no whole scene has no ground truth
        images[request.name] = render(scene, source.size_px)
    return images
