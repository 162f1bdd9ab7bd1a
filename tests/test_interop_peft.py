"""Folders of PEFT: its rules, its formulas on our layers, and what is refused (interop/peft)."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import fits, ids, logits, made, same_bytes, shake, snapshot, train

import minilora as ml
from minilora import accounting, lora, methods
from minilora.adapters.registry import trained_by
from minilora.files import folders, safetensors
from minilora.interop.peft import matching
from minilora.interop.peft.config import PeftConfig
from minilora.interop.peft.modules import Modules

pytestmark = pytest.mark.usefixtures("numpy_only")
X = ids(3, tokens=9)
C_ATTN = "base_model.model.transformer.h.{}.attn.c_attn"


def folder_of(place, tensors, **settings):
    """A folder as PEFT writes it, by hand."""
    place.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ["c_attn"]}
    (place / "adapter_config.json").write_text(json.dumps(config | settings))
    safetensors.write(place / "adapter_model.safetensors", tensors)
    return place


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def fused(r=2, blocks=(0, 1), prefix=C_ATTN):
    """The tensors of an adapter of GPT-2's c_attn, d_model 8."""
    return {f"{prefix.format(i)}.lora_{x}.weight": random(*shape, seed=i)
            for i in blocks for x, shape in (("A", (r, 8)), ("B", (24, r)))}


def deltas(model):
    """path -> W - W0 of every adapted layer, after merging."""
    before = {at: np.array(ml.asnumpy(p.data), "f8") for at, (_, p) in base(model).items()}
    lora.merge(model)
    return {at.removesuffix(".W"): np.array(ml.asnumpy(p.data), "f8") - before[at]
            for at, p in model.named_parameters() if at in before}


def base(model):
    from minilora.adapters.registry import base_of

    return base_of(model)


def contents(place):
    with safetensors.opened(place / "adapter_model.safetensors") as file:
        tensors = {name: file.array(name) for name in file.tensors}
    return json.loads((place / "adapter_config.json").read_text()), tensors


# PEFT's rules for names.

GPT2 = [f"transformer.h.{i}.{x}" for i in (0, 1, 10, 11) for x in (
    "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"target_modules": ["c_attn"]}, [at for at in GPT2 if at.endswith("c_attn")]),
    ({"target_modules": ["attn"]}, []),  # the end of a path, not any part of it
    ({"target_modules": ["_attn", "proj"]}, []),  # and from a dot on
    ({"target_modules": ["h.1.attn.c_attn"]}, ["transformer.h.1.attn.c_attn"]),
    ({"target_modules": "c_attn"}, []),  # a string is a whole path
    ({"target_modules": r".*\.attn"}, []),
    ({"target_modules": r".*\.h\.1\.\w+\.c_proj"}, [
        "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"]),
    ({"target_modules": "ALL-linear"}, GPT2[:-1]),
    ({"target_modules": ["c_proj"], "exclude_modules": ["mlp.c_proj"]}, [
        at for at in GPT2 if at.endswith("attn.c_proj")]),
    ({"target_modules": ["c_fc"], "exclude_modules": r".*\.1\d?\.mlp\.c_fc"}, [
        "transformer.h.0.mlp.c_fc"]),
    ({"target_modules": ["c_fc", "c_attn"], "modules_to_save": ["mlp"]}, [
        at for at in GPT2 if at.endswith("c_attn")]),
    ({"target_modules": ["c_fc"], "layers_to_transform": 1}, ["transformer.h.1.mlp.c_fc"]),
    ({"target_modules": ["c_fc"], "layers_to_transform": [1, 11], "layers_pattern": "h"}, [
        "transformer.h.1.mlp.c_fc", "transformer.h.11.mlp.c_fc"]),
    ({"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": ["x"]}, []),
    ({"target_modules": ["c_fc", "transformer.h.0.attn.c_attn"], "layers_to_transform": [1]}, [
        "transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"]),
])
def test_targets_are_those_of_peft_s_rules(settings, wanted):
    config = PeftConfig.read({"peft_type": "LORA"} | settings)
    assert matching.targeted(config, GPT2, GPT2[:-1]) == wanted


