"""`sdopt tune`: the kernels' tiles measured on this GPU, or checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdopt.cli.options import (
    DtypeOfAll,
    Force,
    checked_counts,
    checked_levels,
    checked_sizes,
    refuse_existing,
)
from sdopt.errors import SdoptError, UnknownNameError


def tune(
    levels: Annotated[
        str,
        typer.Option("--levels", metavar="LEVEL,...", help="Whose shapes are measured."),
    ] = "hoisted,express",
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="Weights, as of `sdopt generate`.")
    ] = "sd15-random",
    images: Annotated[
        str,
        typer.Option("--images", metavar="N,...", help="In a call: shapes of batches are others."),
    ] = "1",
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes", metavar="WxH,...", help="Pixels: 512,512x768 (default: the source's)."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="For compiling and timing.")
    ] = 300.0,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", metavar="N", help="That compile (default: a core less, 16 at most)."
        ),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Measure only shapes that --out lacks.")
    ] = False,
    known: Annotated[
        bool,
        typer.Option(
            "--known",
            help="Measure only the tiles in --out, and the library; with --missing, of the shapes "
            "that it lacks, the tiles of others of their kind.",
        ),
    ] = False,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Repeat the tiles of --out (default: all in use), no timing; store how it went.",
        ),
    ] = False,
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Only compile what --out and the rules choose, for --cards, and check the machine "
            "code: needs Triton, no GPU.",
        ),
    ] = False,
    cards: Annotated[
        str | None,
        typer.Option("--cards", metavar="CARD,...", help="Of --static (default: H100)."),
    ] = None,
    dtype: DtypeOfAll = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Table (default: your own of this card)."),
    ] = None,
    force: Force = False,
) -> int:
    """Measure how each operation's work is best cut on this GPU, and store the proved tiles.

    Your own table is in the cache folder and used from then on, before the tiles that ship. It is
    continued; with --force its shapes are measured anew, and keep their tiles until then.
    """
    modes = {"--missing": missing, "--known": known, "--prove": prove, "--static": static}
    given = [name for name, wanted in modes.items() if wanted]
    if len(given) > 1 and set(given) != {"--missing", "--known"}:
        raise SdoptError(f"{' and '.join(given)} do not go together; drop all but one")
    if processes is not None and processes < 1:
        raise SdoptError(f"--processes is {processes}; give 1 or more")
    if not seconds > 0:
        raise SdoptError(f"--seconds is {seconds}; give more than 0")
    names = checked_levels(levels)
    counts, pixels = checked_counts(images, "--images"), checked_sizes(sizes)

    from sdopt.engine.cards import KNOWN
    from sdopt.tuning import programs
    from sdopt.tuning.jobs import operand_dtype

    if cards is not None and not static:
        raise SdoptError("--cards is for --static alone: other modes measure the GPU at hand")
    as_known = {card.lower(): card for card in KNOWN}
    named = [card.strip() for card in ("H100" if cards is None else cards).split(",")]
    for card in named:
        if card.lower() not in as_known:
            raise UnknownNameError("card of --cards", card, tuple(KNOWN), "")
    operand_dtype()  # one that no kernel is compiled for

    wanted = programs.Tuning(
        levels=names,
        source=source,
        images=counts,
        sizes=pixels,
        seconds=seconds,
        processes=processes or programs.usual_processes(),
        missing=missing,
        known=known,
        out=out,
        anew=force,
        cards=[as_known[card.lower()] for card in named],
    )
    if prove:
        return programs.prove_stored(wanted)
    if static:
        return programs.check_machine_code(wanted)
    if out is not None and not (missing or known):
        programs.this_card()  # before the file: where there is no GPU, no other one helps
        refuse_existing(out, force=force)
    return programs.tune_levels(wanted)
