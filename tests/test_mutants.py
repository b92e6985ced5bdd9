"""The mutation tool itself; `make mutants` runs it on the kernels."""

import json

import mutants
import pytest

SOURCE = """\
#if A == B
constexpr unsigned kAllLanes = 0xffffffffu;
  for (int i = 0; i < n - 1; ++i) {  // i < n, __syncthreads();
    if (a <= b && c) cp_async_wait<1>();
    __syncthreads();
    const auto old = atomicAdd(&counter, 1u);
    std::vector<int> x;
"""


def test_every_kind_of_place_is_changed_in_turn():
    changes = [mutant.after for mutant in mutants.mutants_of("x.cu", SOURCE)]
    assert changes == [
        "constexpr unsigned kAllLanes = 0x7fffffffu;",
        "for (int i = 0; i <= n - 1; ++i) {  // i < n, __syncthreads();",
        "for (int i = 0; i < n; ++i) {  // i < n, __syncthreads();",
        "if (a <= b && c) cp_async_wait<2>();",
        "if (a < b && c) cp_async_wait<1>();",
        "if (a <= b || c) cp_async_wait<1>();",
        ";",
        "const auto old = [](auto* p, auto v) "
        "{ const auto old = *p; *p = old + v; return old; }(&counter, 1u);",
    ]


def test_a_mutant_differs_in_one_line():
    first = next(mutants.mutants_of("x.cu", SOURCE))
    before, after = SOURCE.splitlines(), mutants.mutated(SOURCE, first).splitlines()
    different = [i for i, pair in enumerate(zip(before, after, strict=True), 1) if len({*pair}) > 1]
    assert different == [first.number] == [2]


def test_two_places_in_a_line_are_two_mutants():
    found = list(mutants.mutants_of("x.cu", "if (a < b && c < d) {"))
    assert [mutant.after for mutant in found] == [
        "if (a <= b && c < d) {",
        "if (a < b && c <= d) {",
        "if (a < b || c < d) {",
    ]


@pytest.mark.parametrize("entry", json.loads(mutants.SURVIVORS.read_text()), ids=str)
def test_an_explained_survivor_is_a_mutant_of_today(entry):
    why = entry.pop("why")
    assert entry in [mutant.key for mutant in mutants.all_mutants()]
    assert len(why) > 20


def test_each_kernel_has_mutants_and_tests():
    for path in mutants.KERNELS.glob("*.cu"):
        if "__global__" in path.read_text():
            assert any(mutant.file == path.name for mutant in mutants.all_mutants())
            assert mutants.tests_of(path.name)
    own = mutants.tests_of("group_attention_mma.cu")
    assert own == mutants.tests_of("group_attention.cu")
    of_both = {*own, *mutants.tests_of("masked_attention.cu")}
    assert {*mutants.tests_of("attention_mma.cuh")} == of_both
    assert {*mutants.tests_of("elements.cuh")} >= of_both