@pytest.mark.parametrize(("pattern", "path", "matches"), [
    ("c_attn", "h.0.attn.c_attn", True), ("attn", "h.0.attn.c_attn", False),
    (r"h\.\d\.attn\.c_attn", "transformer.h.1.attn.c_attn", True),
    ("h.1.attn.c_attn", "transformer.h.11.attn.c_attn", False),
    ("h.1.attn.c_attn", "transformer.h.1.attn.c_attn.x", False),
    ("^h.0.attn.c_attn", "transformer.h.0.attn.c_attn", False), ("a|c_attn", "x.c_attn", True),
])
def test_a_pattern_matches_a_path_or_its_end(pattern, path, matches):
    assert matching.first({pattern: 7}, path, 1) == (7 if matches else 1)


def test_the_first_pattern_counts():
    assert matching.first({"x": 1, "c_attn": 2, "attn.c_attn": 3}, "h.0.attn.c_attn", 4) == 2


@given(st.sets(st.sampled_from(GPT2), min_size=1))
def test_written_targets_match_these_layers_and_no_others(chosen):
    config = PeftConfig(target_modules=matching.shortest(chosen, GPT2))
    assert {*matching.targeted(config, GPT2, GPT2)} == chosen


# What a folder means, by the formulas.


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("prefix", [C_ATTN, C_ATTN.replace(".transformer", "")])
def test_a_fused_adapter_is_three_layers_with_one_A(tmp_path, rslora, prefix):
    tensors = fused(prefix=prefix)
    model = made("gpt2", 1, "float32")
    paths = lora.load_peft(model, folder_of(tmp_path / "a", tensors, use_rslora=rslora))
    assert paths == [f"blocks.{i}.attn.{x}" for i in (0, 1) for x in "qkv"]
    for i, delta in ((i, deltas_of(model, i)) for i in (0, 1)):
        A, B = (tensors[f"{prefix.format(i)}.lora_{x}.weight"].astype("f8") for x in "AB")
        whole = 5 / (math.sqrt(2) if rslora else 2) * B @ A
        assert np.allclose(delta, whole, rtol=0, atol=1e-6 * np.abs(whole).max())
        q, k, v = (model.blocks[i].attn.__dict__[x].adapters["default"] for x in "qkv")
        assert q.A is k.A is v.A


def deltas_of(model, i):
    """[ΔWq; ΔWk; ΔWv] of a block."""
    attn = model.blocks[i].attn
    return np.concatenate([ml.asnumpy(getattr(attn, x).delta()) for x in "qkv"])


def test_a_shared_A_counts_once_and_stays_shared_while_it_trains(tmp_path):
    model = made("gpt2", 1, "float32")
    lora.load_peft(model, folder_of(tmp_path / "a", fused()), trainable=True)
    assert accounting.count(model).trainable == 2 * (2 * 8 + 24 * 2)
    assert len(model.trainable_parameters()) == 2 * 4 and len(trained_by(model, "default")) == 2 * 4
    before = np.array(model.blocks[0].attn.k.adapters["default"].A.data)
    train(model)
    q, k, v = (getattr(model.blocks[0].attn, x).adapters["default"] for x in "qkv")
    assert q.A is k.A is v.A and not np.array_equal(before, k.A.data)
    ours = logits(model, X)
    lora.save(model, tmp_path / "a.npz")
    again = made("gpt2", 1, "float32")
    methods.load(again, tmp_path / "a.npz")
    q, k, v = (getattr(again.blocks[1].attn, x).adapters["default"] for x in "qkv")
    assert q.A is k.A is v.A and same_bytes(logits(again, X), ours)
    lora.save_peft(model, tmp_path / "b")
    config, tensors = contents(tmp_path / "b")
    assert config["r"] == 2 and config["lora_alpha"] == 5 and tensors.keys() == fused().keys()


@pytest.mark.parametrize("base_dtype", ["float16", "int8"])
def test_the_base_can_be_stored_narrow_as_it_was_in_training(tmp_path, base_dtype):
    model = made("gpt2", 1, "float32")
    lora.load_peft(model, folder_of(tmp_path / "a", fused()), base_dtype=base_dtype)
    lora.save(model, tmp_path / "a.npz")
    again, wide = made("gpt2", 1, "float32"), made("gpt2", 1, "float32")
    lora.load(again, tmp_path / "a.npz", base_dtype=base_dtype)
    assert same_bytes(logits(again, X), logits(model, X))
    lora.load_peft(wide, folder_of(tmp_path / "b", fused()))
    assert not same_bytes(logits(wide, X), logits(model, X))


