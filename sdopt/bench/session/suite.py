"""One run of the suite: its source, device, prompts, pictures and stored baselines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.known import RUN
from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.metrics.work import ACCEPTED_COUNTS, WORK_DETAILS
from sdopt.bench.stored import baselines, history, latents
from sdopt.bench.stored.accepting import forget_settled, mixture, store_together
from sdopt.bench.stored.history import StoredRun
from sdopt.errors import BrokenFileError, MemoryLeftError, SdoptError
from sdopt.levels import LEVELS, UNREPEATABLE, Level, get_level
from sdopt.pipelines.workload import Request, Workload, load_workload
from sdopt.util.hardware import Hardware, free_memory, hardware_of, versions
from sdopt.util.partial_files import SUFFIX, remove_stale
from sdopt.util.progress import Progress
from sdopt.weights.sources import Source, resolve

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sdopt.bench.measure import FirstCall, Work
    from sdopt.bench.measure.latents import Doubles, Latents
    from sdopt.bench.measure.repeat import Repeat
    from sdopt.pipelines.pipeline import LevelPipeline

    Pictures = Mapping[str, NDArray[np.float32]]
    StoredPictures = Mapping[str, NDArray[np.uint8]]

WITHOUT_CUDA = (
    "sdopt: without CUDA graphs run step by step, PyTorch's operations stand for Triton's kernels, "
    "and memory and kernel figures are missing"
)
MEMORY_LEFT_MIB = 1.0
"""What a freed level may leave allocated."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for.

    `compare` is None, '' for the newest stored run, or the name of one. `unfit` says why timings
    of this run would mean nothing, if they would. `command` starts the same run again. `fault` is
    what `sdopt.bench.plugin.carry` puts into every pipeline.
    """

    source: str = "auto"
    prompts: Path | None = None
    baselines_root: Path
    accept: bool = False
    compare: str | None = None
    unfit: str | None = None
    command: str = RUN
    fault: str | None = None


@dataclass(kw_only=True)
class Suite:
    """The state of one run; what is costly is made when it is first asked for."""

    settings: Settings
    progress: Progress
    accepted: list[Path] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    failed_by_verdict: list[str] = field(default_factory=list)
    _pictures: dict[str, Pictures] = field(default_factory=dict)
    _latents: dict[str, Latents] = field(default_factory=dict)
    _doubles: dict[str, Doubles] = field(default_factory=dict)
    _repeats: dict[str, Repeat] = field(default_factory=dict)
    _accepted_levels: set[str] = field(default_factory=set)
    _broken: Path | None = None

    @cached_property
    def source(self) -> Source:
        """The weights. Raises SdoptError for a source that does not exist."""
        return resolve(self.settings.source)

    @cached_property
    def workload(self) -> Workload:
        """The requests. Raises SdoptError for a bad prompts file."""
        return load_workload(self.source, self.settings.prompts)

    @property
    def baseline_set(self) -> str:
        """The folder of this run's stored runs and pictures.

        The miniature's float16 pictures differ from its float32 ones by more than a fault may: they
        are a set of their own.
        """
        name = self.workload.baseline_set
        return name.replace(self.source.name, self._source_set, 1)

    @property
    def _source_set(self) -> str:
        in_half = self.source.is_embedded and self.dtype == "float16"
        return f"{self.source.name}-float16" if in_half else self.source.name

    @cached_property
    def device(self) -> torch.device:
        """The device that every level runs on."""
        import torch

        # `pipeline.default_device` says the same, but imports diffusers, which takes seconds.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def hardware(self) -> Hardware:
        """What this run's histories are filed under."""
        return hardware_of(self.device)

    @cached_property
    def history_folder(self) -> Path:
        """Where this run's history is read and written."""
        return history.history_folder(
            self.settings.baselines_root, self.hardware, self.baseline_set
        )

    @cached_property
    def history(self) -> list[StoredRun] | str | None:
        """The runs to compare with, oldest first, the reason why there are none, or None.

        None if no comparison was asked for.
        """
        if self.settings.compare is None:
            return None
        if self.settings.unfit:
            return self.settings.unfit
        try:
            path = history.find_run(self.history_folder, self.settings.compare)
            return history.load_until(path, self.hardware, self.baseline_set)
        except BrokenFileError as error:
            self._broken = error.path
            return str(error)

    @property
    def stored(self) -> StoredRun | None:
        """The newest run to compare with, if there is one."""
        return self.history[-1] if isinstance(self.history, list) else None

    @cached_property
    def gate(self) -> Gate:
        """The judge of this run's numbers."""
        limits_file = baselines.limits_path(self.settings.baselines_root, self._source_set)
        work_file = baselines.work_path(self.settings.baselines_root, self.workload.baseline_set)
        gate = Gate(
            comparing=self.settings.compare is not None,
            device=self.device.type,
            command=self.settings.command,
            limits=baselines.load_limits(limits_file),
            limits_file=str(limits_file),
            work_stored=baselines.load_work(work_file),
            work_file=str(work_file),
        )
        if isinstance(self.history, str):
            gate.refusal = self.history
            if self.settings.unfit:
                gate.refusal_hint = f"{gate.command} --benchmark-compare  # without that option"
            elif self._broken:
                whole = "or remove it, if git has none that is whole"
                gate.refusal_hint = f"git checkout -- {self._broken}  # {whole}"
        elif self.history is not None:
            newest = self.history[-1]
            gate.stored, gate.history = newest.metrics, str(newest.path)
            gate.commit = newest.commit
            changes = {name: self._redefined(name, row) for name, row in newest.metrics.items()}
            gate.redefined = {name: what for name, what in changes.items() if what}
            gate.series = history.series(self.history, HISTORY_RULES, self._redefined)
        return gate

    def _redefined(self, level: str, stored: Mapping[str, Any]) -> str | None:
        """In what a stored measurement of a level is of other settings than this run's."""
        if level not in LEVELS:
            return None
        return baselines.redefinition(stored, LEVELS[level], self.source.guidance_scale)

    def keep_work(self, level: Level, work: Work) -> None:
        """Under `--sdopt-accept`: store the counts that are the same on every machine."""
        if not self.settings.accept:
            return
        path = Path(self.gate.work_file or "")
        counts = {name: getattr(work, name) for name in (*ACCEPTED_COUNTS, *WORK_DETAILS)}
        baselines.save_work(path, level.name, counts)
        self.gate.work_stored = baselines.load_work(path)

    @contextmanager
    def warm_pipeline(self, level: Level) -> Iterator[tuple[LevelPipeline, FirstCall]]:
        """The level's pipeline after its first picture; freed on exit.

        Raises MemoryLeftError if freeing it leaves device memory allocated.
        """
        from sdopt.bench.measure import first_call
        from sdopt.bench.measure.cuda_memory import allocated_mib
        from sdopt.pipelines.pipeline import build

        before_mib = allocated_mib(self.device)
        with self.progress.during(f"[{level.name}] loading PyTorch, diffusers and the weights"):
            pipeline = build(self.source, level, self.device)
        what = "first picture, compiling" if level.compiled else "first picture"
        with self.progress.during(f"[{level.name}] {what}"):
            first = first_call(pipeline, self.workload.requests[0])
        if self.settings.fault:
            self._carry(pipeline, self.settings.fault)
        yield pipeline, first
        # Whoever still holds the pipeline itself holds none of its parts.
        pipeline.__dict__.clear()
        free_memory(self.device)
        left_mib = allocated_mib(self.device) - before_mib
        if left_mib > MEMORY_LEFT_MIB:
            raise MemoryLeftError(
                f"[{level.name}] {left_mib:.1f} MiB stay allocated on {self.device} after its "
                f"pipeline was freed, {MEMORY_LEFT_MIB:g} MiB are allowed; something still refers "
                "to it"
            )

    def _carry(self, pipeline: LevelPipeline, fault: str) -> None:
        """Put the fault in for good: whoever could take it out would keep the pipeline's parts."""
        from sdopt.bench.ab.slowdowns import inject
        from sdopt.bench.measure.timing import picture_ms

        inject(pipeline, fault, picture_ms(pipeline, self.workload.requests[0]))

    def kept_state(self, level: Level, pipeline: LevelPipeline) -> tuple[str, ...]:
        """What an earlier request left in the pipeline, see `sdopt.bench.measure.second_request`.

        No second pipeline of a compiled level: it might compile all anew.
        """
        from sdopt.bench.measure.second_request import kept_state
        from sdopt.pipelines.pipeline import build

        fresh = None if level.compiled else lambda: build(self.source, level, self.device)
        with self.progress.during(f"[{level.name}] a second request"):
            kept = kept_state(pipeline, self.workload.requests, fresh)
        free_memory(self.device)
        return kept

    def pictures(self, level: Level, pipeline: LevelPipeline) -> Pictures:
        """Every request's picture by that pipeline, made once a run, and the first one twice."""
        if level.name not in self._pictures:
            with self.progress.during(f"[{level.name}] pictures"):
                self._draw(level, pipeline)
        return self._pictures[level.name]

    def _draw(self, level: Level, pipeline: LevelPipeline) -> None:
        from sdopt.bench.measure.double import double_latents
        from sdopt.bench.measure.latents import draw
        from sdopt.bench.measure.repeat import repeat_of

        first = self.workload.requests[0]
        drawn = {request.name: draw(pipeline, request) for request in self.workload.requests}
        self._repeats[level.name] = repeat_of(first.name, drawn[first.name], draw(pipeline, first))
        double = double_latents(pipeline, first)
        self._doubles[level.name] = {} if double is None else {first.name: double}
        self._latents[level.name] = {name: one.latents for name, one in drawn.items()}
        self._pictures[level.name] = {name: one.picture for name, one in drawn.items()}

    def latents(self, level: Level, pipeline: LevelPipeline) -> Latents:
        """What was decoded to each of `pictures`."""
        self.pictures(level, pipeline)
        return self._latents[level.name]

    def repeat(self, level: Level, pipeline: LevelPipeline) -> Repeat:
        """The first request's picture and latents against a second drawing, after all others."""
        self.pictures(level, pipeline)
        return self._repeats[level.name]

    def reference_pictures(self, level: Level) -> StoredPictures | None:
        """The reference level's pictures of this run, or None for a level without one."""
        from sdopt.bench.measure.quality import to_uint8

        if level.reference is None:
            return None
        reference = get_level(level.reference)
        if reference.name not in self._pictures:
            with self.warm_pipeline(reference) as (pipeline, _):
                self.pictures(reference, pipeline)
        pictures = self._pictures[reference.name]
        return {name: to_uint8(picture) for name, picture in pictures.items()}

    def true_pictures(self) -> StoredPictures:
        """The true rendering of every prompt that is a caption of the embedded source's scenes."""
        from sdopt.miniature.scenes import parse_caption, render

        pictures = {}
        for request in self.workload.requests if self.source.is_embedded else ():
            try:
                scene = parse_caption(request.prompt)
            except ValueError:
                continue  # a prompt of known words that describes no whole scene has no truth
            pictures[request.name] = render(scene, self.source.size_px)
        return pictures

    def stored_pictures(
        self, level: Level, pictures: Pictures
    ) -> tuple[StoredPictures, dict[str, BrokenFileError]]:
        """The level's stored pictures by prompt, and why the other prompts have none to compare.

        Under `--sdopt-accept` this run's pictures are stored first. Raises SdoptError rather than
        store a worthless one.
        """
        if self.settings.accept:
            self._accept(level, pictures)
        if errors := self._mixture(level):
            return {}, errors
        stored, unusable = {}, dict[str, BrokenFileError]()
        for request in self.workload.requests:
            path, shape = self._image_path(level, request), pictures[request.name].shape
            try:
                stored[request.name] = baselines.load_image(
                    path, request, level, self.source.guidance_scale, shape
                )
            except BrokenFileError as error:
                unusable[request.name] = error
        return stored, unusable

    def double(self, level: Level, pipeline: LevelPipeline) -> Doubles:
        """The first request's latents in float64; empty where nothing draws in it."""
        self.pictures(level, pipeline)
        return self._doubles[level.name]

    def stored_latents(
        self, level: Level, drawn: Latents | Doubles, *, double: bool = False
    ) -> tuple[dict[str, NDArray[Any]], dict[str, BrokenFileError]]:
        """The level's stored latents by prompt, and why the other prompts have none to compare.

        Under `--sdopt-accept` this run's are stored first, with the pictures. `double` is whether
        they were drawn in float64.
        """
        if self.settings.accept and level.name in self._pictures:
            self._accept(level, self._pictures[level.name])
        if errors := self._mixture(level):
            return {}, errors
        stored, unusable = {}, {}
        scale, identity = self.source.guidance_scale, self._latents_identity(level, double)
        for request in (one for one in self.workload.requests if one.name in drawn):
            path = self._latents_path(level, request, double)
            try:
                stored[request.name] = latents.load_latents(
                    path, request, level, scale, drawn[request.name], identity
                )
            except BrokenFileError as error:
                unusable[request.name] = error
        return stored, unusable

    def _mixture(self, level: Level) -> dict[str, BrokenFileError]:
        return mixture(self.settings.baselines_root, self.baseline_set, level.name)

    def tidy(self) -> None:
        """Remove what killed runs left of files on their way, and name an interrupted accept."""
        root = self.settings.baselines_root
        if removed := remove_stale(root.rglob(f"*{SUFFIX}")):
            self.left_behind.append(
                f"sdopt: removed {len(removed)} partial files of a run that was killed, in "
                f"{', '.join(sorted({str(path.parent) for path in removed}))}"
            )
        self.left_behind += [
            f"sdopt: an interrupted --sdopt-accept left images and latents partly new: {journal}"
            for journal in forget_settled(root)
        ]

    def _accept(self, level: Level, pictures: Pictures) -> None:
        """Store the pictures with their latents, once a run."""
        if level.name in self._accepted_levels:
            return
        self._check_sound(level, pictures)
        from sdopt.bench.measure.quality import to_uint8

        files, accepted = dict[Path, bytes](), list[Path]()
        for request in self.workload.requests:
            path = self._image_path(level, request)
            made_by = {**baselines.request_fields(request), **self.identity(level)}
            files[path] = baselines.image_content(to_uint8(pictures[request.name]), made_by)
            accepted.append(path)
            files |= self._accepted_latents(level, request)
        store_together(self.settings.baselines_root, self.baseline_set, level.name, files)
        self.accepted += accepted
        self._accepted_levels.add(level.name)

    def _accepted_latents(self, level: Level, request: Request) -> dict[Path, bytes]:
        files = {}
        for drawn, double in ((self._latents, False), (self._doubles, True)):
            values = drawn.get(level.name, {}).get(request.name)
            if values is not None:
                made_by = {
                    **baselines.request_fields(request),
                    **self._latents_identity(level, double),
                    "environment": self.environment,
                }
                path = self._latents_path(level, request, double)
                files[path] = latents.latents_content(values, made_by)
        return files

    def _latents_identity(self, level: Level, double: bool) -> dict[str, Any]:
        from sdopt.bench.measure.double import STEPS

        return {**self.identity(level), "drawn_steps": STEPS if double else level.steps}

    def _check_sound(self, level: Level, pictures: Pictures) -> None:
        """Raise SdoptError for pictures or latents that no baseline may hold."""
        from sdopt.bench.measure.latents import latent_faults
        from sdopt.bench.measure.quality import picture_faults

        faults = {
            **latent_faults(self._latents.get(level.name, {})),
            **picture_faults(pictures),
        }
        if faults:
            raise SdoptError(f"[{level.name}] nothing was stored: {faults}")
        repeat = self._repeats.get(level.name)
        if repeat and not repeat.is_exact and level.name not in UNREPEATABLE:
            raise SdoptError(f"[{level.name}] nothing was stored: {repeat}")

    def _image_path(self, level: Level, request: Request) -> Path:
        return baselines.image_path(
            self.settings.baselines_root, self.baseline_set, level.name, request.name
        )

    def _latents_path(self, level: Level, request: Request, double: bool) -> Path:
        root, name = self.settings.baselines_root, self.baseline_set
        return latents.latents_path(root, name, level.name, request.name, double=double)

    def identity(self, level: Level) -> dict[str, Any]:
        """What a stored number or picture of this run is of."""
        return {
            "level": level.name,
            "level_fields": level.as_dict(),
            "source": self.source.name,
            "device": self.hardware.name,
            "dtype": self.dtype,
            "steps": level.steps,
            "size_px": self.source.size_px,
            "guidance_scale": self.source.guidance_scale,
        }

    @property
    def dtype(self) -> str:
        """What every level computes in on this device."""
        return "float16" if self.device.type == "cuda" else "float32"

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions that may move a number; another one is compared and printed."""
        return versions()

    def changed_environment(self) -> list[str]:
        """'torch 2.12.0 -> 2.13.0' for each version that differs from the stored run's."""
        if self.stored is None:
            return []
        before = self.stored.environment
        return [
            f"{name} {before.get(name)} -> {value}"
            for name, value in self.environment.items()
            if before.get(name) != value
        ]

    def unjudged(self, deselected: Collection[str], scopes: Sequence[str]) -> list[str]:
        """The tests that the stored run judged, that this run covers, and that it did not judge.

        `scopes` are the node id prefixes this run was asked for, `deselected` the node ids it left
        out on request. A removed, renamed or skipped benchmark ends up here.
        """
        if self.stored is None:
            return []
        return [
            test
            for test in self.stored.judged
            if test not in self.judged
            and test not in deselected
            and any(_is_within(test, scope) for scope in scopes)
        ]

    def made_on(self) -> dict[str, Any]:
        """What rows of measurements have to share to stand in one table."""
        return {
            "hardware": self.hardware.key,
            "device": str(self.hardware),
            "source": self.workload.baseline_set,
            "size_px": self.source.size_px,
            "dtype": self.dtype,
            "environment": self.environment,
        }

    def history_block(self) -> dict[str, Any]:
        """What this suite adds to the top of pytest-benchmark's JSON."""
        return {
            "schema": baselines.SCHEMA,
            "hardware": self.hardware.key,
            "baseline_set": self.baseline_set,
            "source": self.source.name,
            "accepted": self.settings.accept,
            "judged": sorted(self.judged),
            "environment": self.environment,
            **({"fault": self.settings.fault} if self.settings.fault else {}),
        }

    def header(self) -> list[str]:
        """The lines that say on what, with which weights and against what this run works."""
        source, settings = self.source, self.settings
        lines = [
            f"sdopt: {self.hardware}, {self.dtype}",
            f"sdopt: source {source.name} ({source.why}), {source.size_px} x {source.size_px}, "
            f"guidance scale {source.guidance_scale:g}, {len(self.workload.requests)} prompts",
            f"sdopt: baselines {settings.baselines_root}, set {self.baseline_set}, "
            f"hardware key {self.hardware.key}",
        ]
        if self.device.type != "cuda":
            lines.insert(1, WITHOUT_CUDA)
        if isinstance(self.history, str):
            lines.append(f"sdopt: comparing with nothing: {self.history}")
            if not any(self.history_folder.glob("*.json")):
                lines.append("sdopt: latency will fail; --benchmark-autosave stores a first run")
        elif self.history is not None:
            changes = self.changed_environment()
            earlier = len(self.history) - 1
            lines.append(
                f"sdopt: comparing with {self.history[-1].path}"
                + (f" and {earlier} earlier" if earlier else "")
            )
            lines += [f"sdopt: changed since then: {', '.join(changes)}"] if changes else []
        return lines + self.left_behind


def _is_within(test: str, scope: str) -> bool:
    """Whether a node id is that of `scope` itself or of something inside that folder or file."""
    inside = test.removeprefix(scope)
    return scope in ("", ".") or (inside != test and inside[:1] in ("", "/", ":", "["))
