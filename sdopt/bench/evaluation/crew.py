"""The processes of one evaluation, as Accelerate started them; one alone is a crew too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sdopt.errors import SdoptError

if TYPE_CHECKING:
    import torch


class Crew:
    """Who this process is, and what it does of the whole.

    The processes speak with each other once, at the start. From then on they only share a place
    for files, so that one that dies takes nothing away from the others.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        self.state: Any = PartialState(cpu=not torch.cuda.is_available())

    @property
    def number(self) -> int:
        """From 0; 0 merges and tells."""
        return int(self.state.process_index)

    @property
    def size(self) -> int:
        """The number of processes."""
        return int(self.state.num_processes)

    @property
    def device(self) -> torch.device:
        """A GPU of this process's own, or the CPU."""
        device: torch.device = self.state.device
        return device

    @property
    def is_main(self) -> bool:
        """Whether this process merges and tells."""
        return bool(self.state.is_main_process)

    def share(self, work: Sequence[int]) -> list[int]:
        """This process's part of it, by PartialState."""
        with self.state.split_between_processes(list(work)) as ours:
            return list(ours)

    def told_by_main(self, decide: Callable[[], Any]) -> Any:
        """What the main process decides, in all of them.

        It raises SdoptError there; the others end with its exit code, without a word.
        """
        error: SdoptError | None = None
        answer: Any = None
        if self.is_main:
            try:
                answer = decide()
            except SdoptError as one:
                error = one
        told: list[Any] = [answer, error is None]
        if self.size > 1:
            self.broadcast(told)
        if error is not None:
            raise error
        if not told[1]:
            raise SystemExit(2)
        return told[0]

    def broadcast(self, told: list[Any]) -> None:
        """The main process's values in the place of our own.

        By gloo, on GPUs too: NCCL would take memory of each GPU, and wait for the slowest at the
        end.
        """
        import torch
        from torch import distributed

        group = distributed.new_group(backend="gloo")
        distributed.broadcast_object_list(told, src=0, group=group, device=torch.device("cpu"))

    def part(self) -> None:
        """Leave the others, after the last word with them."""
        self.state.destroy_process_group()