@pytest.mark.parametrize("how", [{}, {"use_rslora": True}, {"bias": "lora_only"}, {"bias": "all"}])
def test_what_is_loaded_is_written_back_bit_for_bit(tmp_path, how):
    model = made("gpt2", 1, "float32")
    tensors = fused()
    if "bias" in how:
        modules = Modules(model)
        for at in modules.parameters:
            near = at.endswith("c_attn.bias")
            if at.endswith(".bias") and (near or how["bias"] == "all"):
                name = at.replace(".bias", ".base_layer.bias") if near else at
                tensors[f"base_model.model.{name}"] = random(*modules.shape(at), seed=9)
    lora.load_peft(model, folder_of(tmp_path / "a", tensors, fan_in_fan_out=True, **how))
    config, again = contents(lora.save_peft(model, tmp_path / "b"))
    assert again.keys() == tensors.keys()
    assert all(same_bytes(again[name], tensors[name]) for name in tensors)
    assert config["fan_in_fan_out"] is True and config["target_modules"] == ["c_attn"]
    assert all(config[name] == value for name, value in how.items())
    with safetensors.opened(tmp_path / "b" / "adapter_model.safetensors") as file:
        assert file.metadata == {"format": "pt"}


def test_layers_have_the_rank_and_alpha_of_the_first_pattern(tmp_path):
    tensors = fused(3, [0]) | fused(1, [1])
    model = made("gpt2", 1, "float32")
    lora.load_peft(model, folder_of(
        tmp_path / "a", tensors, r=1, rank_pattern={"h.0.attn.c_attn": 3, "c_attn": 1},
        alpha_pattern={r"h\.[1-9]\.attn\.c_attn": 7}))
    scales = [model.blocks[i].attn.v.adapters["default"].scale for i in (0, 1)]
    assert scales == [5 / 3, 7]


def test_a_bias_of_B_becomes_part_of_the_layer_s_bias(tmp_path):
    tensors = fused(blocks=[0]) | {f"{C_ATTN.format(0)}.lora_B.bias": random(24)}
    model = made("gpt2", 1, "float32")
    b0 = np.concatenate([ml.asnumpy(getattr(model.blocks[0].attn, x).b.data) for x in "qkv"])
    lora.load_peft(model, folder_of(
        tmp_path / "a", tensors, lora_bias=True, target_modules=["h.0.attn.c_attn"]))
    b = np.concatenate([ml.asnumpy(getattr(model.blocks[0].attn, x).b.data) for x in "qkv"])
    assert np.allclose(b - b0, 5 / 2 * random(24), atol=1e-6)
    lora.detach(model)
    assert np.array_equal(b0[:8], ml.asnumpy(model.blocks[0].attn.q.b.data))


def test_the_token_table_s_adapter_does_not_reach_the_head_as_in_peft(tmp_path):
    at = "base_model.model.transformer.wte"
    A, B = random(2, 11), random(8, 2)
    table = {f"{at}.lora_embedding_A": A, f"{at}.lora_embedding_B": B}
    model, wide = made("gpt2", 1, "float32"), made("gpt2", 1, "float32")
    lora.load_peft(model, folder_of(tmp_path / "a", table, target_modules=["wte"]))
    head = {"base_model.model.lm_head.lora_A.weight": B.T, "base_model.model.lm_head.lora_B.weight":
            A.T}
    both = folder_of(tmp_path / "b", table | head, target_modules=["wte", "lm_head"])
    lora.load_peft(wide, both)
    assert type(wide.adapters.configs["default"]) is ml.LoRAConfig
    with pytest.raises(ValueError, match="not an update of a layer's W"):
        lora.merge(model)
    lora.merge(wide)
    assert not np.allclose(logits(model, X), logits(wide, X), atol=1e-2)
    with pytest.raises(ValueError, match="not each other's transpose"):
        lora.load_peft(wide, folder_of(tmp_path / "c", table | {
            name: 2 * x for name, x in head.items()}, target_modules=["wte", "lm_head"]))
    with pytest.raises(ValueError, match=r"lm_head and transformer\.wte are one matrix here"):
        lora.load_peft(wide, folder_of(tmp_path / "d", head, target_modules=["lm_head"]))


# Round trips of ours.

