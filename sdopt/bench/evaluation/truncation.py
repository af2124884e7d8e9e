"""Prompts of more tokens than the text encoder takes, told once for a level: not in each batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sdopt.pipelines.engine_call import TRUNCATED
from sdopt.pipelines.engine_call import logger as engine_logger
from sdopt.util.text import shown
from sdopt.util.unsaid import unsaid

UNSAID = {
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion": (
        "input was truncated because CLIP"  # and all that was, with each shorter prompt's end marks
    ),
    "transformers.tokenization_utils_base": "Token indices sequence length is longer",
}
"""Loggers, and the words of what they say of long prompts."""

SHOWN = 120
"""Characters of the first."""

logger = logging.getLogger(__name__)


class Truncated:
    """The prompts that were cut, in place of the warnings that say so."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.limit: object = 0
        self.texts: dict[str, None] = {}

    def keeps(self, record: logging.LogRecord) -> bool:
        """A filter of the engine's log: notes a warning that it leaves out."""
        if record.msg == TRUNCATED and isinstance(record.args, tuple):
            text, self.limit = record.args
            self.texts[str(text)] = None
            return False
        return True

    def tell(self) -> None:
        """How many, and the first."""
        if self.texts:
            first, *others = self.texts
            many = f"{len(self.texts)} prompts are" if others else "a prompt is"
            words = "%s: %s longer than the %d tokens that are used: %s"
            logger.warning(words, self.level, many, self.limit, shown(first, SHOWN))


@contextmanager
def truncation_told_once(level: str) -> Iterator[None]:
    """Inside, neither diffusers nor `engine_call.token_ids` says what is cut; at the end this."""
    found = Truncated(level)
    engine_logger.addFilter(found.keeps)
    try:
        with ExitStack() as stack:
            for name, words in UNSAID.items():
                stack.enter_context(unsaid(words, name))
            yield
    finally:
        engine_logger.removeFilter(found.keeps)
        found.tell()
