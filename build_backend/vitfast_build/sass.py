"""SASS, the machine code of NVIDIA GPUs, as cuobjdump prints it: its loops, and what one warp spends in each.

Throughputs per multiprocessor and cycle are those of NVIDIA's CUDA C++ Programming Guide and architecture papers.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?PT?\w*\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"\bR(\d+)\b")
_ADDRESS = re.compile(r"\b0x([0-9a-f]+)\b")

EARLY = 6  # instructions between a load and its first use that hide none of its latency
_WAITING = 6  # instructions of a loop that polls a barrier
_BYTES_OF_WARP = 32
_SHARED_BYTES_PER_CYCLE = 128  # of a multiprocessor
_SPECIAL_CYCLES = 8  # of MUFU and conversions: a quarter of a multiprocessor has four lanes
# Multiply-adds per cycle of a quarter of a multiprocessor, for fp16 and bf16. mma.sync reaches 62 % of wgmma's rate on
# compute capability 9.0.
_TENSOR_RATES = {"sm_80": 256.0, "sm_90a": 512.0 * 0.62}
_WGMMA_RATE = 512.0


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``operands`` is its text after the opcode."""

    address: int
    predicated: bool
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def is_conditional(self) -> bool:
        """Whether a predicate decides if it is executed: before the opcode, or the first operand of a branch."""
        return self.predicated or re.match(r"!?U?P\d", self.operands) is not None

    @property
    def width(self) -> int:
        """Bytes that one thread loads or stores."""
        parts = self.opcode.split(".")
        if self.name in ("LDSM", "STSM"):
            return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
        return next((size for text, size in _WIDTHS.items() if text in parts), 4)

    @property
    def loaded(self) -> range:
        """Registers that a load from global or shared memory writes."""
        register = _REGISTER.match(self.operands)
        if self.name not in ("LDG", "LDS", "LDSM") or register is None:
            return range(0)
        first = int(register[1])
        return range(first, first + max(1, self.width // 4))

    def reads(self, registers: range) -> bool:
        """Whether a source operand names one of ``registers``."""
        writes = self.name not in ("STG", "STS", "STSM", "ST", "RED", "BRA", "HGMMA")
        sources = self.operands.partition(",")[2] if writes else self.operands
        return any(int(register) in registers for register in _REGISTER.findall(sources))


_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass
class Cost:
    """What one warp spends in one iteration; cycles are those that a resource is busy."""

    issue: int = 0  # instructions: one per cycle of a quarter of a multiprocessor
    tensor_cycles: float = 0.0  # of a quarter's tensor core
    shared_cycles: int = 0  # of the multiprocessor's shared memory, without bank conflicts
    special_cycles: int = 0  # of a quarter's special-function unit
    global_bytes: int = 0  # loaded and stored, without TMA
    early_global_loads: int = 0  # loads used within EARLY instructions
    early_shared_loads: int = 0

    def add(self, code: list[Instruction], place: int, architecture: str) -> None:
        """Adds the instruction at ``place``."""
        instruction = code[place]
        name = instruction.name
        self.issue += 1
        self.tensor_cycles = round(self.tensor_cycles + _tensor_cycles(instruction.opcode, architecture), 1)
        moved = _BYTES_OF_WARP * instruction.width
        if name in ("LDS", "STS", "LDSM", "STSM", "LDGSTS"):
            self.shared_cycles += max(1, moved // _SHARED_BYTES_PER_CYCLE)
        if name in ("LDG", "STG", "LDGSTS", "RED"):
            self.global_bytes += moved
        if name in ("MUFU", "F2F", "F2I", "I2F"):
            self.special_cycles += _SPECIAL_CYCLES
        if instruction.loaded and any(later.reads(instruction.loaded) for later in code[place + 1 : place + 1 + EARLY]):
            self.early_global_loads += name == "LDG"
            self.early_shared_loads += name != "LDG"

    def as_dict(self) -> dict[str, float]:
        """Its numbers that are not zero."""
        return {name: value for name, value in asdict(self).items() if value}


def parse_sass(text: str) -> dict[str, list[Instruction]]:
    """Reads the output of ``cuobjdump -sass``: the instructions of each function by its mangled name."""
    parts = _FUNCTION.split(text)
    return {
        name: [
            Instruction(int(address, 16), bool(predicate), opcode, operands.strip())
            for address, predicate, opcode, operands in _INSTRUCTION.findall(body)
        ]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def costs_by_loop(code: list[Instruction], architecture: str) -> dict[str, Cost]:
    """Costs of one iteration of each loop, without the loops inside it.

    Returns:
        ``"0"``: the code outside of loops; ``"2"``: the second loop; ``"2.1"``: the first loop inside it. Code that
        only diverged warps and subroutines execute is left out, and so are loops that only wait for a barrier.
    """
    blocks = _Blocks(code)
    loops = blocks.loops()
    names = _nested_names(loops)
    costs = {name: Cost() for name in ["0", *names.values()]}
    for block in sorted(blocks.reachable):
        inside = [header for header, body in loops.items() if block in body]
        cost = costs[names[min(inside, key=lambda header: len(loops[header]))] if inside else "0"]
        for place in range(block, blocks.ends[block]):
            cost.add(code, place, architecture)
    return {name: cost for name, cost in costs.items() if cost.issue > _WAITING or len(cost.as_dict()) > 1}


def _tensor_cycles(opcode: str, architecture: str) -> float:
    wgmma = re.match(r"HGMMA\.64x(\d+)x(\d+)", opcode)
    if wgmma:
        return 16 * int(wgmma[1]) * int(wgmma[2]) / _WGMMA_RATE
    return 16 * 8 * 16 / _TENSOR_RATES[architecture] if opcode.startswith("HMMA.16816") else 0.0


class _Blocks:
    """Basic blocks of a function: the index of the first instruction stands for a block."""

    def __init__(self, code: list[Instruction]) -> None:
        index = {instruction.address: place for place, instruction in enumerate(code)}
        targets: dict[int, list[int]] = {}  # by the place of the last instruction of a block
        for place, instruction in enumerate(code):
            if instruction.name not in ("BRA", "EXIT", "RET", "BRX"):
                continue
            found = _ADDRESS.search(instruction.operands)
            follows = [place + 1] if instruction.is_conditional else []
            # BRA.DIV leads to the code for diverged warps
            if instruction.opcode.startswith("BRA.DIV"):
                targets[place] = [place + 1]
            elif instruction.name == "BRA" and found:
                targets[place] = [index[int(found[1], 16)], *follows]
            else:
                targets[place] = follows
        leaders = sorted({0, *(place + 1 for place in targets), *(to for all_ in targets.values() for to in all_)})
        leaders = [place for place in leaders if place < len(code)]
        self.ends = dict(zip(leaders, [*leaders[1:], len(code)], strict=True))
        self._next = {
            leader: [to for to in targets.get(end - 1, [end]) if to < len(code)] for leader, end in self.ends.items()
        }
        self.reachable = self._reached_from(0, without=None)

    def _reached_from(self, start: int, *, without: int | None) -> set[int]:
        found, waiting = set(), [start]
        while waiting:
            block = waiting.pop()
            if block in found or block == without:
                continue
            found.add(block)
            waiting += self._next[block]
        return found

    def loops(self) -> dict[int, set[int]]:
        """Natural loops: the blocks of each, by the header that dominates the block which branches back to it."""
        before: dict[int, set[int]] = {block: set() for block in self.ends}
        for block in self.reachable:
            for to in self._next[block]:
                before[to].add(block)
        loops: dict[int, set[int]] = {}
        for header in sorted(self.reachable):
            sources = {block for block in before[header] if block >= header}
            if header:
                sources -= self._reached_from(0, without=header)
            waiting = sorted(sources)
            body = {header} if sources else set()
            while waiting:
                block = waiting.pop()
                if block not in body:
                    body.add(block)
                    waiting += before[block]
            # an unconditional branch to itself is the padding after the last instruction
            if body and (len(body) > 1 or self.ends[header] - header > 1):
                loops[header] = body
        return loops


def _nested_names(loops: dict[int, set[int]], inside: set[int] | None = None, prefix: str = "") -> dict[int, str]:
    """Numbers the loops of each level by address."""
    headers = set(loops) if inside is None else inside
    outermost = sorted(h for h in headers if not any(h in loops[other] for other in headers if other != h))
    names: dict[int, str] = {}
    for number, header in enumerate(outermost, start=1):
        names[header] = f"{prefix}{number}"
        inner = {other for other in headers if other != header and other in loops[header]}
        names |= _nested_names(loops, inner, f"{names[header]}.")
    return names
