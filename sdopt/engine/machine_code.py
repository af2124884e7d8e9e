"""Follow Hopper's machine code along all paths: what writes registers in use by its matrix unit?

`HGMMA R_sum, R_a, gdesc[...]` multiplies beside the other instructions and reads R_a until a
`WARPGROUP.DEPBAR.LE gsb0, N` has waited for its group (all but the N newest groups are done). A
write to R_a before that, on any path, makes the sum depend on who is faster; so does one to R_sum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MATRIX = frozenset({"HGMMA", "IGMMA", "QGMMA", "BGMMA"})
"""The warp group's products; what they read from registers is 4 of them in every format."""
OPERAND_REGISTERS = 4
WIDEST = 4
"""Registers that an instruction without an entry below may write, from every register it names."""
OLDEST = 64
"""Groups are told apart up to this age: more than `DEPBAR` can count."""

NO_RESULT = frozenset(
    "ACQBULK BAR BPT BRA BREAK BRX BRXU BSSY BSYNC CALL CCTL CCTLL CCTLT DEPBAR DSETP ELECT"  # noqa: SIM905
    " ENDCOLLECTIVE ERRBAR EXIT FCHK FENCE FSETP HSETP2 ISETP JMP JMX KILL LDGDEPBAR LDGSTS MEMBAR"
    " NANOSLEEP NOP PLOP3 PREEXIT R2B R2P R2UR RED REDG REDAS REDUX RET S2UR ST STG STL STS STSM"
    " UBLKCP UBLKPF UBLKRED USETMAXREG UTMACCTL UTMACMDFLUSH UTMALDG UTMAPF UTMAREDG UTMASTG"
    " VOTEU WARPGROUP WARPGROUPSET WARPSYNC YIELD".split()
)
"""Instructions that write no general register, whatever stands in their operands."""
RESULT_FIRST = frozenset(
    "ATOM ATOMG ATOMS B2R BMOV BMSK BREV CS2R DADD DFMA DMMA DMNMX DMUL F2F F2FP F2I F2IP FADD"  # noqa: SIM905
    " FFMA FLO FMNMX FMUL FRND FSEL FSET FSWZADD HADD2 HFMA2 HMMA HMNMX2 HMUL2 HSET2 I2F I2FP I2I"
    " I2IP IABS IADD IADD3 IDP IDP4A IMAD IMMA IMNMX ISCADD LD LDC LDG LDL LDS LDSM LEA LEPC LOP3"
    " MATCH MOV MOVM MUFU P2R POPC PRMT QSPC S2R SEL SGXT SHF SHFL SYNCS VABSDIFF VABSDIFF4 VIADD"
    " VIADDMNMX VIMNMX VOTE".split()
)
"""Instructions with one result: the first operand that is no predicate, if it is a register."""
ONE_REGISTER = frozenset({"SHF", "MUFU"})
"""Whose `.U64` or `.RCP64H` names what they read."""
TWO_REGISTERS = frozenset({"DADD", "DFMA", "DMNMX", "DMUL", "LEPC"})
FIXED = {"HMMA": 4, "IMMA": 4, "DMMA": 8, "ATOM": 4, "ATOMG": 4, "ATOMS": 4}

WAIT = "ACQBULK"
"""Waits for the kernel before: `griddepcontrol.wait`; `PREEXIT` lets the next one begin."""
ORDERED = frozenset(
    "ATOM ATOMG EXIT LD LDG LDGSTS PREEXIT RED REDG ST STG UBLKCP UBLKPF UBLKRED UTMALDG UTMAPF"  # noqa: SIM905
    " UTMAREDG UTMASTG".split()
)
"""Instructions of which a wait decides something: what touches memory, and what tells of an end."""

INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z]\w*)([\w.]*)\s*(.*?)\s*;"
)
LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
REGISTER = re.compile(r"^R(\d+)(?:\.\w+)*$")
PREDICATE = re.compile(r"^!?U?P(?:\d+|T)$")
TARGET = re.compile(r"`\(([^)]+)\)")
LISTED = re.compile(r'BRANCH_TARGETS\s+([^"]+)')
COMMA = re.compile(r",\s*(?![^\[(]*[\])])")
SHAPE = re.compile(r"\.\d+x(\d+)x\d+(\.F16)?")

