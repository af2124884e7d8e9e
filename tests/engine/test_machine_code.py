"""Registers in flight are followed through machine code along all of its paths, on made-up code."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdopt.engine import proof
from sdopt.engine.machine_code import before_wait, hazards, parsed, written
from sdopt.errors import MissingToolError

PRODUCT = "HGMMA.64x128x16.F32 R24, R100, gdesc[UR4], R24, gsb0"
OPEN_PRODUCT = PRODUCT.removesuffix(", gsb0")
OTHER = "HGMMA.64x128x16.F32 R24, R96, gdesc[UR8], R24, gsb0"
SHARED = "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0"
LOAD = "LDSM.16.M88.4 R100, [R4+UR7]"
EXIT = "EXIT"


def code(*lines: str) -> str:
    """As the disassembler prints it; lines that end with a colon are labels."""
    text = ['\t.section\t.text.kernel,"ax",@progbits', "kernel:", ".text.kernel:"]
    for number, line in enumerate(lines):
        predicate = line.split()[0] if line.startswith("@") else ""
        rest = line.removeprefix(predicate).strip()
        labelled = (
            line
            if line.endswith(":")
            else f"        /*{16 * number:04x}*/  {predicate:>6} {rest} ;"
        )
        text.append(labelled)
    return "\n".join(text)


def races(*lines: str) -> list[tuple[str, str]]:
    """Addresses of the writes and of the products."""
    return [(one.write.address, one.product.address) for one in hazards(parsed(code(*lines)))]


def test_a_load_into_an_operand_that_is_still_read_is_found_and_told() -> None:
    assert races(PRODUCT, LOAD, EXIT) == [("0010", "0000")]
    told = str(hazards(parsed(code(PRODUCT, LOAD, EXIT)))[0])
    assert told == (
        "in kernel, 0010 LDSM.16.M88.4 R100, [R4+UR7] writes what "
        "0000 HGMMA.64x128x16.F32 R24, R100, gdesc[UR4], R24, gsb0 still reads"
    )


def test_a_wait_for_all_groups_makes_the_operand_free() -> None:
    assert races(PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", LOAD, EXIT) == []


def test_a_wait_leaves_the_newest_groups_in_flight() -> None:
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert races(PRODUCT, OTHER, wait, LOAD, EXIT) == []
    assert races(OTHER, PRODUCT, wait, LOAD, EXIT) == [("0030", "0010")]
    assert races(PRODUCT, OTHER, "WARPGROUP.DEPBAR.LE gsb0, 0x2", LOAD, EXIT) == [("0030", "0000")]


def test_products_up_to_the_one_that_ends_a_group_are_one_group() -> None:
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert races(OPEN_PRODUCT, OTHER, wait, LOAD, EXIT) == [("0030", "0000")]
    assert races(OPEN_PRODUCT, OTHER, SHARED, wait, LOAD, EXIT) == []


def test_a_group_that_is_not_ended_is_not_waited_for() -> None:
    assert races(OPEN_PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", LOAD, EXIT) == [("0020", "0000")]


def test_a_wait_that_may_not_run_or_is_of_another_counter_frees_nothing() -> None:
    assert races(PRODUCT, "@P0 WARPGROUP.DEPBAR.LE gsb0, 0x0", LOAD, EXIT) == [("0020", "0000")]
    assert races(PRODUCT, "WARPGROUP.DEPBAR.LE gsb1, 0x0", LOAD, EXIT) == [("0020", "0000")]


def test_a_write_that_may_not_run_counts() -> None:
    assert races(PRODUCT, f"@!P3 {LOAD}", EXIT) == [("0010", "0000")]


def test_a_product_that_may_not_run_counts_and_ends_no_group_for_sure() -> None:
    assert races(f"@P0 {PRODUCT}", LOAD, EXIT) == [("0010", "0000")]
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert races(PRODUCT, f"@P0 {OTHER}", wait, LOAD, EXIT) == [("0030", "0000")]


def test_an_operand_in_shared_memory_has_no_registers_to_overwrite() -> None:
    assert races(SHARED, LOAD, EXIT) == []


def test_a_sum_in_flight_must_not_be_written_either_but_by_the_next_product() -> None:
    assert races(SHARED, "FADD R87, R2, R3", EXIT) == [("0010", "0000")]
    assert races(SHARED, "FADD R88, R2, R3", SHARED, EXIT) == []


def test_a_product_that_sums_into_the_operand_of_one_in_flight() -> None:
    assert races(PRODUCT, "HGMMA.64x16x16.F32 R96, gdesc[UR4], R96, gsb0", EXIT) == [
        ("0010", "0000")
    ]
    narrower = "HGMMA.64x16x16.F16 R96, gdesc[UR4], R96, gsb0"
    assert races(PRODUCT, narrower, EXIT) == []


def loop(wait: str) -> tuple[str, ...]:
    """As Triton pipelines it: the operand is loaded, then multiplied, at each turn."""
    return (
        ".L_x_0:",
        LOAD,
        wait,
        PRODUCT,
        "@P0 BRA `(.L_x_0)",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        LOAD,
        EXIT,
    )


def test_a_write_is_found_that_is_late_only_at_the_next_turn_of_a_loop() -> None:
    assert races(*loop("NOP")) == [("0010", "0030")]
    assert races(*loop("NOP")[:4], *loop("NOP")[5:]) == []


def test_a_loop_that_waits_before_its_end_is_clear() -> None:
    turn = (".L_x_0:", LOAD, PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "@P0 BRA `(.L_x_0)", EXIT)
    assert races(*turn) == []


def test_groups_of_several_turns_are_counted() -> None:
    turn = (".L_x_0:", LOAD, PRODUCT, SHARED, SHARED, "WARPGROUP.DEPBAR.LE gsb0, 0x{}")
    ends = ("@P0 BRA `(.L_x_0)", EXIT)
    assert races(*(line.format(2) for line in turn), *ends) == []
    assert races(*(line.format(3) for line in turn), *ends) == [("0010", "0020")]


BRANCHES = {
    "unless": "@!P0 BRA `(.L_x_1)",
    "by operand": "BRA UP0, `(.L_x_1)",
    "divergent": "BRA.DIV UR4, `(.L_x_1)",
    "table": 'BRX R2 -0x190 (*"BRANCH_TARGETS .L_x_0,.L_x_1"*)',
    "table unknown": "BRX R2 -0x190",
    "uniform table": 'BRXU UR4 -0x190 (*"BRANCH_TARGETS .L_x_1,.L_x_0"*)',
    "collective": "WARPSYNC.COLLECTIVE R2, `(.L_x_1)",
    "call": "CALL.REL.NOINC `(.L_x_1)",
}


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_every_way_on_is_followed(branch: str) -> None:
    waits = (".L_x_0:", "WARPGROUP.DEPBAR.LE gsb0, 0x0", LOAD, EXIT)
    assert races(PRODUCT, branch, *waits, ".L_x_1:", LOAD, EXIT) == [("0070", "0000")]
    assert races(PRODUCT, branch, *waits, ".L_x_1:", EXIT) == []


def test_what_follows_a_jump_or_an_end_is_not_reached_from_it() -> None:
    assert races(PRODUCT, EXIT, LOAD, EXIT) == []
    assert races(PRODUCT, "BRA `(.L_x_0)", LOAD, ".L_x_0:", EXIT) == []
    assert races(PRODUCT, "@P1 EXIT", LOAD, EXIT) == [("0020", "0000")]


def test_a_function_returns_behind_its_calls() -> None:
    called = ("CALL.REL.NOINC `(.L_x_1)", LOAD, EXIT, ".L_x_1:", PRODUCT)
    back = "RET.REL.NODEC R2 `(kernel)"
    assert races(*called, back) == [("0010", "0040")]
    assert races(*called, "WARPGROUP.DEPBAR.LE gsb0, 0x0", back) == []


def test_threads_that_meet_go_on_where_their_barrier_says() -> None:
    lines = ("BSSY B0, `(.L_x_1)", PRODUCT, "BSYNC B0", EXIT, ".L_x_1:", LOAD, EXIT)
    assert races(*lines) == [("0050", "0010")]
    assert races(*(line.replace("BSYNC B0", "BSYNC B1") for line in lines)) == []


def test_all_functions_of_a_file_are_followed() -> None:
    text = code(PRODUCT, EXIT) + "\n" + code(PRODUCT, LOAD, EXIT).replace("kernel", "other")
    assert [one.write.section for one in hazards(parsed(text))] == ["other"]


WRITES = {
    "FADD R5, R2, R3": {5},
    "@P0 FADD R5, R2, R3": {5},
    "IADD3 R5, P0, R2, R3, RZ": {5},
    "CS2R R8, SRZ": {8, 9},
    "CS2R.32 R8, SR_CLOCKLO": {8},
    "LDG.E.128 R8, desc[UR16][R134.64]": {8, 9, 10, 11},
    "LDG.E.64 R8, desc[UR16][R134.64]": {8, 9},
    "LDS.U8 R2, [R2+UR32+0x31054]": {2},
    "LDSM.16.M88.4 R8, [R4]": {8, 9, 10, 11},
    "LDSM.16.MT88.2 R8, [R4]": {8, 9},
    "LDSM.16.M88 R8, [R4]": {8},
    "IMAD.WIDE.U32 R8, P1, R2, R3, RZ": {8, 9},
    "DFMA R8, R2, R4, R6": {8, 9},
    "F2F.F64.F32 R8, R2": {8, 9},
    "SHF.L.U64.HI R8, R2, 0x1, R3": {8},
    "SHFL.BFLY PT, R8, R2, 0x2, 0x1f": {8},
    "HMMA.16816.F32 R8, R20, R24, R8": {8, 9, 10, 11},
    "ATOMG.E.ADD.STRONG.GPU PT, R8, desc[UR4][R2.64], R6": {8, 9, 10, 11},
    "ISETP.GE.AND P0, PT, R2, R3, PT": set(),
    "STS.128 [R2], R8": set(),
    "STG.E.64 desc[UR4][R2.64], R8": set(),
    "R2UR UR4, R2": set(),
    "UIADD3 UR4, UR5, 0x1, URZ": set(),
    "BAR.SYNC.DEFER_BLOCKING R2, R3": set(),
    "BRX R2 -0x190": set(),
    "SYNCS.ARRIVE.TRANS64 RZ, [UR18+0x28000], R2": set(),
    "SYNCS.ARRIVE.TRANS64 R4, [UR18+0x28000], R2": {4, 5},
    "WARPGROUP.ARRIVE": set(),
    # Whatever this is, it may write all that it names.
    "NEWLY.MADE R8, R20.reuse, [R30]": {8, 9, 10, 11, 20, 21, 22, 23},
    "NEWLY.MADE.256 P0, R8": set(range(8, 16)),
}


@pytest.mark.parametrize("line", WRITES)
def test_what_an_instruction_writes(line: str) -> None:
    one = parsed(code(line)).instructions[0]
    assert {register for part in written(one) for register in part} == WRITES[line]


@pytest.mark.parametrize(
    ("line", "named"),
    [("BRA `(.L_x_9)", "jumps to a label that is not there: 0010 BRA"), ("?", "not understood")],
)
def test_code_that_cannot_be_followed_is_refused_by_name(line: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        races(PRODUCT, line, EXIT)


def test_code_without_the_warp_groups_products_is_clear() -> None:
    assert races("HMMA.16816.F32 R8, R20, R24, R8", "FADD R20, R2, R3", EXIT) == []


class Compiled:
    """A kernel of another architecture: there is nothing to disassemble."""

    asm = {"ptx": "mma.sync.aligned", "cubin": b"nothing"}  # noqa: RUF012


def test_a_kernel_of_an_architecture_without_them_is_clear_unseen() -> None:
    assert proof.hazards(Compiled()) == []


def test_without_the_disassembler_the_program_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(proof, "bundled_disassembler", lambda: None)
    monkeypatch.delenv(proof.NAMED_BY, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="nvdisasm is needed to read machine code"):
        proof.disassembler()


def test_a_disassembler_that_cannot_read_a_file_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvdisasm"
    tool.write_text("#!/bin/sh\necho too new >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv(proof.NAMED_BY, str(tool))
    with pytest.raises(MissingToolError, match="cannot read this machine code: too new"):
        proof.disassembled(b"code")


def test_what_comes_before_the_wait_is_found_on_every_path() -> None:
    load, wait, store = "LDG.E R0, [R2.64]", "ACQBULK", "STG.E [R2.64], R0"

    def early(*lines: str) -> list[str]:
        return [one.address for one in before_wait(parsed(code(*lines)))]

    assert early(wait, load, "PREEXIT", store, EXIT) == []
    assert early(load, wait, store, EXIT) == ["0000"]
    assert early("PREEXIT", wait, EXIT) == ["0000"]
    # One path goes around the wait.
    assert early("@P0 BRA `(.L_1)", wait, load, ".L_1:", store, EXIT) == ["0040", "0050"]
    # A wait with a predicate may not wait: one path goes on.
    assert early("@P0 ACQBULK", load, EXIT) == ["0010", "0020"]
