"""A pipeline decodes by plans where it can, and shows nothing of it but the time."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_pipeline import tiny_pipeline

import lpd_ext.pipeline
from lpd_ext.decode import InvalidLogitsError, decode
from lpd_ext.kernels import OPS, REFERENCE, Kernels
from lpd_ext.models.lpd import LPD


@pytest.fixture
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def decoded(monkeypatch):
    """Batch sizes of the calls that did not go by a plan."""
    sizes = []

    def spy(model, class_labels, *args, **kwargs):
        sizes.append(len(class_labels))
        return decode(model, class_labels, *args, **kwargs)

    monkeypatch.setattr(lpd_ext.pipeline, "decode", spy)
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0, (1.0, 2.0, 4.0)], ids=str)
def test_goes_by_plans(pipeline, decoded, dtype, cfg_scale):
    pipeline.to(dtype=dtype)
    output = pipeline([0, 1, 2], cfg_scale=cfg_scale, batch_size=2)
    assert decoded == []
    assert len(pipeline._plans) == 1
    plan = next(iter(pipeline._plans._plans.values()))
    assert plan.shape.guided == (cfg_scale != 1.0)  # half the work is saved
    assert plan.shape.dtype == dtype
    if dtype == torch.float32:
        by_decode = pipeline([0, 1, 2], cfg_scale=cfg_scale, batch_size=2, kernels=REFERENCE)
        assert output.tokens.equal(by_decode.tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_dtypes_without_plans(pipeline, decoded, dtype):
    kernels = OPS if dtype == torch.float16 else REFERENCE
    pipeline.to(dtype=dtype)([0, 1, 2], batch_size=2, kernels=kernels)
    assert decoded == [2, 2]
    assert pipeline._plans.nbytes == 0


def test_kernels_of_somebody_else_are_used(pipeline, decoded):
    calls = []

    def attend(*args):
        calls.append(args)
        return OPS.group_attention(*args)

    pipeline([0], kernels=Kernels("spied", attend, OPS.token_selection))
    assert decoded == [1]
    assert calls


def test_kernels_that_are_not_trusted_are_not_planned_with(pipeline, decoded, monkeypatch):
    expected = pipeline([0, 1]).tokens
    monkeypatch.setattr(lpd_ext.plan, "trusted", lambda op, device: op != "group_embedding")
    assert pipeline([0, 1]).tokens.equal(expected)
    assert decoded == [2]


@pytest.mark.cuda
def test_goes_by_plans_on_a_gpu(pipeline, decoded):
    expected = pipeline([0, 1, 2], batch_size=2)
    output = pipeline.to("cuda")([0, 1, 2], batch_size=2)
    assert decoded == []
    assert output.tokens.equal(expected.tokens)
    assert output.steps.equal(expected.steps)


@pytest.mark.parametrize(
    ("device", "trusts", "num_cells", "drawn_on"),
    [
        ("cuda:0", True, 4096, "cuda:0"),
        ("cuda:0", True, 4097, "cpu"),  # more than the kernel takes
        ("cuda:0", False, 256, "cpu"),
        ("cpu", True, 4097, "cpu"),
    ],
)
def test_where_orders_are_drawn(monkeypatch, device, trusts, num_cells, drawn_on):
    monkeypatch.setattr(
        lpd_ext.pipeline, "trusted", lambda op, device: trusts and op == "group_order"
    )
    where = lpd_ext.pipeline._device_of_orders(torch.device(device), num_cells)
    assert where == torch.device(drawn_on)


def test_hooks_are_obeyed(pipeline, decoded):
    # A plan would not call them.
    expected = pipeline([0, 1]).tokens
    seen = []
    hook = pipeline.model.head.register_forward_hook(lambda *args: seen.append(args))
    assert pipeline([0, 1]).tokens.equal(expected)
    assert len(seen) == 5
    hook.remove()
    pipeline([0, 1])
    assert len(seen) == 5
    assert decoded == [2]


def test_models_no_plan_serves_still_work(pipeline, decoded):
    expected = pipeline([0, 1]).tokens
    state = pipeline.model.state_dict()
    pipeline.model.train()
    assert pipeline([0, 1]).tokens.equal(expected)
    with torch.inference_mode():
        pipeline.model = LPD(pipeline.model.config).eval()
        pipeline.model.load_state_dict(state)
        assert pipeline([0, 1]).tokens.equal(expected)
    assert decoded == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_do_not_depend_on_batch_size_and_threads(pipeline, dtype):
    pipeline.to(dtype=dtype)
    labels, seeds, scales = [0, 1, 2, -1, 1], [9, 8, 7, 6, 5], [1.0, 2.0, 3.0, 4.0, 5.0]
    options = {"top_p": 0.9, "temperature": 0.8}
    together = pipeline(labels, seed=seeds, cfg_scale=scales, **options).tokens
    for batch_size, threads in [(1, 1), (2, 2), (3, 1), (64, 2)]:
        torch.set_num_threads(threads)
        again = pipeline(labels, seed=seeds, cfg_scale=scales, batch_size=batch_size, **options)
        assert again.tokens.equal(together)
    for image in range(5):
        alone = pipeline([labels[image]], seed=seeds[image], cfg_scale=[scales[image]], **options)
        assert alone.tokens[0].equal(together[image])


def test_plans_are_kept_and_released(pipeline):
    expected = pipeline([0, 1], num_steps=4).tokens
    plans = list(pipeline._plans._plans.values())
    pipeline([2, 1], num_steps=4, seed=5)
    assert list(pipeline._plans._plans.values()) == plans
    pipeline([2, 1], num_steps=3)
    assert len(pipeline._plans) == 2
    pipeline.release()
    assert pipeline._plans.nbytes == 0
    assert pipeline([0, 1], num_steps=4).tokens.equal(expected)


def test_changed_weights_are_used(pipeline):
    before = pipeline([0, 1]).tokens
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.mul_(-1)
    after = pipeline([0, 1])
    assert not after.tokens.equal(before)
    assert after.tokens.equal(pipeline([0, 1], kernels=REFERENCE).tokens)


def test_moving_drops_the_plans(pipeline):
    # They would keep the weights of before in memory.
    pipeline([0, 1])
    pipeline.to(dtype=torch.bfloat16)
    assert pipeline._plans.nbytes == 0


def test_another_model_in_its_place(pipeline):
    first = pipeline([0, 1]).tokens
    torch.manual_seed(5)
    pipeline.model = LPD(pipeline.model.config).eval()
    second = pipeline([0, 1])
    assert not second.tokens.equal(first)
    assert second.tokens.equal(pipeline([0, 1], kernels=REFERENCE).tokens)


def test_a_copy_decodes_by_its_own_weights(pipeline):
    first = pipeline([0, 1]).tokens
    other = copy.deepcopy(pipeline)
    assert other([0, 1]).tokens.equal(first)
    with torch.no_grad():
        other.model.token_emb.weight.neg_()
    assert not other([0, 1]).tokens.equal(first)
    assert pipeline([0, 1]).tokens.equal(first)


def test_calls_from_several_threads(pipeline):
    seeds = list(range(0, 40, 10)) * 4
    expected = [pipeline([0, 1], seed=seed).tokens for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda seed: pipeline([0, 1], seed=seed), seeds))
    assert all(map(torch.equal, (output.tokens for output in outputs), expected))


def test_after_invalid_logits_the_plan_is_as_good_as_new(pipeline):
    expected = pipeline([0, 1]).tokens
    with torch.no_grad():
        pipeline.model.class_emb.weight[2] = float("nan")
    with pytest.raises(InvalidLogitsError, match="image 1, step 0"):
        pipeline([0, 2])
    assert pipeline([0, 1]).tokens.equal(expected)