METHODS = {
    "lora": methods.LoRA(r=3, alpha=5, targets=("q", "v")),
    "one": methods.LoRA(r=3, alpha=5, targets=("v",)),
    "rslora": methods.RsLoRA(r=2, alpha=5, targets=("q", "v", "down")),
    "dora": methods.DoRA(r=2, alpha=5, targets=("q", "v", "up")),
    "pissa": methods.PiSSA(r=2, alpha=5, targets=("q", "v")),
    "wide": methods.LoRA(r=2, alpha=5, targets=("q", "k", "v", "o", "pos")),
    "patterns": methods.LoRA(
        r=2, alpha=5, targets=("q", "v", "o"), rank_pattern={"v": 3},
        alpha_pattern={"blocks.0.attn.q": 7}),
    "rslora patterns": methods.RsLoRA(
        r=2, alpha=5, targets=("q", "v"), rank_pattern={"v": 3}, alpha_pattern={"q": 7}),
    "tables": methods.LoRA(r=2, alpha=5, targets=("tok", "q")),
    "lookup": methods.PeftLoRA(r=2, alpha=5, targets=("tok", "pos", "q", "v"), rslora=True),
    "biases": methods.LoRA(r=2, alpha=5, targets=("q", "o"), bias="all"),
    "own": methods.LoRA(r=2, alpha=5, targets=("q", "o"), bias="lora"),
    "copies": methods.LoRA(
        r=2, alpha=5, targets=("q", "v"), trainable=("blocks.0.ln1", "blocks.1.mlp.down.W")),
    "token table": methods.LoRA(r=2, alpha=5, targets=("q", "v"), trainable=("tok",)),
    "dora as peft": methods.PeftLoRA(r=2, alpha=5, targets=("q", "v"), dora=True, rslora=True),
}


def attached(family, method, **sizes):
    model = made(family, 1, "float32", **sizes).eval()
    if hasattr(method, "targets"):
        method = replace(method, targets=fits(family, method.targets))
    methods.apply(model, method, rng=0)
    shake(model.trainable_parameters().values(), 2, 0.3)
    return model


def close(a, b):
    """Whether results are equal but for rounding: of float32, after some ten sums of ten."""
    return np.abs(a - b).max() <= 100 * np.finfo("f4").eps * np.abs(b).max()


@pytest.mark.filterwarnings("ignore:save_peft. PEFT holds")
@pytest.mark.parametrize("called", METHODS)
@pytest.mark.parametrize(("family", "labels"), [
    ("gpt2", 0), ("bert", 0), ("roberta", 3), ("deberta", 3), ("llama", 0)])
def test_an_adapter_that_is_written_and_read_computes_the_same(tmp_path, called, family, labels):
    sizes = {"num_labels": labels} if labels else {}
    model = attached(family, METHODS[called], **sizes)
    outputs = logits(model, X)
    assert not close(outputs, logits(made(family, 1, "float32", **sizes), X))
    lora.save_peft(model, tmp_path / "a")
    again = made(family, 1, "float32", **sizes).eval()
    lora.load_peft(again, tmp_path / "a", name="other")
    assert again.adapters.active == ("other",)
    assert close(logits(again, X), outputs)
    config, tensors = contents(lora.save_peft(again, tmp_path / "b"))
    assert (config, tensors.keys()) == (contents(tmp_path / "a")[0], tensors.keys())


@pytest.mark.parametrize("scaled", [methods.LoRA, methods.RsLoRA])
@pytest.mark.parametrize(("targets", "n"), [(("q", "v"), 2), (("q", "k", "v"), 3), (("k",), 1)])
def test_layers_of_one_fused_matrix_become_blocks(tmp_path, scaled, targets, n):
    model = attached("gpt2", scaled(r=3, alpha=5, targets=targets))
    config, tensors = contents(lora.save_peft(model, tmp_path / "a"))
    times = math.sqrt(n) if scaled is methods.RsLoRA else n
    assert config["r"] == 3 * n and math.isclose(config["lora_alpha"], 5 * times)
    A, B = (tensors[f"{C_ATTN.format(1)}.lora_{x}.weight"] for x in "AB")
    for i, x in enumerate(targets):
        layer = getattr(model.blocks[1].attn, x).adapters["default"]
        rows, columns = slice(8 * "qkv".index(x), 8 * "qkv".index(x) + 8), slice(3 * i, 3 * i + 3)
        assert np.array_equal(A[columns], layer.A.data)
        assert np.array_equal(B[rows, columns], layer.B.data)
        B[rows, columns] = 0
    assert not B.any()