Registers = range
State = Mapping[int, int]
"""Instructions of the matrix unit in flight: groups begun after each, at the least of all paths."""


@dataclass(frozen=True)
class Instruction:
    """One line of machine code: `base` and `rest` of its name, `predicate` '' if it always runs."""

    section: str
    address: str
    predicate: str
    base: str
    rest: str
    operands: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """With the modifiers."""
        return self.base + self.rest

    def __str__(self) -> str:
        return f"{self.address} {self.predicate}{' ' * bool(self.predicate)}{self.name} {self.text}"


@dataclass(frozen=True)
class Hazard:
    """An instruction that writes registers which a matrix product in flight reads or sums into."""

    write: Instruction
    product: Instruction

    def __str__(self) -> str:
        return f"in {self.write.section}, {self.write} writes what {self.product} still reads"


@dataclass
class Code:
    """Instructions of all functions of a binary; `labels` say before which of them they stand."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    entries: list[int] = field(default_factory=list)

    @property
    def products(self) -> list[Instruction]:
        """Those of the warp group's matrix unit."""
        return [one for one in self.instructions if one.base in MATRIX]


def parsed(text: str) -> Code:
    """What `nvdisasm -c` prints. Raises ValueError for a line of code that is not understood."""
    code, section = Code(), ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = found[1]
            code.entries.append(len(code.instructions))
        elif found := LABEL.match(line):
            code.labels[found[1]] = len(code.instructions)
        elif found := INSTRUCTION.match(line):
            address, predicate, base, rest, operands = found.groups()
            code.instructions.append(
                Instruction(
                    section, address, (predicate or "").strip(), base, rest,
                    tuple(COMMA.split(operands)) if operands else (), operands,
                )
            )  # fmt: skip
        elif re.match(r"^\s*/\*[0-9a-f]{4,}\*/\s+\S", line):
            raise ValueError(f"machine code that is not understood: {line.strip()}")
    return code


def written(one: Instruction) -> list[Registers]:
    """The general registers that it may write; of a product in flight, those of its sum."""
    if one.base in MATRIX:
        return [_sum(one)]
    if one.base in NO_RESULT:
        return []
    if one.base not in RESULT_FIRST:
        width = max(WIDEST, _width(one))
        return [_registers(part, width) for part in one.operands if REGISTER.match(part)]
    first = next((part for part in one.operands if not PREDICATE.match(part)), "")
    return [_registers(first, _width(one))] if REGISTER.match(first) else []


def _registers(operand: str, width: int) -> Registers:
    found = REGISTER.match(operand)
    return range(int(found[1]), int(found[1]) + width) if found else range(0)


def _width(one: Instruction) -> int:
    """How many registers its result takes, rather more than fewer."""
    parts = one.rest.split(".")
    if one.base in FIXED:
        return FIXED[one.base]
    if one.base in ONE_REGISTER:
        return 1
    if one.base == "CS2R":
        return 1 if "32" in parts else 2
    if one.base == "LDSM":
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    for bits, width in (("256", 8), ("128", 4), ("96", 4)):
        if bits in parts:
            return width
    double = one.base in TWO_REGISTERS or "WIDE" in parts
    return 2 if double or any(part.endswith("64") for part in parts) else 1


