"""The baselines of one run: what is stored for it, and what it stores when it is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sdopt.bench.metrics.work import ACCEPTED_COUNTS, WORK_DETAILS
from sdopt.bench.session.contents import contents, image_at, latents_at, latents_identity
from sdopt.bench.session.context import RunContext
from sdopt.bench.stored import baselines
from sdopt.bench.stored.accepting import digest, mixture, store_together
from sdopt.bench.stored.compared import History, NotCompared, Refused, find_history
from sdopt.bench.stored.history import history_folder
from sdopt.bench.stored.latents import load_latents
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
    _written: set[Path] = field(default_factory=set)
    _done_levels: set[str] = field(default_factory=set)

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
            path, shape = image_at(self.run, self.root, level, request), images[request.name].shape
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
            path = latents_at(self.run, self.root, level, request, double)
            identity, scale = (
                latents_identity(self.run, level, double),
                self.run.source.guidance_scale,
            )
            return load_latents(path, request, level, scale, latents[request.name], identity)

        requests = (one for one in self.run.workload.requests if one.name in latents)
        return _loaded(requests, load)

    def accept(self, level: Level, generated: Generated) -> None:
        """Store images with their latents once a run: under `--sdopt-accept`, and beside a JSON.

        Raises SdoptError rather than accept anything worthless.
        """
        roots = self._roots
        if not roots or level.name in self._done_levels:
            return
        if reason := generated.unsound(level):
            if self.run.settings.accept:
                raise SdoptError(f"[{level.name}] nothing was stored: {reason}")
            return  # the verdicts say so
        for root in roots:
            files = contents(self.run, root, level, generated)
            store_together(root, self.run.baseline_set, level.name, files)
            self._written.update(files)
            if root == self.root:
                self.accepted += [path for path in files if path.suffix == ".png"]
        self._done_levels.add(level.name)

    @property
    def _roots(self) -> list[Path]:
        """Where this run is to write: into the baselines, beside its JSON, both, or nowhere."""
        settings = self.run.settings
        return [
            *([self.root] if settings.accept else []),
            *([settings.keep] if settings.keep else []),
        ]

    def kept(self) -> dict[str, str]:
        """The digests of what this run wrote beside its JSON, by path in that folder."""
        folder = self.run.settings.keep
        if folder is None:
            return {}
        paths = sorted(path for path in self._written if path.is_relative_to(folder))
        return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in paths}

    def accept_work(self, level: Level, work: Work) -> None:
        """Store the counts that are the same on every machine, where `accept` stores images."""
        known = ((name, getattr(work, name)) for name in (*ACCEPTED_COUNTS, *WORK_DETAILS))
        counts = {name: count for name, count in known if count is not None}
        for root in self._roots:
            path = baselines.work_path(root, self.run.workload.baseline_set)
            if root != self.root and path not in self._written:
                path.unlink(missing_ok=True)  # of an earlier run with that name
            baselines.save_work(path, level.name, counts)
            self._written.add(path)
        if self.run.settings.accept:
            self.work.update(baselines.load_work(self.work_file))


def _loaded(requests: Iterable[Request], load: Callable[[Request], T]) -> Loaded[T]:
    """Load what is stored of each request."""
    stored, unusable = dict[str, T](), dict[str, BrokenFileError]()
    for request in requests:
        try:
            stored[request.name] = load(request)
        except BrokenFileError as error:
            unusable[request.name] = error
    return stored, unusable