def test_the_task_says_that_the_classifier_is_trained(tmp_path):
    method = methods.LoRA(r=2, alpha=5, targets="q", trainable="head.out")
    model = attached("bert", method, num_labels=3)
    place = lora.save_peft(model, tmp_path / "a") / "adapter_config.json"
    config = json.loads(place.read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier"])
    place.write_text(json.dumps(config | {"modules_to_save": None}))
    again = made("bert", 1, "float32", num_labels=3).eval()
    lora.load_peft(again, tmp_path / "a")
    assert close(logits(again, X), logits(model, X))


# What is refused, and the state after it.


def refused(model, place, words):
    before = snapshot(model)
    with pytest.raises(ValueError, match=words) as caught:
        lora.load_peft(model, place)
    assert snapshot(model) == before and str(caught.value).startswith(str(place))
    return str(caught.value)


def test_missing_and_unknown_tensors_are_all_named(tmp_path):
    tensors = fused()
    gone = [name for name in tensors if "h.1" in name]
    for name in gone:
        del tensors[name]
    more = {f"{C_ATTN.format(7)}.lora_A.weight": random(2, 8),
            f"{C_ATTN.format(0)}.lora_magnitude_vector": random(24)}
    words = refused(made("gpt2"), folder_of(tmp_path / "a", tensors | more), "missing: .*unknown: ")
    assert all(name.removeprefix("base_model.model.") in words for name in [*gone, *more])


def test_a_file_may_repeat_the_base_s_table_if_it_is_equal(tmp_path):
    """As PEFT writes it where a table has an adapter; it is compared, so it must be floats."""
    model, at = made("gpt2", 0, "float32"), "base_model.model.transformer.wte"
    W = ml.asnumpy(model.tok.W.data)
    tensors = {f"{at}.lora_embedding_A": random(2, len(W)), f"{at}.lora_embedding_B": random(8, 2)}

    def repeated(name, table):
        more = {f"{at}.base_layer.weight": table}
        return folder_of(tmp_path / name, tensors | more, target_modules=["wte"])

    assert lora.load_peft(made("gpt2", 0, "float32"), repeated("same", W)) == ["tok"]
    refused(model, repeated("other", W + 1), "base_layer.weight is not equal to .*wte.weight")
    refused(model, repeated("integers", W.astype("int32")), "no floats: .*base_layer.weight .I32")


def test_tensors_without_the_prefix_are_all_named(tmp_path):
    tensors = {name.removeprefix("base_model.model."): x for name, x in fused().items()}
    words = refused(made("gpt2"), folder_of(tmp_path / "a", tensors), "do not begin with")
    assert all(name in words for name in tensors)


def test_shapes_and_dtypes_are_all_named(tmp_path):
    tensors = fused()
    names = sorted(tensors)
    tensors[names[0]] = tensors[names[0]].T.copy()
    tensors[names[1]] = tensors[names[1]].astype("int32")
    words = refused(made("gpt2"), folder_of(tmp_path / "a", tensors), "of another shape: ")
    assert "(8, 2), not (2, 8)" in words and "no floats: " in words and "(I32)" in words


@pytest.mark.parametrize(("how", "words"), [
    ({"peft_type": "IA3"}, "peft_type is the str 'IA3'"), ({"x": 1, "y": None}, "settings x, y"),
    *(({name: value}, name) for name, value in {
        "use_bdlora": True, "use_qalora": True, "arrow_config": {"x": 1}, "eva_config": {"rho": 2},
        "trainable_token_indices": [1], "target_parameters": ["x"], "layer_replication": [[0, 1]],
        "alora_invocation_tokens": [1], "megatron_config": {"x": 1}, "velora_config": {"x": 1},
        "monteclora_config": {"x": 1}, "kasa_config": {"x": 1}, "corda_config": {"x": 1},
        "lora_ga_config": {"x": 1}, "loftq_config": {"x": 1}}.items()),
    *(({"init_lora_weights": start}, "fits only the base that its start changed") for start in (
        "pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq")),
    ({"init_lora_weights": "mica"}, "mica"), ({"r": 2.5}, "r must be int"),
    ({"r": 0}, "r must be an integer >= 1"), ({"lora_alpha": 0}, "alpha"),
    ({"bias": "lora"}, "bias"),
    ({"target_modules": None}, "no target_modules"), ({"target_modules": ["query"]}, "c_attn"),
    ({"target_modules": "("}, "not a regular expression"), ({"use_dora": 1}, "use_dora"),
    ({"target_modules": "all-linear", "layers_to_transform": 1}, "layers_to_transform"),
    ({"layers_pattern": "h"}, "layers_pattern"), ({"use_dora": True, "lora_bias": True}, "exclude"),
    ({"modules_to_save": ["wte"]}, "trains transformer.wte.weight apart from lm_head.weight"),
    ({"modules_to_save": ["ln_1"]}, r"missing: .*h\.0\.ln_1\.bias, .*h\.1\.ln_1\.weight"),
    ({"bias": "all"}, "missing: .*ln_f.bias"), ({"use_dora": True}, "missing: .*magnitude_vector"),
    ({"lora_dropout": 1.0}, "dropout"), ({"r": 10**9}, "of another shape"),
])
def test_settings_that_are_not_computed_name_themselves(tmp_path, how, words):
    refused(made("gpt2"), folder_of(tmp_path / "a", fused(), **how), words)


def test_a_layer_that_peft_adapts_otherwise_is_refused_both_ways(tmp_path):
    model = made("deberta", 1, "float32")
    refused(model, folder_of(tmp_path / "a", fused(), target_modules=["rel_embeddings"]),
            "transformers reads the table of distances past its adapter")
    for i, target in enumerate(["rel", "conv.mix"]):
        model = attached("deberta", methods.LoRA(r=2, targets=(target, "q")))
        with pytest.raises(ValueError, match=f"PEFT cannot adapt {target} as it is adapted here"):
            lora.save_peft(model, tmp_path / f"b{i}")


@pytest.mark.parametrize("method", ["bitfit", "adapter-h", "preembed", "lora+preembed"])
def test_a_method_that_peft_does_not_have_is_refused(tmp_path, method):
    model = made("gpt2")
    methods.apply(model, method, rng=0)
    with pytest.raises(ValueError, match=f"PEFT has no '{re.escape(method)}': .* lora.save"):
        lora.save_peft(model, tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_a_pickle_a_file_and_an_unknown_model_are_refused_in_words(tmp_path):
    model = made("gpt2")
    place = folder_of(tmp_path / "a", fused())
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    refused(model, place, "is a pickle, which can run any code when it is read")
    with pytest.raises(ValueError, match="is not a folder: give the one with adapter_config"):
        lora.load_peft(model, place / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"not for a Linear: save and load its adapters as \.npz"):
        lora.load_peft(ml.nn.Linear(2, 2), folder_of(tmp_path / "b", fused()))


def test_a_parameter_that_transformers_does_not_have_is_refused(tmp_path):
    model = made("gpt2")
    model.extra = ml.nn.Linear(2, 2, rng=0)
    with pytest.raises(ValueError, match=r"extra\.W is no parameter of a GPT2LMHeadModel"):
        lora.load_peft(model, folder_of(tmp_path / "a", fused()))


@pytest.mark.parametrize(("how", "words"), [
    ({"fused": 3}, "fused takes names"), ({"head": 1}, "head must be True or False"),
    ({"rslora": None}, "rslora must be"), ({"dora": "yes"}, "dora must be"),
    ({"rank_pattern": {"v": 3}}, r"attn\.q and .*\.v share one A, but theirs would be \(8, 8\)"),
    ({"dora": True, "targets": "tok"}, "tok is an Embedding")])
def test_settings_of_lora_as_peft_attaches_it(how, words):
    with pytest.raises(ValueError, match=words):
        methods.apply(made("gpt2"), methods.PeftLoRA(**how), rng=0)


def test_layers_that_are_fused_nowhere_are_warned_of():
    with pytest.warns(UserWarning, match="fused has no effect: no module has two"):
        methods.apply(made("gpt2"), methods.PeftLoRA(targets=("q", "o")), rng=0)


def test_a_module_that_peft_would_tear_apart_is_not_written(tmp_path):
    model = attached("bert", methods.LoRA(r=2, targets="q", trainable="head.b"))
    with pytest.raises(ValueError, match=r"trains cls\.predictions only as a whole, with cls"):
        lora.save_peft(model, tmp_path / "a")


def test_a_folder_is_complete_or_not_there(tmp_path, monkeypatch):
    model = attached("gpt2", METHODS["lora"])
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        lora.save_peft(model, full)
    model.blocks[0].attn.q.adapters["default"].A.data[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        lora.save_peft(model, tmp_path / "a")
    assert [x.name for x in tmp_path.iterdir()] == ["full"] and len([*full.iterdir()]) == 1
    model.blocks[0].attn.q.adapters["default"].A.data[0, 0] = 0
    lora.save_peft(model, tmp_path / "a")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(x.name for x in (tmp_path / "a").iterdir()) == names
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    folders.check(tmp_path / "b")
