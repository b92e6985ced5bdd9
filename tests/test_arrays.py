"""The ops on arrays: the same memory in, the same memory out, refusals with a name."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from lpd_ext import decode, group_attention, group_order, token_selection_, with_arrays
from lpd_ext.models.config import LPDConfig
from lpd_ext.models.lpd import LPD
from lpd_ext.ops import fused_linear, group_embedding, pack_linear

attend = with_arrays(group_attention)


def attention_arrays(dtype=np.float32):
    draw = np.random.default_rng(0).standard_normal
    qkv, k_cache, v_cache = draw((2, 5, 3, 2, 32)), draw((2, 2, 8, 32)), draw((2, 2, 8, 32))
    return [array.astype(dtype) for array in (qkv, k_cache, v_cache)]


class TestNumPy:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_caches_are_written_in_place(self, dtype):
        arrays = attention_arrays(dtype)
        tensors = [torch.tensor(array) for array in arrays]
        before = arrays[1].copy()
        out = attend(*arrays, 3, 2)
        assert type(out) is np.ndarray
        assert out.dtype == dtype
        np.testing.assert_array_equal(out, group_attention(*tensors, 3, 2).numpy())
        for array, tensor in zip(arrays, tensors, strict=True):
            np.testing.assert_array_equal(array, tensor.numpy())
        assert not np.array_equal(arrays[1], before)

    def test_memory_is_the_same(self):
        seen = []

        def spy(x, *, more):
            seen.extend([x.data_ptr(), *(tensor.data_ptr() for tensor in more)])
            return x[1:]

        arrays = [np.zeros((3, 4), np.float32) for _ in range(3)]
        result = with_arrays(spy)(arrays[0], more=arrays[1:])
        assert seen == [array.ctypes.data for array in arrays]
        assert result.ctypes.data == arrays[0][1:].ctypes.data
        result[:] = 7
        assert arrays[0][1:].min() == 7

    def test_strides_and_offsets(self):
        wide = np.random.default_rng(0).standard_normal((2, 9, 3, 2, 32)).astype(np.float32)
        _, k_cache, v_cache = attention_arrays()
        caches = [torch.tensor(cache) for cache in (k_cache, v_cache)]
        out = attend(wide[:, 2:7], k_cache, v_cache, 3, 2)
        expected = group_attention(torch.tensor(wide)[:, 2:7], *caches, 3, 2)
        np.testing.assert_array_equal(out, expected.numpy())

    def test_the_array_to_write_to_is_returned_itself(self):
        arrays = attention_arrays()
        out = np.empty((2, 5, 64), np.float32)
        assert attend(*arrays, 3, 2, out=out) is out
        np.testing.assert_array_equal(out, attend(*arrays, 3, 2))

    def test_an_op_that_returns_nothing(self):
        tokens = np.zeros((1, 4), np.int64)
        positions, logits = np.array([[3, 1]]), np.eye(2, 3, dtype=np.float32)[None]
        assert with_arrays(token_selection_)(tokens, positions, logits, np.full((1, 2), 0.1)) is (
            None
        )
        uniform = torch.full((1, 2), 0.1, dtype=torch.float64)
        expected = torch.zeros(1, 4, dtype=torch.int64)
        token_selection_(expected, torch.tensor([[3, 1]]), torch.eye(2, 3)[None], uniform)
        np.testing.assert_array_equal(tokens, expected.numpy())

    def test_lists_of_numbers_stay_what_they_are(self):
        sizes, seen = [1, 3], []

        def spy(seeds, group_sizes):
            seen.append(group_sizes)
            return group_order(seeds, (2, 2), group_sizes)

        order = with_arrays(spy)(np.array([7]), sizes)
        assert seen[0] is sizes
        expected = group_order(torch.tensor([7]), (2, 2), sizes)
        np.testing.assert_array_equal(order, expected.numpy())

    def test_arrays_in_tuples(self):
        rng = np.random.default_rng(0)
        tokens, order = np.array([[1, 0, 2, 1]]), np.array([[3, 1, 0, 2]])
        tables = [rng.standard_normal(s).astype(np.float32) for s in ((3, 32), (32,), (4, 32))]
        norm = tuple(rng.standard_normal(32).astype(np.float32) for _ in range(2))
        out = np.empty((1, 3, 32), np.float32)
        with_arrays(group_embedding)(tokens, order, *tables, norm, (0, 2), 3, out=out)
        tensors = [torch.tensor(array) for array in (tokens, order, *tables)]
        expected = group_embedding(
            *tensors, tuple(map(torch.tensor, norm)), (0, 2), 3, out=torch.empty(1, 3, 32)
        )
        np.testing.assert_array_equal(out, expected.numpy())

    def test_other_arguments_and_results_pass(self):
        weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
        packed = with_arrays(pack_linear)(weight)  # no tensor
        x, out = np.ones((1, 2, 16), np.float32), np.empty((1, 2, 8), np.float32)
        assert with_arrays(fused_linear)(x, packed, out=out) is out
        np.testing.assert_allclose(out[0, 0], weight.sum(1), rtol=1e-5)

    def test_a_whole_decode(self):
        config = LPDConfig(grid=(4, 4), dim=64, depth=1, num_heads=2, vocab_size=8, num_classes=3)
        model, sizes = LPD(config).eval(), [1, 3, 12]
        order = with_arrays(group_order)(np.array([7]), config.grid, sizes)
        tokens, logits = with_arrays(decode)(
            model, np.array([2]), sizes, order, temperature=0, return_logits=True
        )
        expected = decode(model, torch.tensor([2]), sizes, torch.tensor(order), temperature=0)
        np.testing.assert_array_equal(tokens, expected.numpy())
        assert type(logits) is np.ndarray

    def test_without_arrays_it_is_the_op(self):
        arrays = attention_arrays()
        out = attend(*map(torch.tensor, arrays), 3, 2)
        assert torch.is_tensor(out)
        np.testing.assert_array_equal(out.numpy(), attend(*arrays, 3, 2))
        assert attend.__doc__ == group_attention.__doc__


class JaxLike:
    """Speaks DLPack, and is nobody's array."""

    def __dlpack__(self, **_):
        raise AssertionError("asked for memory")


