"""Equal blocks are run a few times and counted as often as they stand there: no figure changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import methods
from minilora.accounting import folded
from minilora.accounting.plan import COMPARED, STORED, plan
from minilora.accounting.step import Step
from minilora.backend.shapes import Cost

SIZES = {"vocab_size": 60, "d_model": 16, "n_heads": 2}
CONFIGS = {
    "gpt2": ml.GPT2Config(n_positions=300, n_layers=14, **SIZES),
    "roberta": ml.RobertaConfig(n_positions=300, n_layers=13, d_ff=24, **SIZES),
    "deberta": ml.DebertaConfig(n_positions=300, n_layers=15, d_ff=24, **SIZES),
    "llama": ml.LlamaConfig(n_positions=300, n_layers=14, d_ff=24, n_kv_heads=1, **SIZES),
}
SMALLER = {"preembed": methods.PreEmbed(lp=3, li=1), "adapter-d": methods.AdapterD(r=2)}
METHODS = [method for method in COMPARED if not isinstance(method, methods.PreEmbed)]


@pytest.fixture
def ran(monkeypatch, numpy_only):
    """The numbers of blocks in the steps that `observe` ran."""
    seen, observe = [], folded.observe

    def watched(model, *rest):
        seen.append(len(model.blocks))
        return observe(model, *rest)

    monkeypatch.setattr(folded, "observe", watched)
    return seen


def whole(monkeypatch, *args, **settings):
    """The plan with all blocks run."""
    with monkeypatch.context() as patch:
        patch.setattr(folded, "longest_run", lambda values: (0, 0))
        return plan(*args, **settings)


@settings(max_examples=40)
@given(
    family=st.sampled_from([*CONFIGS]), method=st.sampled_from([*METHODS, *SMALLER.values()]),
    tokens=st.integers(1, 140), batch=st.integers(1, 3), recompute=st.booleans(),
    device=st.sampled_from(["numpy", "cupy"]), plain=st.booleans(),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    policy=st.sampled_from(["float32", "mixed", "half base", "nf4 base"]),
)
def test_the_plan_is_that_of_all_blocks(
    ran, monkeypatch, family, method, policy, **settings,
):
    if isinstance(method, methods.Full) and policy in STORED:
        policy = "float32"
    how = {"method": method, "policy": policy, **settings}
    assert plan(CONFIGS[family], **how) == whole(monkeypatch, CONFIGS[family], **how)


@pytest.mark.parametrize("method, few", [
    (methods.LoRA(r=2), [3, 4, 5]), (methods.BitFit(), [3, 4, 5]),
    (methods.FTTop2(), [16]),  # 12 equal blocks: no gain
    (methods.AdapterD(r=2, layers=(0, 5)), [14]),  # the longest run has 8 blocks
], ids=lambda value: getattr(value, "name", None))
def test_few_blocks_are_run_if_many_are_equal(ran, method, few):
    layers = 14 if len(few) == 3 else few[0] - 2 * isinstance(method, methods.FTTop2)
    plan(ml.GPT2Config(n_positions=8, n_layers=layers, **SIZES), method=method, batch=1)
    assert ran == (few if len(few) == 3 else [layers])


def test_blocks_that_differ_in_a_setting_are_not_equal(numpy_only):
    model = ml.GPT2(CONFIGS["gpt2"], rng=0)
    assert folded.longest_run([folded.signature(block) for block in model.blocks]) == (0, 14)
    model.blocks[3].ln1.eps *= 2
    model.blocks[9].attn.q.W.requires_grad = False
    assert folded.longest_run([folded.signature(block) for block in model.blocks]) == (4, 5)


@given(st.lists(st.integers(0, 2), max_size=12))
def test_the_longest_run_is_found(numpy_only, values):
    first, length = folded.longest_run(values)
    assert len(set(values[first : first + length])) == min(1, len(values))
    assert not any(len(set(values[i : i + length + 1])) == 1 for i in range(len(values) - length))


def steps(peak=lambda n: 17 * n, calls=lambda n: 2 * n):
    rows = {"frozen weights": 5, "trained weights": 2, "gradients": 2, "Adam moments": 4,
            "activations": 6}
    return [Step({name: n * size for name, size in rows.items()}, peak(n), {"linear": 6 * n},
                 (Cost(calls=calls(n)),)) for n in folded.FEW]


def test_growth_that_may_not_go_on_is_not_believed(numpy_only):
    longer = folded.extended(steps(), 10)
    assert longer.rows["activations"] == 6 * 13 and longer.costs == (Cost(calls=26),)
    assert longer.peak == 17 * 13 and longer.kinds == {"linear": 78}
    assert folded.extended(steps(calls=lambda n: n * n), 10) is None
    slower = steps(peak=lambda n: 100 + 13 * n)  # a moment that keeps no activations: 5 + 2 + 4 + 2
    assert folded.extended(slower, 10) is None
