"""Changes of the compiler's text, each of which a case must notice.

A mutant is a pattern and what replaces it throughout a kernel file's PTX, the case that then runs,
and what is found: a fault's words, or WRONG_RESULT.
"""

import re
from dataclasses import dataclass

from .cases import BY_NAME
from .fault import Fault

WRONG_RESULT = "AssertionError"
RACE = "data race|uninitialised shared memory"
F, R, P = r"%f\d+", r"%r\d+", r"%p\d+"
MMA = r"(mma\.sync\S*\s+\{[^}]*\}, \{[^}]*\}, )"


@dataclass(frozen=True)
class Mutant:
    """A change, and who finds it."""

    name: str
    case: str
    pattern: str
    replacement: str
    found: str

    def __str__(self):
        return self.name

    @property
    def stem(self):
        return BY_NAME[self.case].stem

    def result(self, interpreter):
        """What the case says: {"error": text, or None where it passes}."""

        def change(text):
            return re.sub(self.pattern, self.replacement, text)

        return {"error": run_changed(interpreter, BY_NAME[self.case], change)}


def run_changed(interpreter, case, change):
    """Run a case on changed PTX; return what it finds, or None."""
    try:
        with interpreter.mutated(case.stem, change):
            case.run(interpreter)
    except (Fault, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class Barriers:
    """Every barrier that a case reaches, removed in turn."""

    case: str

    @property
    def name(self):
        return f"barriers of {self.case}"

    def __str__(self):
        return self.name

    @property
    def stem(self):
        return BY_NAME[self.case].stem

    def result(self, interpreter):
        """{"found": {line: what the case says}}."""
        case = BY_NAME[self.case]
        found = {}
        for line in sorted({line for launch in case.run(interpreter) for line in launch.barriers}):

            def change(text, line=line):
                lines = text.split("\n")
                assert "bar.sync" in lines[line - 1]
                lines[line - 1] = ""
                return "\n".join(lines)

            found[str(line)] = run_changed(interpreter, case, change)
        return {"found": found}


LINEAR, SPLIT = "linear_gelu few bf16", "group_attention_mma split 64 bf16"
MASKED = "masked_attention_mma bools 64 f16"
SELECTION = "token_selection 1000 f16 tied"
MUTANTS = [
    Mutant(
        "halves of a bfloat16 pair swapped", LINEAR,
        rf"(cvt\.rn\.bf16x2\.f32\s+{R}), ({F}), ({F});", r"\1, \3, \2;", WRONG_RESULT,
    ),
    Mutant(
        "halves of a float16 pair swapped", MASKED,
        rf"(cvt\.rn\.f16x2\.f32\s+{R}), ({F}), ({F});", r"\1, \3, \2;", WRONG_RESULT,
    ),
    Mutant(
        "B registers swapped", LINEAR,
        rf"{MMA}\{{({R}), ({R})\}}", r"\1{\3, \2}", WRONG_RESULT,
    ),
    Mutant(
        "B registers swapped in attention", SPLIT,
        rf"{MMA}\{{({R}), ({R})\}}", r"\1{\3, \2}", WRONG_RESULT,
    ),
    Mutant(
        "A registers swapped", LINEAR,
        rf"(mma\.sync\S*\s+\{{[^}}]*\}}, )\{{({R}), ({R}), ", r"\1{\3, \2, ", WRONG_RESULT,
    ),
    Mutant(
        "sums of other elements added", LINEAR,
        rf"(mma\.sync[^;]*\}}), \{{({F}), ({F}), ({F}), ({F})\}};", r"\1, {\3, \2, \4, \5};",
        WRONG_RESULT,
    ),
    Mutant(
        "matrices transposed", LINEAR, r"m8n8\.x4\.shared", "m8n8.x4.trans.shared", WRONG_RESULT
    ),
    Mutant(
        "values not transposed", SPLIT, r"m8n8\.x4\.trans\.shared", "m8n8.x4.shared", WRONG_RESULT
    ),
    Mutant(
        "8 of 16 bytes copied", LINEAR,
        rf"(cp\.async\.cg\S*\s+\[[^]]*\], \[[^]]*\], 16), {R};", r"\1, 8;", WRONG_RESULT,
    ),
    Mutant(
        "rows beyond the end copied, not zeroed", LINEAR,
        rf"(cp\.async\.cg\S*\s+\[[^]]*\], \[[^]]*\], 16), {R};", r"\1, 16;", WRONG_RESULT,
    ),
    Mutant(
        "a wait for one group too few", LINEAR,
        r"cp\.async\.wait_group 4", "cp.async.wait_group 5", "before a wait covers the copy",
    ),
    Mutant(
        "a wait for one group too few in attention", SPLIT,
        r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "before a wait covers the copy",
    ),
    Mutant(
        "a wait for one group too few under a mask", MASKED,
        r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", "before a wait covers the copy",
    ),
    Mutant(
        "copies in no group", LINEAR,
        r"cp\.async\.commit_group;", "", "before a wait covers the copy",
    ),
    Mutant(
        "a request read before its copy landed", SELECTION,
        r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;", "before a wait covers the copy",
    ),
    Mutant(
        "a shuffle with the wrong lane", "add_layer_norm bf16 bf16",
        rf"(shfl\.sync\.bfly\.b32\s+{R}\|{P}, {R}), 1,", r"\1, 2,", WRONG_RESULT,
    ),
    Mutant(
        "a sum from the lane above", SELECTION,
        r"shfl\.sync\.up", "shfl.sync.down", WRONG_RESULT,
    ),
    Mutant(
        "NaN not seen by a maximum", SELECTION, r"max\.NaN\.f32", "max.f32", WRONG_RESULT
    ),
    Mutant(
        "random bits joined by or", "group_order 5x7 13 known", r"xor\.b32", "or.b32", WRONG_RESULT
    ),
    Mutant(
        "votes of all for votes of any", "masked_attention_mma infinite f16",
        r"vote\.sync\.any", "vote.sync.all", WRONG_RESULT,
    ),
    Mutant(
        "rows of another block", "group_embedding f32", r"mov\.u32(\s+%r\d+), %ctaid\.x",
        r"mov.u32\1, %nctaid.x", "out of bounds|uninitialised|AssertionError|misaligned",
    ),
    Mutant(
        "results stored 16 bytes on", "bias_gelu bf16 1032",
        r"(st\.global\.cg\.v4\.u32\s+\[%rd\d+)\]", r"\1+16]", "out of bounds|AssertionError",
    ),
    Mutant(
        "pixels not shifted", "group_norm_silu f32", r"sub\.f32\s+(%f\d+), (%f\d+), %f\d+;",
        r"mov.f32 \1, \2;", WRONG_RESULT,
    ),
    Mutant(
        "a vector where none fits", "linear_gelu few bf16 shifted",
        r"setp\.(eq|ne)\.s16(\s+%p\d+, %rs\d+), 0;", r"setp.\1.s16\2, 1;", "misaligned",
    ),
]  # fmt: skip
BARRIERS = [
    Barriers("linear_gelu few bf16"),
    Barriers("group_attention_mma split 64 bf16"),
    Barriers("masked_attention_mma bools 64 bf16"),
    Barriers("group_attention_simple 64 bf16"),
    Barriers("masked_attention_simple 64 bf16"),
    Barriers("add_layer_norm bf16 bf16"),
    Barriers("group_embedding f32"),
    Barriers("group_norm_silu bf16"),
    Barriers("group_order 19x20 330 known"),
    Barriers("token_selection 3001 bf16 peaked"),
]