class TestRefusals:
    @pytest.mark.parametrize("argument", range(3))
    def test_read_only(self, argument):
        # torch would write to it all the same.
        arrays = attention_arrays()
        arrays[argument].flags.writeable = False
        before = [array.copy() for array in arrays]
        name = ("qkv", "k_cache", "v_cache")[argument]
        with pytest.raises(ValueError, match=rf"group_attention: argument `{name}`: .*read-only"):
            attend(*arrays, 3, 2)
        for array, copy in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_negative_strides(self):
        # They would end the process inside torch.
        qkv, k_cache, v_cache = attention_arrays()
        with pytest.raises(ValueError, match=r"`qkv`: expected strides of at least 0"):
            attend(qkv[::-1], k_cache, v_cache, 3, 2)

    def test_unaligned_memory(self):
        qkv, k_cache, v_cache = attention_arrays()
        shifted = np.empty(qkv.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(qkv.shape)
        with pytest.raises(ValueError, match=r"`qkv`: expected aligned memory"):
            attend(shifted, k_cache, v_cache, 3, 2)

    @pytest.mark.parametrize("dtype", [">f4", "U3", "datetime64[s]"])
    def test_dtypes_without_a_word_in_dlpack(self, dtype):
        qkv, k_cache, v_cache = attention_arrays()
        with pytest.raises(TypeError, match=r"`k_cache`: expected a dtype that DLPack and torch"):
            attend(qkv, np.zeros(k_cache.shape, dtype), v_cache, 3, 2)

    def test_dtypes_without_a_kernel_are_the_ops_to_refuse(self):
        with pytest.raises(TypeError, match=r"`qkv`: expected float32 .*got float64"):
            attend(*attention_arrays(np.float64), 3, 2)

    def test_a_tensor_among_arrays(self):
        qkv, k_cache, v_cache = attention_arrays()
        with pytest.raises(TypeError, match=r"`k_cache`: expected an array of numpy.*got torch"):
            attend(qkv, torch.tensor(k_cache), v_cache, 3, 2)
        with pytest.raises(TypeError, match=r"`v_cache`: expected an array of torch.*got numpy"):
            attend(torch.tensor(qkv), torch.tensor(k_cache), v_cache, 3, 2)

    def test_other_libraries(self):
        with pytest.raises(TypeError, match=r"`k_cache`: .*NumPy or CuPy, got test_arrays\.Jax"):
            attend(attention_arrays()[0], JaxLike(), JaxLike(), 3, 2)

    def test_missing_arguments(self):
        with pytest.raises(TypeError, match="cache_len"):
            attend(*attention_arrays())


class FakeArray(np.ndarray):
    """What CuPy's arrays look like from outside, on the CPU."""

    def __dlpack_device__(self):
        return (1, 0)


class TestFakeCuPy:
    """The way of a CuPy array, without a GPU: which stream, and what comes back."""

    @pytest.fixture
    def streams(self, monkeypatch):
        """A stand-in for cupy; what is entered and left around an op."""
        log = SimpleNamespace(current=0, events=[])
        cupy = ModuleType("cupy")
        cupy.cuda = SimpleNamespace(
            get_current_stream=lambda device: SimpleNamespace(ptr=log.current)
        )
        cupy.from_dlpack = lambda tensor: tensor.numpy().view(FakeArray)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(FakeArray, "__module__", "cupy")

        class Used:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                log.events.append(("enter", self.stream))

            def __exit__(self, *_):
                log.events.append(("exit", self.stream))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "stream", Used)
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda *args: args)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: ("default", device))
        return log

    @pytest.mark.parametrize(
        ("current", "used"), [(0, ("default", 0)), (1, ("default", 0)), (4711, (4711, 0))]
    )
    def test_the_op_runs_on_the_current_stream(self, streams, current, used):
        streams.current = current

        def op(x):
            streams.events.append("op")
            return x + 1

        result = with_arrays(op)(np.zeros(3, np.float32).view(FakeArray))
        assert streams.events == [("enter", used), "op", ("exit", used)]
        assert type(result) is FakeArray

    def test_the_per_thread_default_stream(self, streams):
        streams.current = 2
        arrays = [array.view(FakeArray) for array in attention_arrays()]
        with pytest.raises(NotImplementedError, match="per-thread default stream"):
            attend(*arrays, 3, 2)
        assert streams.events == []

    def test_a_torch_without_a_gpu(self, streams, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        arrays = [array.view(FakeArray) for array in attention_arrays()]
        with pytest.raises(NotImplementedError, match=r"`qkv`: .*torch has no GPU, got CuPy's"):
            attend(*arrays, 3, 2)

    def test_mixed_with_numpy(self, streams):
        qkv, k_cache, v_cache = attention_arrays()
        with pytest.raises(TypeError, match=r"`k_cache`: expected an array of cupy.*got numpy"):
            attend(qkv.view(FakeArray), k_cache, v_cache, 3, 2)

    def test_caches(self, streams):
        arrays = attention_arrays()
        fakes = [array.copy().view(FakeArray) for array in arrays]
        out = attend(*fakes, 3, 2)
        np.testing.assert_array_equal(out, attend(*arrays, 3, 2))
        np.testing.assert_array_equal(fakes[1], arrays[1])


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.cuda
class TestCuPy:
    def test_caches_are_written_in_place(self, cupy):
        arrays = attention_arrays()
        on_gpu = [cupy.asarray(array) for array in arrays]
        addresses = [array.data.ptr for array in on_gpu]
        out = attend(*on_gpu, 3, 2)
        assert isinstance(out, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(out), attend(*arrays, 3, 2), atol=1e-5)
        assert [array.data.ptr for array in on_gpu] == addresses
        for array, expected in zip(on_gpu[1:], arrays[1:], strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(array), expected)

    @pytest.mark.parametrize("kind", ["null", "blocking", "non_blocking"])
    def test_results_are_in_order_on_every_stream(self, cupy, kind):
        # A long job fills the inputs, the result is read at once: nothing but order protects it.
        arrays = attention_arrays()
        expected = attend(*(array.copy() for array in arrays), 3, 2)
        source = [cupy.asarray(array) for array in arrays]
        stream = cupy.cuda.Stream.null
        if kind != "null":
            stream = cupy.cuda.Stream(non_blocking=kind == "non_blocking")
        cupy.cuda.Device().synchronize()
        with stream:
            late = [cupy.zeros_like(array) for array in source]
            matrix = cupy.ones((4096, 4096), cupy.float32)
            for _ in range(20):
                matrix = matrix @ matrix * cupy.float32(1 / 4096)
            for array, values in zip(late, source, strict=True):
                cupy.multiply(values, matrix[0, 0], out=array)
            out = attend(*late, 3, 2)
            copies = [out + 0, late[1] + 0]
            stream.synchronize()
        np.testing.assert_allclose(cupy.asnumpy(copies[0]), expected, atol=1e-4)
        np.testing.assert_allclose(cupy.asnumpy(copies[1][:, :, 3:5]),
                                   arrays[0][:, :2, 1].swapaxes(1, 2), rtol=1e-4)  # fmt: skip

    def test_arrays_of_two_devices(self, cupy):
        if cupy.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("needs two GPUs")
        qkv, k_cache, v_cache = (cupy.asarray(array) for array in attention_arrays())
        with cupy.cuda.Device(1):
            k_cache = k_cache.copy()
        with pytest.raises(ValueError, match=r"`k_cache`: expected device cuda:0"):
            attend(qkv, k_cache, v_cache, 3, 2)