def _sum(product: Instruction) -> Registers:
    """Where it adds up: of M x N x K a thread has N / 2 float32 or N / 4 pairs of float16."""
    shape = SHAPE.match(product.rest)
    columns = int(shape[1]) if shape else 256
    return _registers(product.operands[0], columns // (4 if shape and shape[2] else 2))


def read(product: Instruction) -> list[Registers]:
    """What a product in flight reads from registers besides its sum: its left operand, if there."""
    own = {product.operands[0], "RZ"}
    return [
        _registers(part, OPERAND_REGISTERS)
        for part in product.operands[1:]
        if REGISTER.match(part) and part not in own
    ]


def hazards(code: Code) -> list[Hazard]:
    """Every write to what the matrix unit still uses, on any path; in the order of the code."""
    if not code.products:
        return []
    found = []
    for at, state in sorted(in_flight(code).items()):
        one = code.instructions[at]
        for registers in written(one):
            for other in sorted(state):
                product = code.instructions[other]
                used = read(product) if one.base in MATRIX else [*read(product), _sum(product)]
                if any(_overlap(registers, those) for those in used):
                    found.append(Hazard(one, product))
    return list(dict.fromkeys(found))


def _overlap(a: Registers, b: Registers) -> bool:
    return a.start < b.stop and b.start < a.stop


def in_flight(code: Code) -> dict[int, State]:
    """What is in flight before each instruction that can be reached: the least fixed point."""
    states: dict[int, State] = {entry: {} for entry in code.entries or [0]}
    work = list(states)
    ways = _Ways(code)
    while work:
        at = work.pop()
        after = _after(at, code.instructions[at], states[at])
        for following in ways.after(at):
            if following >= len(code.instructions):
                continue
            joined = _joined(states.get(following), after)
            if joined is not None:
                states[following] = joined
                work.append(following)
    return states


def _joined(known: State | None, more: State) -> State | None:
    """The younger age of each, since that one flies longer; None where nothing is new."""
    if known is None:
        return more
    if known is more or all(known.get(key, OLDEST + 1) <= age for key, age in more.items()):
        return None
    joined = dict(known)
    for key, age in more.items():
        joined[key] = min(age, joined.get(key, age))
    return joined


def _after(at: int, one: Instruction, state: State) -> State:
    """What is in flight behind an instruction; one with a predicate may not have run."""
    if one.base in MATRIX:
        after: dict[int, int] = {**state, at: 0}
        if any(part.startswith("gsb") for part in one.operands):
            after = {key: min(age + 1, OLDEST) for key, age in after.items()}
    elif one.name == "WARPGROUP.DEPBAR.LE" and one.operands[0] == "gsb0":
        newest = int(one.operands[1], 0)
        after = {key: age for key, age in state.items() if age <= newest}
    else:
        return state
    if one.predicate:
        return _joined(state, after) or state
    return after


def before_wait(code: Code) -> list[Instruction]:
    """Those of ORDERED that some path reaches before it has waited for the kernel before."""
    ways = _Ways(code)
    work = list(code.entries or [0])
    seen = set(work)
    while work:
        at = work.pop()
        one = code.instructions[at]
        if one.base == WAIT and not one.predicate:
            continue
        new = {way for way in ways.after(at) if way < len(code.instructions)} - seen
        seen |= new
        work += new
    reached = (code.instructions[at] for at in sorted(seen))
    return [one for one in reached if one.base in ORDERED]


class _Ways:
    """Which instructions may follow each."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.calls = [i + 1 for i, one in enumerate(code.instructions) if one.base == "CALL"]
        self.meetings: dict[tuple[str, str], set[int]] = {}
        for one in code.instructions:
            if one.base == "BSSY":
                place = (one.section, one.operands[0])
                self.meetings.setdefault(place, set()).update(self._targets(one))

    def after(self, at: int) -> set[int]:
        """Indices; one past the last instruction is the end."""
        one = self.code.instructions[at]
        following = set(self._jumps(one))
        if one.predicate or not _leaves(one):
            following.add(at + 1)
        return following

    def _jumps(self, one: Instruction) -> Iterator[int]:
        if one.base == "RET":
            yield from self.calls
        elif one.base == "BSYNC":
            yield from self.meetings.get((one.section, one.operands[0]), ())
        elif one.base != "BSSY":  # which only says where BSYNC goes on
            yield from self._targets(one)

    def _targets(self, one: Instruction) -> Sequence[int]:
        """Where its labels are; of an indirect jump without a list, every label."""
        listed = LISTED.search(one.text)
        names = listed[1].split(",") if listed else TARGET.findall(one.text)
        if not names and one.base in ("BRA", "BRX", "BRXU", "JMP", "JMX", "CALL"):
            return sorted({*self.code.labels.values()})
        return [self._place(one, name.strip()) for name in names]

    def _place(self, one: Instruction, label: str) -> int:
        if label not in self.code.labels:
            raise ValueError(f"machine code jumps to a label that is not there: {one}")
        return self.code.labels[label]


def _leaves(one: Instruction) -> bool:
    """Whether it never goes on to the next instruction, its predicate aside."""
    if one.base in ("BRA", "JMP"):
        return not any(PREDICATE.match(part) for part in one.operands) and one.rest in ("", ".U")
    return one.base in ("BRX", "BRXU", "JMX", "EXIT", "RET", "KILL")
