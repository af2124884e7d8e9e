"""The baselines of one run: what is stored for it, and what it stores when it is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sdopt.bench.metrics.work import ACCEPTED_COUNTS, WORK_DETAILS
from sdopt.bench.session.context import RunContext
from sdopt.bench.stored import baselines
from sdopt.bench.stored.accepting import mixture, store_together
from sdopt.bench.stored.compared import History, NotCompared, Refused, find_history
from sdopt.bench.stored.history import history_folder
from sdopt.bench.stored.latents import latents_content, latents_path, load_latents
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import Level
from sdopt.pipelines.workload import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sdopt.bench.measure import Work
    from sdopt.bench.measure.generated import Generated
    from sdopt.bench.measure.latents import Doubles, Latents
    from sdopt.bench.measure.quality import Images

T = TypeVar("T")
Loaded = tuple[dict[str, T], dict[str, BrokenFileError]]
"""What is stored by prompt, and why the other prompts have nothing to compare with."""


@dataclass(kw_only=True)
class BaselineStore:
    """Reads the baselines of a run; only `accept` and `accept_work` write, if it was asked for.

    `accepted` are the images that this run stored.
    """

    run: RunContext
    accepted: list[Path] = field(default_factory=list)
    _accepted_levels: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The folder of all baselines."""
        return self.run.settings.baselines_root

    @cached_property
    def history_folder(self) -> Path:
        """Where this run's history is read and written."""
        return history_folder(self.root, self.run.hardware, self.run.baseline_set)

    @cached_property
    def history(self) -> History:
        """The runs to compare with, if a comparison was asked for."""
        settings = self.run.settings
        if settings.compare is None:
            return NotCompared()
        if settings.unfit:
            return Refused(reason=settings.unfit)
        return find_history(
            self.history_folder, settings.compare, self.run.hardware, self.run.baseline_set
        )

    @property
    def limits_file(self) -> Path:
        """Where what passes stands."""
        return baselines.limits_path(self.root, self.run.source_set)

    @property
    def work_file(self) -> Path:
        """Where the counts of work stand: those of the source, whatever it computes in."""
        return baselines.work_path(self.root, self.run.workload.baseline_set)

    @cached_property
    def work(self) -> dict[str, dict[str, Any]]:
        """The stored counts of work by level; what is accepted stands here at once."""
        return baselines.load_work(self.work_file)

    @property
    def images_folder(self) -> Path:
        """Where the images of all levels are stored."""
        return self.root / "images" / self.run.baseline_set

    def images(self, level: Level, images: Images) -> Loaded[NDArray[np.uint8]]:
        """The level's stored images, each of the shape of this run's."""
        if errors := mixture(self.root, self.run.baseline_set, level.name):
            return {}, errors

        def load(request: Request) -> NDArray[np.uint8]:
            path, shape = self._image_path(level, request), images[request.name].shape
            scale = self.run.source.guidance_scale
            return baselines.load_image(path, request, level, scale, shape)

        return _loaded(self.run.workload.requests, load)

    def latents(
        self, level: Level, latents: Latents | Doubles, *, double: bool = False
    ) -> Loaded[NDArray[Any]]:
        """The level's stored latents of the prompts that this run has some of.

        `double` is whether they are those of float64.
        """
        if errors := mixture(self.root, self.run.baseline_set, level.name):
            return {}, errors

        def load(request: Request) -> NDArray[Any]:
            path, scale = self._latents_path(level, request, double), self.run.source.guidance_scale
            identity = self._latents_identity(level, double)
            return load_latents(path, request, level, scale, latents[request.name], identity)

        requests = (one for one in self.run.workload.requests if one.name in latents)
        return _loaded(requests, load)

    def accept(self, level: Level, generated: Generated) -> None:
        """Under `--sdopt-accept`: store the images with their latents, once a run.

        Raises SdoptError rather than store anything worthless.
        """
        if not self.run.settings.accept or level.name in self._accepted_levels:
            return
        if reason := generated.unsound(level):
            raise SdoptError(f"[{level.name}] nothing was stored: {reason}")
        from sdopt.bench.measure.quality import to_uint8

        files, images = dict[Path, bytes](), list[Path]()
        for request in self.run.workload.requests:
            path = self._image_path(level, request)
            made_by = {**baselines.request_fields(request), **self.run.identity(level)}
            image = to_uint8(generated.images[request.name])
            files[path] = baselines.image_content(image, made_by)
            images.append(path)
            files |= self._latents_files(level, request, generated)
        store_together(self.root, self.run.baseline_set, level.name, files)
        self.accepted += images
        self._accepted_levels.add(level.name)

    def _latents_files(
        self, level: Level, request: Request, generated: Generated
    ) -> dict[Path, bytes]:
        files = {}
        for latents, double in ((generated.latents, False), (generated.doubles, True)):
            if request.name in latents:
                made_by = {
                    **baselines.request_fields(request),
                    **self._latents_identity(level, double),
                    "environment": self.run.environment,
                }
                path = self._latents_path(level, request, double)
                files[path] = latents_content(latents[request.name], made_by)
        return files

    def accept_work(self, level: Level, work: Work) -> None:
        """Under `--sdopt-accept`: store the counts that are the same on every machine."""
        if not self.run.settings.accept:
            return
        counts = {name: getattr(work, name) for name in (*ACCEPTED_COUNTS, *WORK_DETAILS)}
        baselines.save_work(self.work_file, level.name, counts)
        self.work.update(baselines.load_work(self.work_file))

    def _image_path(self, level: Level, request: Request) -> Path:
        return baselines.image_path(self.root, self.run.baseline_set, level.name, request.name)

    def _latents_path(self, level: Level, request: Request, double: bool) -> Path:
        name = self.run.baseline_set
        return latents_path(self.root, name, level.name, request.name, double=double)

    def _latents_identity(self, level: Level, double: bool) -> dict[str, Any]:
        from sdopt.bench.measure.double import STEPS

        return {**self.run.identity(level), "generated_steps": STEPS if double else level.steps}


def _loaded(requests: Iterable[Request], load: Callable[[Request], T]) -> Loaded[T]:
    """Load what is stored of each request."""
    stored, unusable = dict[str, T](), dict[str, BrokenFileError]()
    for request in requests:
        try:
            stored[request.name] = load(request)
        except BrokenFileError as error:
            unusable[request.name] = error
    return stored, unusable
