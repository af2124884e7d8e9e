"""The context of one run: what it was asked for, its source, requests, device and environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.judge.known import RUN
from sdopt.bench.own.ladder import Ladder, OwnLevel
from sdopt.levels import LEVELS, Level
from sdopt.pipelines.workload import Workload, load_workload, read_prompts, set_name
from sdopt.util.hardware import Hardware, hardware_of, versions
from sdopt.util.precision import BFLOAT16, chosen_dtype
from sdopt.util.progress import Progress
from sdopt.weights.sources import Source, resolve

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line asks for.

    `compare` is None, '' for the newest stored run, or the name of one. `unfit` says why timings
    of this run would mean nothing, if they would. `command` starts the same run again. `ladder`
    holds a project's own levels, which then are all that there are. `keep` is the folder that gets
    what this run would store, for `sdopt baseline accept`.
    """

    source: str = "auto"
    prompts: Path | None = None
    baselines_root: Path
    accept: bool = False
    compare: str | None = None
    unfit: str | None = None
    command: str = RUN
    ladder: Ladder | None = None
    keep: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run is of, and where it says how far it is. Nothing here changes during a run.

    What is costly to find out is found out when it is first asked for.
    """

    settings: Settings
    progress: Progress

    @cached_property
    def source(self) -> Source:
        """The weights. Raises SdoptError for a source that does not exist."""
        ladder = self.settings.ladder
        return resolve(self.settings.source) if ladder is None else ladder.source

    @property
    def levels(self) -> Mapping[str, Level]:
        """The levels that there are, by name: those of this package, or the project's own."""
        ladder = self.settings.ladder
        return LEVELS if ladder is None else ladder.by_name

    @cached_property
    def workload(self) -> Workload:
        """The requests. Raises SdoptError for a bad prompts file."""
        ladder = self.settings.ladder
        if ladder is not None and ladder.prompts is not None and self.settings.prompts is None:
            requests = read_prompts(ladder.prompts, self.source)
            return Workload(baseline_set=self.source.name, requests=requests)
        return load_workload(self.source, self.settings.prompts)

    @cached_property
    def device(self) -> torch.device:
        """The device that every level runs on."""
        import torch

        # `pipeline.default_device` says the same, but imports diffusers, which takes seconds.
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> str:
        """What every level computes in on this device."""
        return chosen_dtype(self.device.type)

    def dtype_of(self, level: Level) -> str:
        """What that level computes in."""
        own = level.dtype if isinstance(level, OwnLevel) else None
        return own or self.dtype

    @cached_property
    def hardware(self) -> Hardware:
        """What this run's histories are filed under."""
        return hardware_of(self.device)

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions that may move a number; another one is compared and printed.

        On a GPU the table of tiles is one of them.
        """
        return {**versions(), **_tiles(self.device)}

    @property
    def source_set(self) -> str:
        """What limits are filed under: the source, apart by dtype where that matters.

        The miniature's float16 images differ from its float32 ones by more than a fault may, and
        anybody's bfloat16 ones do: they are sets of their own, with histories of their own.
        """
        own = self.dtype == BFLOAT16 or (self.source.is_embedded and self.dtype == "float16")
        return f"{self.source.name}-{self.dtype}" if own else self.source.name

    @property
    def baseline_set(self) -> str:
        """The folder of this run's stored runs, images and latents."""
        return set_name(self.source_set, self.settings.prompts)

    def identity(self, level: Level) -> dict[str, Any]:
        """What a stored number or image of this run is of."""
        return {
            "level": level.name,
            "level_fields": level.as_dict(),
            "source": self.source.name,
            "device": self.hardware.name,
            "dtype": self.dtype_of(level),
            "steps": level.steps,
            "size_px": self.source.size_px,
            "guidance_scale": self.source.guidance_scale,
        }

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


def _tiles(device: torch.device) -> dict[str, str]:
    """How the engine's kernels are cut there; nothing on the CPU, which has none."""
    if device.type != "cuda":
        return {}
    from sdopt.engine.cards import card_of
    from sdopt.engine.tables import noted

    return {"tiles": noted(card_of(device))}
