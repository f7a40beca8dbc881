"""What of a secret decides a jump, an address or a division in x86-64 code, as LLVM prints it.

The code is followed instruction by instruction: which registers, flags and bytes of the stack hold something that was
loaded, or that was computed from it. Whatever is loaded counts as secret, but for what the stack holds; whatever a
function is given is secret where its caller says so. An instruction whose effect is not known here is an error, and so
is a stack that cannot be followed: nothing is passed over. One thing is taken for granted: an address of a variable on
the stack is that of its first byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Function", "Shown", "secrets_shown"]

Place = str | tuple[str, int]
State = frozenset[Place]
"""The places that hold something secret."""

_GIVEN = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{k}" for k in range(8, 16)))
_CLOBBERED = ("rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
_FILLING = ("memset", "memcpy", "memmove")
_COUNTING = ("NRT_incref", "NRT_decref")  # numba's, of who holds an array
_CARRY, _OTHERS = "carry", "other flags"
_FLAGS = (_CARRY, _OTHERS)

_OF_CARRY = re.compile(r"(?:j|set|cmov)(?:n?[abc]e?)[bwlq]?$")
_OF_OTHERS = re.compile(r"(?:j|set|cmov)(?:n?(?:a|be|[lgezsop]|ge|le|p[eo]))[bwlq]?$")
_KEEPS_FLAGS = re.compile(r"mov(?:abs|[sz][bwl])?[bwlq]|lea[lq]|(?:shl|shr|sar|ror)x[lq]|bswap[lq]|p(?:ext|dep)[lq]")
_SETS_FLAGS = re.compile(r"andn[lq]|bzhi[lq]|bls(?:r|i|msk)[lq]|bextr[lq]|(?:lzcnt|tzcnt|popcnt)[wlq]")
_OPERATES = re.compile(r"(?:add|sub|and|or|xor|neg|inc|dec|adc|sbb|sh[lr]d?|sar|rol|ror|not)[bwlq]")
_ACCUMULATES = re.compile(r"vpmadd52|vpdp|vfn?m|vpternlog|vperm[it]2|v\w*gather")
_VECTOR_BYTES = (
    (r"v(?:movd|pextrd|pinsrd|pbroadcastd)$", 4),
    (r"v(?:movq|pextrq|pinsrq|pbroadcastq|movsd|mov[hl]pd)$", 8),
    (r"v(?:extract|insert|broadcast)[fi](?:128|32x4|64x2)$", 16),
    (r"v(?:extract|insert|broadcast)[fi](?:32x8|64x4)$", 32),
)


class Function(NamedTuple):
    """A function's code.

    Attributes:
        body: Its lines.
        secret: Which of the words that it is given are secret.
        ours: Names of functions that are followed like this one, and return nothing secret.
        room: Bytes of the largest variable that it keeps on the stack.
    """

    body: str
    secret: list[bool]
    ours: frozenset[str]
    room: int


class _Memory(NamedTuple):
    offset: int
    base: str
    index: str


class _At(NamedTuple):
    """Before an instruction: what is secret, and where the stack's and the frame's pointer point."""

    secret: State
    stack: tuple[str, int]
    frame: tuple[str, int] | None


class Shown(NamedTuple):
    """Instructions.

    Attributes:
        decided: That jump or divide by something secret, or fill so many bytes.
        addressed: Whose address in memory follows from something secret.
    """

    decided: list[str]
    addressed: list[str]


def secrets_shown(function: Function) -> Shown:
    """By the code of one function."""
    lines = _lines(function.body)
    labels = {line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")}
    given = {
        place
        for k, secret in enumerate(function.secret)
        if secret
        for place in (_halves(_GIVEN[k]) if k < 6 else _bytes(("entry", 8 + 8 * (k - 6)), 8))
    }
    start = _At(frozenset(given | {_anywhere(name) for name in _GENERAL}), ("entry", 0), None)
    walk, escaped = _Walk(function, lines), None
    while escaped != len(walk.escaped):
        escaped = len(walk.escaped)
        _follow(walk, start, labels)
    return Shown([lines[place] for place in sorted(walk.decided)], [lines[place] for place in sorted(walk.addressed)])


def _follow(walk: _Walk, start: _At, labels: dict[str, int]) -> None:
    known, waiting = {0: start}, [0]
    while waiting:
        place = waiting.pop()
        after = walk.after(place, known[place])
        for target in _targets(walk.lines[place], place, labels):
            before = known.get(target)
            joined = after if before is None else _joined(before, after)
            if joined != before:
                known[target] = joined
                waiting.append(target)


def _lines(body: str) -> list[str]:
    stripped = (re.sub(r"\s+", " ", line.split("#")[0]).strip() for line in body.splitlines())
    return [line for line in stripped if line and (not line.startswith(".") or line.endswith(":"))]


def _targets(line: str, place: int, labels: dict[str, int]) -> Iterator[int]:
    name, _, rest = line.partition(" ")
    if name.startswith("j"):
        if rest not in labels:
            raise AssertionError(f"a jump that is not followed: {line}")
        yield labels[rest]
    if not re.match(r"jmp|ret|ud2", name):
        yield place + 1


def _joined(one: _At, other: _At) -> _At:
    if one.stack != other.stack:
        raise AssertionError("the stack's pointer is not followed")
    return _At(one.secret | other.secret, one.stack, one.frame if one.frame == other.frame else None)


def _halves(register: str) -> tuple[str, str]:
    return f"{register} low", f"{register} rest"


def _anywhere(register: str) -> str:
    """In a state unless the register is known to point to constants."""
    return f"{register} anywhere"


def _bytes(start: tuple[str, int], count: int) -> set[Place]:
    base, offset = start
    return {(base, offset + k) for k in range(count)}


class _Walk:
    """Through one function.

    Attributes:
        decided, addressed: The places of its lines that show a secret.
        escaped: Bytes of the stack whose address something has: other functions, or stores, may change them.
    """

    def __init__(self, function: Function, lines: list[str]) -> None:
        self.function, self.lines = function, lines
        self.decided: set[int] = set()
        self.addressed: set[int] = set()
        self.escaped: set[Place] = set()

    def after(self, place: int, at: _At) -> _At:
        return at if self.lines[place].endswith(":") else _Step(self, place, at).taken()


class _Step:
    """Of one instruction."""

    def __init__(self, walk: _Walk, place: int, at: _At) -> None:
        self._walk, self._place, self._line = walk, place, walk.lines[place]
        self._secret, (self._stack, self._frame) = set(at.secret), at[1:]
        line = self._line
        name, _, rest = line.partition(" ")
        self._name = name
        self._masked = re.search(r"\{%k\d\}(?! ?\{z\})", rest) is not None
        self._masks = re.findall(r"\{%(k\d)\}", rest)
        plain = re.sub(r" ?\{[^}]*\}", "", rest)
        self._operands = re.findall(r"(?:[^,(]|\([^)]*\))+", plain.replace(" ", ""))

    def taken(self) -> _At:
        if not self._name.startswith(("lea", "nop")) and any(map(self._addressed, self._operands)):
            self._walk.addressed.add(self._place)
        self._act()
        return _At(frozenset(self._secret), self._stack, self._frame)

    def _act(self) -> None:
        name, operands = self._name, self._operands
        if name in ("jmp", "nop", "nopl", "nopw", "vzeroupper", "ud2", "retq", "ret", "data16"):
            return
        if name.startswith("j"):
            if self._flags():
                self._decide()
        elif name.startswith("call"):
            self._call()
        elif self._moves_pointers():
            return
        elif name == "pushq":
            self._stack = self._stack[0], self._stack[1] - 8
            self._mark(_bytes(self._stack, 8), self._of(operands[0]))
        elif name == "popq":
            self._write(operands[0], any(byte in self._secret for byte in _bytes(self._stack, 8)))
            self._stack = self._stack[0], self._stack[1] + 8
        elif name.startswith("set"):
            self._write(operands[0], self._flags())
        elif name.startswith("cmov"):
            self._write(operands[1], self._of(*operands) or self._flags())
        elif re.fullmatch(r"(?:cmp|test)[bwlq]", name):
            self._mark(_FLAGS, self._of(*operands))
        elif re.fullmatch(r"bt[wlq]", name):
            self._mark([_CARRY], self._of(*operands))
        elif re.fullmatch(r"i?(?:mul|div)[bwlq]|mulx[lq]|cqto|cltd|cltq", name):
            self._widen()
        elif _KEEPS_FLAGS.fullmatch(name):
            found = self._addressed(operands[0]) if name.startswith("lea") else self._of(*operands[:-1])
            self._write(operands[-1], found)
            if name == "movabsq" and operands[0].startswith("$.LC"):
                self._secret.discard(_anywhere(_whole(operands[1][1:])[0]))
        elif _SETS_FLAGS.fullmatch(name):
            found = self._of(*operands[:-1])
            self._write(operands[-1], found)
            self._mark(_FLAGS, found)
        elif _OPERATES.fullmatch(name):
            self._operate()
        elif re.match(r"k\w*test|vp?test|vu?comis", name):
            self._mark(_FLAGS, self._of(*operands))
        elif re.match(r"v|k[a-z]+[bwdq]$", name):
            self._move_vectors()
        else:
            raise AssertionError(f"an instruction that is not known here: {self._line}")

    # ---- kinds of instructions ---------------------------------------------------------------------------

    def _call(self) -> None:
        """Only of functions that are followed too, and of those that copy or count, given nothing secret but bytes."""
        register = self._operands[0].lstrip("*%")
        body = "\n".join(self._walk.lines)
        named = re.findall(rf"movabsq \$([\w.]+), %{register}$", body, re.MULTILINE)
        called = [name for name in named or re.findall(r"movabsq \$([\w.]+),", body) if not name.startswith(".L")]
        if not self._operands[0].startswith("*"):
            called = [self._operands[0].split("@")[0]]
        if not called or not set(called) <= {*self._walk.function.ours, *_FILLING, *_COUNTING}:
            raise AssertionError(f"a call that is not followed: {self._line} {called}")
        if set(called) & set(_FILLING) and (self._register("rdi") or self._register("rdx")):
            self._decide()
        self._mark([half for name in _CLOBBERED for half in _halves(name)], True)
        self._mark([f"v{k}" for k in range(32)] + [f"k{k}" for k in range(8)] + [*_FLAGS], True)
        self._mark(_halves("rax"), False)
        self._mark(self._walk.escaped, True)

    def _moves_pointers(self) -> bool:
        """Whether it changes the stack's or the frame's pointer, or takes an address of the stack."""
        name, operands = self._name, self._operands
        last = operands[-1] if operands else ""
        if last == "%rsp":
            if name in ("addq", "subq") and operands[0].startswith("$"):
                step = int(operands[0][1:], 0)
                self._stack = self._stack[0], self._stack[1] + (step if name == "addq" else -step)
                self._mark(_FLAGS, False)
            elif name == "andq" and self._frame:
                self._stack = ("aligned", 0)
            elif self._frame and (memory := self._memory(operands[0])) and memory.base == "rbp" and not memory.index:
                self._stack = self._frame[0], self._frame[1] + memory.offset
            elif name == "movq" and operands[0] == "%rbp" and self._frame:
                self._stack = self._frame
            else:
                raise AssertionError(f"the stack's pointer is not followed: {self._line}")
            return True
        if name == "movq" and operands == ["%rsp", "%rbp"]:
            self._frame = self._stack
            return True
        if last == "%rbp":
            self._frame = None
        if name == "leaq" and (start := self._slot(operands[0])) is not None:
            base, offset = start
            self._walk.escaped |= _bytes((base, offset), self._walk.function.room)
            self._mark(self._walk.escaped, True)
            self._write(last, False)
            return True
        if "%rsp" in operands:
            raise AssertionError(f"the stack's pointer is not followed: {self._line}")
        return False

    def _widen(self) -> None:
        """Products and quotients, of which some have two results."""
        name, operands = self._name, self._operands
        if name in ("cqto", "cltd"):
            self._mark(_halves("rdx"), self._register("rax"))
        elif name.startswith("mulx"):
            found = self._of(operands[0]) or self._register("rdx")
            self._write(operands[1], found)
            self._write(operands[2], found)
        elif len(operands) == 1:
            found = self._of(operands[0]) or self._register("rax")
            if "div" in name:
                found = found or self._register("rdx")
                if found:
                    self._decide()
            self._mark([*_halves("rax"), *_halves("rdx"), *_FLAGS], found)
        elif operands:
            found = self._of(*(operands if len(operands) == 2 else operands[:-1]))
            self._write(operands[-1], found)
            self._mark(_FLAGS, found)

    def _operate(self) -> None:
        name, operands = self._name, self._operands
        same = len(operands) == 2 and operands[0] == operands[1]
        found = self._of(*operands) and not (same and re.match(r"xor|sub|sbb", name))
        found = found or (bool(re.match(r"adc|sbb", name)) and _CARRY in self._secret)
        self._write(operands[-1], found)
        if name.startswith(("inc", "dec")):
            self._mark([_OTHERS], found)
        elif name.startswith("ro") or (re.match("sh|sa", name) and operands[0] == "%cl"):
            self._mark(_FLAGS if found else (), True)  # those that stay as they were may be secret already
        elif not name.startswith("not"):
            self._mark(_FLAGS, found)

    def _move_vectors(self) -> None:
        *sources, last = self._operands
        same = len(sources) == 2 and sources[0] == sources[1] and re.match(r"v?p?xor|kx|vpcmpeq|vpsub", self._name)
        found = (self._of(*sources) and not same) or any(mask in self._secret for mask in self._masks)
        merges = self._masked or _ACCUMULATES.match(self._name)
        self._write(last, found or (bool(merges) and self._of(last)))

    # ---- operands ----------------------------------------------------------------------------------------

    def _of(self, *operands: str) -> bool:
        """Whether any of what they hold is secret."""
        return any(self._holds(operand) for operand in operands)

    def _holds(self, operand: str) -> bool:
        if operand.startswith("$"):
            return False
        if operand.startswith("%"):
            return self._register(operand[1:])
        start = self._slot(operand)
        if start is not None:
            return any(byte in self._secret for byte in _bytes(start, self._width() or 64))
        memory = self._memory(operand)
        at_constants = memory and not memory.index and memory.base and _anywhere(memory.base) not in self._secret
        return not (at_constants or re.fullmatch(r"\.LC\w*\(%rip\)", operand))

    def _register(self, name: str) -> bool:
        whole, part = _whole(name)
        if whole[0] in "vk" or whole in ("rsp", "rip"):
            return whole in self._secret
        low, rest = _halves(whole)
        return {"low": low in self._secret, "high": rest in self._secret}.get(
            part, low in self._secret or rest in self._secret
        )

    def _write(self, operand: str, secret: bool) -> None:
        if operand.startswith("%"):
            whole, part = _whole(operand[1:])
            low, rest = _halves(whole)
            if whole[0] in "vk":
                self._mark([whole], secret)
            elif part == "low":
                self._mark([low], secret)
            else:
                self._mark([rest], secret or (part in ("high", "word") and rest in self._secret))
                if part != "high":
                    self._mark([low], secret)
            return
        start = self._slot(operand)
        if start is None:
            self._mark(self._walk.escaped, True)
        elif width := self._width():
            self._mark(_bytes(start, width), secret)
        elif secret:
            self._mark(_bytes(start, 64), True)

    def _flags(self) -> bool:
        reads = [
            flag
            for flag, pattern in ((_CARRY, _OF_CARRY), (_OTHERS, _OF_OTHERS))
            if pattern.match(self._name) and flag in self._secret
        ]
        if not (_OF_CARRY.match(self._name) or _OF_OTHERS.match(self._name)):
            raise AssertionError(f"a condition that is not known here: {self._line}")
        return bool(reads)

    def _width(self) -> int:
        """Bytes of the operand in memory, or 0 where that is not known."""
        name = self._name
        if name.startswith("v"):
            named = next((width for pattern, width in _VECTOR_BYTES if re.match(pattern, name)), 0)
            whole = re.match(r"vmov(?:[au]p[sd]|dq[au]|nt)|vp?(?:add|sub|and|or|xor|mul)", name)
            return named or (max(map(_register_bytes, self._operands)) if whole and not self._masked else 0)
        if name.startswith("set"):
            return 1
        suffix = name[-2] if re.match(r"mov[sz][bwl][wlq]", name) else name[-1]
        return {"b": 1, "w": 2, "l": 4, "d": 4, "q": 8}.get(suffix, 0)

    def _memory(self, operand: str) -> _Memory | None:
        found = re.fullmatch(r"(?:%fs:)?([\w.$+-]*)\((?:%(\w+))?(?:,%(\w+)(?:,\d)?)?\)", operand)
        if found is None:
            return None
        offset = int(found[1], 0) if re.fullmatch(r"-?\w+", found[1]) and found[1].lstrip("-")[0].isdigit() else 0
        return _Memory(offset, found[2] or "", found[3] or "")

    def _slot(self, operand: str) -> tuple[str, int] | None:
        """Where on the stack."""
        memory = self._memory(operand)
        pointers = {"rsp": self._stack, "rbp": self._frame}
        pointer = pointers.get(memory.base) if memory else None
        if memory is None or pointer is None:
            return None
        if memory.index:
            raise AssertionError(f"an array on the stack, which is not followed: {self._line}")
        return pointer[0], pointer[1] + memory.offset

    def _addressed(self, operand: str) -> bool:
        memory = self._memory(operand)
        return memory is not None and any(self._register(name) for name in memory[1:] if name)

    def _mark(self, places: Iterable[Place], secret: bool) -> None:
        for place in places:
            (self._secret.add if secret else self._secret.discard)(place)
            if isinstance(place, str) and place.endswith(" low"):
                self._secret.add(_anywhere(place.removesuffix(" low")))

    def _decide(self) -> None:
        self._walk.decided.add(self._place)


def _whole(name: str) -> tuple[str, str]:
    """The register that a name is part of, and which part."""
    if found := re.fullmatch(r"[xyz]mm(\d+)", name):
        return f"v{found[1]}", "all"
    if found := re.fullmatch(r"(r\d+)([bwd]?)", name):
        return found[1], {"b": "low", "w": "word"}.get(found[2], "all")
    if found := re.fullmatch(r"([abcd])([lh])", name):
        return f"r{found[1]}x", "low" if found[2] == "l" else "high"
    if found := re.fullmatch(r"(si|di|bp|sp)l", name):
        return f"r{found[1]}", "low"
    if found := re.fullmatch(r"([re]?)([abcd]x|si|di|bp|sp)", name):
        return f"r{found[2]}", "all" if found[1] else "word"
    if name == "rip" or re.fullmatch(r"k\d", name):
        return name, "all"
    raise AssertionError(f"a register that is not known here: {name}")


def _register_bytes(operand: str) -> int:
    return {"%x": 16, "%y": 32, "%z": 64}.get(operand[:2], 0)
