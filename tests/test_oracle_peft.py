"""Adapters to PEFT and from PEFT: equal logits at every station, for every kind."""

import json
import warnings
from copy import deepcopy

import numpy as np
import pytest
from conftest import kept
from strategies import ids, logits, made, train
from test_interop_peft import METHODS, attached, contents

import minilora as ml
from minilora import lora, methods

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.oracle, pytest.mark.usefixtures("one_thread_each"),
    pytest.mark.filterwarnings("ignore"),  # theirs; ours are asserted where they matter
]
X = ids(3, tokens=9)
WITHIN = 1e-5  # of the largest logit, float32


def theirs_of(model, place):
    """Their model with our weights, in eval mode."""
    folder = model.save_pretrained(place)
    (called,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(hf, called).from_pretrained(folder).eval()


def adapted_by_peft(theirs, **settings):
    """Their model with an adapter, alpha ≠ r, in which every trained number is moved."""
    model = peft.get_peft_model(theirs, peft.LoraConfig(**{"r": 2, "lora_alpha": 5} | settings))
    rng = np.random.default_rng(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += torch.tensor(0.3 * rng.standard_normal(p.shape).astype("f4"))
    return model.eval()


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(X)).logits.numpy()


def off(got, wanted) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


LAYERS = {"bert": ["query", "value"], "roberta": ["query", "value"],
          "deberta": ["query_proj", "value_proj"]}
LLAMA = [
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"target_modules": "all-linear", "use_dora": True, "modules_to_save": ["norm"]},
    {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["k_proj", "gate_proj"], "modules_to_save": ["embed_tokens"],
     "ensure_weight_tying": True},
]
GPT2 = [
    {"target_modules": ["c_attn"], "use_rslora": True},
    {"target_modules": ["c_attn", "c_proj"], "use_dora": True},
    {"target_modules": ["c_attn"], "use_dora": True, "use_rslora": True, "lora_dropout": 0.1},
    {"target_modules": ["wte", "c_attn"]}, {"target_modules": ["wpe", "c_fc"]},
    {"target_modules": "all-linear", "bias": "all"},
    {"target_modules": ["c_attn"], "bias": "lora_only", "lora_bias": True},
    {"target_modules": ["c_attn", "c_fc"], "lora_bias": True, "use_rslora": True},
    {"target_modules": ["c_attn"], "modules_to_save": ["ln_1", "mlp.c_proj"]},
    {"target_modules": ["c_attn", "c_fc", "c_proj"], "alpha_pattern": {"attn.c_proj": 7},
     "rank_pattern": {"h.1.attn.c_attn": 1, "c_fc": 3}, "use_rslora": True},
    {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": "h"},
    {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["attn.c_proj"]},
    {"target_modules": r".*\.h\.1\..*c_proj", "init_lora_weights": "gaussian"},
]
THREE = {"num_labels": 3}
CASES = [("gpt2", {}, settings) for settings in GPT2]
for family, names in LAYERS.items():
    CASES += [
        (family, {}, {"target_modules": "all-linear", "bias": "all"}),
        (family, {}, {"target_modules": [*names, "word_embeddings"], "use_rslora": True}),
        (family, {}, {"target_modules": names, "use_dora": True, "bias": "lora_only"}),
        (family, THREE, {"target_modules": names, "task_type": "SEQ_CLS"}),
        (family, THREE, {"target_modules": "all-linear", "bias": "all", "task_type": "SEQ_CLS"}),
        (family, THREE, {"target_modules": [*names, "word_embeddings"]}),
    ]
TIED, FREE = {"tied": True}, {"tied": False, "qkv_bias": False}
CASES += [("llama", TIED, settings) for settings in LLAMA] + [
    ("llama", FREE, settings) for settings in (
        *LLAMA[:2], {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]})]


@pytest.mark.parametrize(("family", "sizes", "settings"), kept(
    CASES, *(case for i, case in enumerate(CASES) if case[0] in ("gpt2", "bert") or i % 3 == 0)),
    ids=str)
