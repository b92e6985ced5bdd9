"""The choice between CUDA kernels; what each computes is tested with the ops."""

import pytest

from lpd_ext import _binary, cuda_variant

NEEDS_NO_CUDA = pytest.mark.skipif(
    bool(_binary.host.build_info()["cuda"]), reason="this build has CUDA kernels"
)


class Library:
    """The functions of a build with CUDA kernels."""

    chosen = 1

    def lpd_ext_cuda_variant(self):
        return self.chosen

    def lpd_ext_set_cuda_variant(self, number):
        self.chosen = number


class Host:
    def build_info(self):
        return {"cuda": "13.0"}


def test_a_variant_can_be_chosen(monkeypatch):
    monkeypatch.setattr(cuda_variant, "ops_library", Library())
    monkeypatch.setattr(cuda_variant, "host", Host())
    assert cuda_variant.cuda_variant() == "tensor_cores"
    cuda_variant.set_cuda_variant("float32")
    assert cuda_variant.cuda_variant() == "float32"


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"`name`: expected one of .*'tensor_cores'.*got 'tf32'"):
        cuda_variant.set_cuda_variant("tf32")


@NEEDS_NO_CUDA
def test_without_cuda_kernels_there_is_nothing_to_choose():
    for function in (cuda_variant.cuda_variant, lambda: cuda_variant.set_cuda_variant("float32")):
        with pytest.raises(NotImplementedError, match="this build has no CUDA kernels"):
            function()
