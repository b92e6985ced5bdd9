"""PTX text as kernels, each a list of instructions that know their line."""

import re
from dataclasses import dataclass, field

from .fault import Fault

BYTES = {"pred": 1} | {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Instruction:
    """One line of a kernel."""

    line: int
    text: str
    guard: str | None  # a predicate register
    guard_negated: bool
    opcode: str  # with all its modifiers
    operands: list[str]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, at its place among the bytes of all of them."""

    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    """One entry of a module."""

    name: str
    parameters: list[Parameter]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the index of an instruction
    register_types: dict[str, str] = field(default_factory=dict)  # of a prefix, or of one register
    shared: dict[str, tuple[int, int | None]] = field(default_factory=dict)  # alignment, bytes


def parse(text):
    """Return {name: function that returns the Kernel} for each entry of a module.

    A module has kernels by the dozen and a launch takes one: each is parsed when it is asked for.
    """
    lines = text.splitlines()
    shared, starts = {}, []
    for number, line in enumerate(lines):
        if variable := _shared_variable(line) if line[:1] == "." else None:
            shared |= variable
        elif line.startswith((".entry", ".visible .entry")):
            starts.append(number)
        elif re.match(r"\.(visible |weak )*(func|global|const)\b", line):
            raise Fault(f"line {number + 1}: unsupported: {line}")
    ends = [lines.index("}", start) for start in starts]
    names = [re.search(r"\.entry (\w+)", lines[start])[1] for start in starts]
    return {
        name: lambda start=start, end=end, name=name: _parse_kernel(name, lines, start, end, shared)
        for name, start, end in zip(names, starts, ends, strict=True)
    }


def split_operands(text):
    """Operands between commas that stand in no brackets."""
    return [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text)] if text else []


def _parse_kernel(name, lines, start, end, module_shared):
    begin = lines.index("{", start)
    kernel = Kernel(name, _parameters("\n".join(lines[start:begin])))
    body = _Body(kernel)
    for number in range(begin + 1, end):
        line = re.sub(r"//.*", "", lines[number]).strip()
        if line:
            body.add(line, number + 1)
    used = "\n".join(lines[begin:end])
    kernel.shared = {
        variable: place for variable, place in module_shared.items() if variable in used
    } | kernel.shared
    return kernel


def _parameters(head):
    parameters, offset = [], 0
    pattern = r"\.param (?:\.align (\d+) )?\.(\w+) (\w+)(?:\[(\d+)\])?"
    for alignment, kind, name, count in re.findall(pattern, head):
        size = BYTES[kind] * int(count or 1)
        step = int(alignment or BYTES[kind])
        offset = -(-offset // step) * step
        parameters.append(Parameter(name, offset, size))
        offset += size
    return parameters


def _shared_variable(line):
    pattern = r"(?:\.extern )?\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\];"
    found = re.match(pattern, line)
    return {found[2]: (int(found[1]), int(found[3]) if found[3] else None)} if found else None


class _Body:
    """Takes the lines of a kernel's body one by one."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.scopes = []  # of braces: {register: its name outside}
        self.count = 0

    def add(self, line, number):
        if line == "{":
            self.scopes.append({})
        elif line == "}":
            self.scopes.pop()
        elif line.endswith(":") and line[0] == "$":
            self.kernel.labels[line[:-1]] = len(self.kernel.instructions)
        elif line.startswith(".reg "):
            self._declare(line)
        elif line.startswith(".shared "):
            self.kernel.shared |= _shared_variable(line)
        elif line.startswith(".pragma "):
            pass
        elif line[0] == "." or line[-1] != ";":
            raise Fault(f"line {number}: unsupported: {line}")
        else:
            for statement in filter(None, line.split(";")):
                self._instruction(statement.strip(), number)

    def _declare(self, line):
        kind, name, is_many = re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)(<\d+>)?;", line).groups()
        if is_many:
            self.kernel.register_types[name] = kind
        else:  # a register of this scope alone, whatever its name means outside
            self.count += 1
            own = f"%scope{self.count}_{name[1:]}"
            self.scopes[-1][name] = own
            self.kernel.register_types[own] = kind

    def _instruction(self, text, number):
        for scope in self.scopes:
            text = re.sub(r"%\w+", lambda found, scope=scope: scope.get(found[0], found[0]), text)
        guard, opcode, operands = re.fullmatch(r"(?:@(!?%\w+)\s+)?(\S+)\s*(.*)", text).groups()
        self.kernel.instructions.append(
            Instruction(
                number,
                " ".join(text.split()),
                guard.lstrip("!") if guard else None,
                bool(guard) and guard[0] == "!",
                opcode,
                split_operands(operands),
            )
        )