def test_an_adapter_of_peft_computes_the_same_here_and_goes_back(
    tmp_path, family, sizes, settings
):
    model = made(family, 1, "float32", **sizes).eval()
    theirs = adapted_by_peft(theirs_of(model, tmp_path / "base"), **deepcopy(settings))
    wanted = their_logits(theirs)
    assert off(logits(model, X), wanted) > 0.05
    theirs.save_pretrained(tmp_path / "a")
    lora.load_peft(model, tmp_path / "a")
    assert off(logits(model, X), wanted) < WITHIN
    lora.save_peft(model, tmp_path / "b")
    base = hf.AutoModelForSequenceClassification if sizes == THREE else (
        hf.AutoModelForMaskedLM if family in LAYERS else hf.AutoModelForCausalLM)
    again = peft.PeftModel.from_pretrained(base.from_pretrained(tmp_path / "base"), tmp_path / "b")
    assert off(their_logits(again.eval()), wanted) < WITHIN


@pytest.mark.parametrize("called", METHODS)
@pytest.mark.parametrize(("family", "labels"), kept(
    [("gpt2", 0), ("bert", 0), ("bert", 3), ("roberta", 0), ("roberta", 3), ("deberta", 3),
     ("llama", 0)], ("gpt2", 0)))
def test_an_adapter_of_ours_computes_the_same_in_peft(tmp_path, family, labels, called):
    sizes = {"num_labels": labels} if labels else {}
    theirs = theirs_of(made(family, 1, "float32", **sizes), tmp_path / "base")
    model = attached(family, METHODS[called], **sizes)
    lora.save_peft(model, tmp_path / "a")
    there = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    assert off(their_logits(there), logits(model, X)) < WITHIN
    if called not in ("tables", "lookup"):  # PEFT's merge of a tied table is wrong
        assert off(their_logits(there.merge_and_unload()), logits(model, X)) < WITHIN


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "deberta", "llama"])
def test_all_settings_and_tensors_are_written_as_peft_writes_them(tmp_path, family):
    model = made(family, 1, "float32")
    names = LAYERS.get(family, ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"])
    adapted_by_peft(theirs_of(model, tmp_path / "base"), target_modules=names).save_pretrained(
        tmp_path / "a")
    lora.load_peft(model, tmp_path / "a")
    config, tensors = contents(lora.save_peft(model, tmp_path / "b"))
    theirs, wanted = contents(tmp_path / "a")
    assert tensors.keys() == wanted.keys()
    assert all(np.array_equal(tensors[name], wanted[name]) for name in wanted)
    theirs["base_model_name_or_path"] = None
    if family in ("gpt2", "llama"):
        theirs |= {"task_type": "CAUSAL_LM", "auto_mapping": None}
    assert {**config, "target_modules": sorted(config["target_modules"])} == {
        **theirs, "target_modules": sorted(names)}


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "deberta", "llama"])
@pytest.mark.parametrize("method", kept(["lora", "rslora", "dora", "pissa"], "lora", "pissa"))
def test_training_here_merging_in_peft_and_back(tmp_path, family, method):
    """Logits at each station: trained here, loaded there, merged there, read here again."""
    model = made(family, 1, "float32")
    theirs = theirs_of(model, tmp_path / "base")
    methods.apply(model, METHODS[method], rng=0)
    train(model, 5)
    trained = logits(model.eval(), X)
    assert off(logits(made(family, 1, "float32"), X), trained) > 0.01
    lora.save_peft(model, tmp_path / "a")
    there = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    assert off(their_logits(there), trained) < WITHIN
    merged = there.merge_and_unload()
    assert off(their_logits(merged), trained) < WITHIN
    merged.save_pretrained(tmp_path / "merged")
    back = type(model).from_pretrained(tmp_path / "merged")
    assert off(logits(back, X), trained) < WITHIN
    lora.merge(model)
    assert off(logits(back, X), logits(model, X)) < WITHIN


