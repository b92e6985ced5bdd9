"""Which function decodes which opcode. One that no pattern matches whole is a fault."""

import re
from functools import cache

from .fault import Fault

_PATTERNS = []


def instruction(pattern, *, collective=False):
    """Register a decoder: (names, modifiers, operands) -> function of (gang, lanes).

    Parameters
    ----------
    pattern
        Of opcodes with all modifiers; its groups are what the decoder gets of them.
    collective
        Whether all lanes of a warp execute it together.
    """

    def register(decoder):
        _PATTERNS.append((re.compile(pattern), decoder, collective))
        return decoder

    return register


@cache
def find(opcode):
    """Decoder of an opcode, its modifiers, and whether it is collective."""
    for pattern, decoder, collective in _PATTERNS:
        if found := pattern.fullmatch(opcode):
            return decoder, found.groups(), collective
    raise Fault(f"unsupported instruction {opcode}")