def test_a_model_without_a_head_gives_and_takes_the_short_names(tmp_path):
    model = made("gpt2", 1, "float32").eval()
    theirs = theirs_of(model, tmp_path / "base")
    short = adapted_by_peft(theirs.transformer, target_modules=["c_attn"])
    theirs.transformer = short.base_model.model  # the adapter, in the model with its head
    short.save_pretrained(tmp_path / "a")
    lora.load_peft(model, tmp_path / "a")
    assert off(logits(model, X), their_logits(theirs)) < WITHIN
    bare = made("bert", 1, "float32", head="none").eval()
    there = theirs_of(bare, tmp_path / "bare")
    lora.attach(bare, ml.LoRAConfig(r=2, alpha=5), rng=0)
    train_numbers(bare)
    lora.save_peft(bare, tmp_path / "b")
    there = peft.PeftModel.from_pretrained(there, tmp_path / "b").eval()
    with torch.no_grad():
        hidden = there(torch.tensor(X)).last_hidden_state.numpy()
    with ml.no_grad():
        assert off(ml.asnumpy(bare.encode(X).data), hidden) < WITHIN


def train_numbers(model):
    rng = np.random.default_rng(3)
    for p in model.trainable_parameters().values():
        p.data += ml.backend.asarray(0.3 * rng.standard_normal(p.shape).astype("f4"))


def test_pissa_of_peft_is_refused_and_its_conversion_loads(tmp_path):
    model = made("bert", 1, "float32").eval()
    theirs = theirs_of(model, tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["query"], init_lora_weights="pissa")
    adapter = peft.get_peft_model(theirs, config)
    adapter.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for p in adapter.parameters():
            if p.requires_grad:
                p += 0.3
    adapter.eval()
    adapter.peft_config["default"].init_lora_weights = "pissa"
    wanted = their_logits(adapter)
    adapter.save_pretrained(tmp_path / "residual")
    with pytest.raises(ValueError, match="init_lora_weights is 'pissa': this adapter fits only"):
        lora.load_peft(model, tmp_path / "residual")
    adapter.save_pretrained(
        tmp_path / "a", path_initial_model_for_weight_conversion=tmp_path / "start")
    lora.load_peft(model, tmp_path / "a")
    assert model.adapters.configs["default"].r == 4
    assert off(logits(model, X), wanted) < WITHIN


def test_peft_reads_our_folder_without_a_word(tmp_path):
    theirs = theirs_of(made("gpt2", 1, "float32"), tmp_path / "base")
    lora.save_peft(attached("gpt2", METHODS["lora"]), tmp_path / "a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft.PeftModel.from_pretrained(theirs, tmp_path / "a")
    words = [str(w.message) for w in caught if "is_gradient_checkpointing" not in str(w.message)]
    assert not [w for w in words if "fan_in_fan_out" in w or "key" in w or "adapter" in w], words


def test_what_peft_lets_pass_is_refused_here(tmp_path):
    """It warns of missing tensors and settings, and says nothing of others."""
    from safetensors.torch import load_file, save_file

    model = made("bert", 1, "float32").eval()
    theirs = adapted_by_peft(theirs_of(model, tmp_path / "base"), target_modules=["query"])
    theirs.save_pretrained(tmp_path / "a")
    place = tmp_path / "a"
    file, config = place / "adapter_model.safetensors", place / "adapter_config.json"
    tensors, settings = load_file(file), json.loads(config.read_text())
    prefix = "base_model.model."
    some = next(iter(tensors))
    for changed, more in [
        ({name: x for name, x in tensors.items() if name != some}, {}),
        (tensors | {f"{prefix}bert.x.lora_A.weight": torch.ones(1)}, {}),
        ({name.removeprefix(prefix): x for name, x in tensors.items()}, {}),
        (tensors, {"new_setting": True}),
    ]:
        save_file(changed, file, {"format": "pt"})
        config.write_text(json.dumps(settings | more))
        base = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
        peft.PeftModel.from_pretrained(base, tmp_path / "a")
        with pytest.raises(ValueError, match="adapter_"):
            lora.load_peft(model, tmp_path / "a")
