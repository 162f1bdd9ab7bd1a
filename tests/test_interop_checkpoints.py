"""Folders as Hugging Face lays them out: what is written is read, and nothing else is."""

import json
import sys
import types

import numpy as np
import pytest
from strategies import DEBERTAS, adapted, made, same_bytes, shard

import minilora as ml
from minilora import lora
from minilora.accounting.traced import meter
from minilora.files import safetensors
from minilora.interop.settings import SETTINGS
from minilora.models.pretrained import with_head

pytestmark = pytest.mark.usefixtures("numpy_first")
KINDS = [
    ("gpt2", {}), ("gpt2", {"d_ff": 5, "dropout": 0.25}), ("bert", {"num_labels": 3}),
    ("bert", {}), ("bert", {"head": "pooler"}), ("bert", {"head": "none"}),
    ("roberta", {"padding_id": 3}), ("roberta", {"num_labels": 1}), ("roberta", {"head": "pooler"}),
    ("deberta", {"num_labels": 2}), ("deberta", {"head": "none"}),
    *(("deberta", sizes) for sizes in DEBERTAS),
    ("llama", {}), ("llama", {"qkv_bias": False, "tied": False, "rope_theta": 1e6, "eps": 0.25}),
]


def equal(ours, theirs):
    assert type(ours) is type(theirs) and ours.config == theirs.config
    a, b = ours.state_dict(), theirs.state_dict()
    assert [*a] == [*b] and all(same_bytes(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("family", "sizes"), KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_written_model_is_read_back(tmp_path, family, sizes, dtype):
    model = made(family, 1, dtype, **sizes)
    place = model.save_pretrained(tmp_path / "model")
    assert sorted(x.name for x in place.iterdir()) == ["config.json", "model.safetensors"]
    readers = type(model).from_pretrained, ml.load_model
    for read in readers[: 1 if family == "deberta" else 2]:
        again = read(place, dtype=dtype)
        assert not again.training
        equal(again, model)
    shard(place, 3)
    equal(ml.load_model(place, dtype=dtype), model)


# What other versions wrote.


def rewritten(place, change):
    """Change the tensors of a folder: change(name -> array) in place."""
    path = place / "model.safetensors"
    with safetensors.opened(path) as file:
        arrays = {name: file.array(name) for name in file.tensors}
    change(arrays)
    safetensors.write(path, arrays)


def renamed(change):
    def apply(arrays):
        for name in [*arrays]:
            arrays[change(name)] = arrays.pop(name)
    return apply


def old_norms(name):
    if "LayerNorm" in name:
        name = name.replace("weight", "gamma").replace("bias", "beta")
    return name


@pytest.mark.parametrize(("family", "sizes", "change"), [
    ("bert", {}, renamed(old_norms)),
    ("bert", {"num_labels": 2}, renamed(lambda name: name.removeprefix("bert."))),
    ("bert", {"head": "none"}, renamed(lambda name: f"bert.{name}")),
    ("gpt2", {}, renamed(lambda name: name.removeprefix("transformer."))),
    ("bert", {}, lambda x: x.update({"bert.embeddings.position_ids": np.arange(12)[None]})),
    ("gpt2", {}, lambda x: x.update({
        "transformer.h.0.attn.bias": np.tri(12, dtype=bool)[None, None],
        "transformer.h.1.attn.masked_bias": np.float32(-1e4)})),
    ("gpt2", {}, lambda x: x.update({"lm_head.weight": x["transformer.wte.weight"]})),
    ("bert", {}, renamed(lambda name: name.replace("ions.bias", "ions.decoder.bias"))),
    ("roberta", {}, lambda x: x.update({"lm_head.decoder.bias": x["lm_head.bias"]})),
    ("llama", {}, renamed(lambda name: name.removeprefix("model."))),
    ("llama", {}, lambda x: x.update({
        "lm_head.weight": x["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "f4")})),
    ("deberta", {}, renamed(lambda name: name.replace(
        "cls.predictions.transform.", "lm_predictions.lm_head.").replace(
        "cls.predictions.", "lm_predictions.lm_head."))),
])
def test_other_names_for_the_same_are_understood(tmp_path, family, sizes, change):
    model = made(family, 1, "float32", **sizes)
    place = model.save_pretrained(tmp_path / "model")
    rewritten(place, change)
    equal(ml.load_model(place), model)


def test_half_precision_is_widened_exactly_and_may_be_asked_for(tmp_path):
    model = made("gpt2", 1, "float16")
    place = model.save_pretrained(tmp_path / "model")
    wide, narrow = ml.load_model(place), ml.load_model(place, dtype="float16")
    equal(narrow, model)
    for name, x in wide.state_dict().items():
        assert x.dtype == "float32" and np.array_equal(x, model.state_dict()[name])


def test_the_positions_of_a_published_deberta_are_left_out(tmp_path):
    model = made("deberta", 1, "float32", position_biased_input=False)
    place = model.save_pretrained(tmp_path / "model")
    name = "deberta.embeddings.position_embeddings.weight"
    rewritten(place, lambda x: x.update({name: np.ones((12, 8), "f4")}))
    with pytest.warns(UserWarning, match=r"left out, .*: embeddings\.position_embeddings\.weight"):
        equal(ml.load_model(place), model)


def test_the_parts_of_another_head_are_left_out_with_a_warning(tmp_path):
    model = made("bert", 1, "float32")
    place = model.save_pretrained(tmp_path / "model")
    more = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.bias")
    rewritten(place, lambda x: x.update({name: np.ones(3, "f4") for name in more}))
    said = r"left out, .*: cls\.seq_relationship\.bias, pooler\.dense\.bias, pooler\.dense\.weight"
    with pytest.warns(UserWarning, match=said):
        equal(ml.load_model(place), model)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pooler_becomes_the_first_layer_of_a_classifier(family):
    model = made(family, 1, "float32", head="pooler")
    classifier = with_head(model, 3, rng=0)
    ids = np.arange(2, 10).reshape(2, 4)
    with ml.no_grad():
        vectors = model(ids)
        assert vectors.shape == (2, 8)
        scores = ml.asnumpy(classifier.head.out(vectors).data)
        assert np.array_equal(scores, ml.asnumpy(classifier(ids).data))
        bare = made(family, 1, "float32", head="none")
        assert bare(ids).shape == (2, 4, 8)
    assert classifier.config.num_labels == 3 and with_head(bare, 2, rng=0)(ids).shape == (2, 2)
    with pytest.raises(ValueError, match="head='none' cannot act with num_labels 2"):
        made(family, num_labels=2, head="none")
    with pytest.raises(ValueError, match="head must be one of words, pooler, none"):
        made(family, head="mean")


# What is refused.


def test_all_that_does_not_fit_is_in_one_error(tmp_path):
    place = made("gpt2", 1, "float32").save_pretrained(tmp_path / "model")

    def spoil(x):
        x.pop("transformer.h.0.ln_1.bias")
        x.pop("transformer.h.1.ln_2.weight")
        x["transformer.h.2.ln_1.bias"] = x["score.weight"] = np.ones(3, "f4")
        x["transformer.h.0.attn.c_attn.weight"] = x["transformer.h.0.attn.c_attn.weight"].T
        x["transformer.wpe.weight"] = x["transformer.wpe.weight"][:5]
        x["transformer.ln_f.bias"] = x["transformer.ln_f.bias"].astype("i4")

    rewritten(place, spoil)
    with pytest.raises(ValueError) as error:
        ml.GPT2.from_pretrained(place)
    assert str(error.value) == (
        f"{place}: its tensors are not those of this GPT2: "
        "missing: h.0.ln_1.bias, h.1.ln_2.weight; unknown: h.2.ln_1.bias, score.weight; of another "
        "shape: h.0.attn.c_attn.weight (24, 8), not (8, 24), wpe.weight (5, 8), not (12, 8); no "
        "floats: ln_f.bias (I32)")


@pytest.mark.parametrize(("change", "reason"), [
    (lambda x: x.update({"lm_head.weight": x["transformer.wte.weight"] + 1}), "are not equal"),
    (lambda x: x.update({"lm_head.weight": x["transformer.wte.weight"][1:]}), "are not equal"),
    (lambda x: x.update({"ln_f.bias": x["transformer.ln_f.bias"]}), "ln_f.bias twice"),
    (lambda x: x.update({"transformer.ln_f.bias": np.full(8, 1e300)}), "finite in float32"),
])
def test_tensors_that_contradict_are_refused(tmp_path, change, reason):
    place = made("gpt2", 1, "float32").save_pretrained(tmp_path / "model")
    rewritten(place, change)
    with pytest.raises(ValueError, match=reason) as error:
        ml.GPT2.from_pretrained(place)
    assert str(error.value).startswith(f"{place}: ")


def configured(place, **settings):
    path = place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")


def test_a_setting_with_another_meaning_is_refused_by_name(tmp_path, numpy_only):
    for family in ("gpt2", "bert", "roberta", "deberta", "llama"):
        model = made(family, 1, "float32")
        settings = next(s for s in SETTINGS if s.config is type(model.config))
        place = model.save_pretrained(tmp_path / family)
        good = (place / "config.json").read_text("utf-8")
        assert settings.fixed
        for key, values in settings.fixed.items():
            configured(place, **{key: "another"})
            with pytest.raises(ValueError, match=f"config.json: {key} is the str 'another', and "):
                ml.load_model(place)
            raw = json.loads(good)
            raw.pop(key)  # absent: the first value
            (place / "config.json").write_text(json.dumps(raw), "utf-8")
            equal(ml.load_model(place), model)
            for value in values:
                configured(place, **{key: value})
                equal(ml.load_model(place), model)


@pytest.mark.parametrize(("family", "settings", "reason"), [
    ("gpt2", {"embd_pdrop": 0.5}, "embd_pdrop is 0.5 and resid_pdrop 0.0"),
    ("gpt2", {"n_head": 3}, "n_heads 3"), ("gpt2", {"n_layer": 10**9}, "more numbers than"),
    ("gpt2", {"vocab_size": 10**12}, "more numbers than"), ("gpt2", {"n_embd": "8"}, "d_model"),
    ("bert", {"model_type": "gpt2"}, "it has no"), ("bert", {"model_type": "t5"}, "'t5': read are"),
    ("bert", {"model_type": None}, "model_type is None"),
    ("bert", {"type_vocab_size": 3}, "token_type_embeddings.weight (2, 8), not (3, 8)"),
    ("roberta", {"pad_token_id": None}, "must be integers"),
    ("deberta", {"pos_att_type": ["p2p"]}, "pos_att_type"),
    ("deberta", {"attention_head_size": 3}, "attention_head_size is not 4"),
    ("deberta", {"embedding_size": 4}, "embedding_size is not 8"),
    ("deberta", {"norm_rel_ebd": "rms"}, "norm_rel_ebd is 'rms'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is {'type'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is {'rope_type'"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters is"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling is the str 'linear', not an object"),
    ("llama", {"head_dim": 2}, "head_dim is not 4"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has others"),
    ("llama", {"model_type": "llama"}, "unknown: layers.0.self_attn.k_proj.bias"),
    ("llama", {"tie_word_embeddings": False}, "missing: lm_head.weight"),
])
def test_wrong_settings_are_refused_with_the_file(tmp_path, family, settings, reason):
    sizes = {"n_types": 2} if family == "bert" else {}
    place = made(family, 1, "float32", **sizes).save_pretrained(tmp_path / "model")
    configured(place, **settings)
    with pytest.raises(ValueError) as error:
        ml.load_model(place)
    assert str(error.value).startswith(f"{place}") and reason in str(error.value)


def test_other_spellings_of_deberta_s_settings(tmp_path):
    model = made("deberta", 1, "float32", **DEBERTAS[0])
    place = model.save_pretrained(tmp_path / "model")
    configured(place, pos_att_type="P2C|c2p", attention_head_size=4, embedding_size=8)
    equal(ml.load_model(place), model)
    with pytest.raises(ValueError, match="z_steps is 2"):
        made("deberta", 1, "float32", z_steps=2).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_spellings_of_llama_s_settings(tmp_path):
    model = made("llama", 1, "float32", n_kv_heads=2)
    place = model.save_pretrained(tmp_path / "model")
    raw = json.loads((place / "config.json").read_text("utf-8"))
    for changes in (
        {"rope_parameters": None, "rope_scaling": None, "head_dim": 4, "sliding_window": 5},
        {"rope_theta": 7.0, "rope_scaling": {"type": "default"}, "layer_types": None},
        {"num_key_value_heads": None, "layer_types": ["full_attention"] * 2, "head_dim": None},
    ):
        (place / "config.json").write_text(json.dumps(raw | changes), "utf-8")
        equal(ml.load_model(place), model)


def test_unknown_settings_are_warned_of_unless_they_are_off(tmp_path):
    model = made("gpt2", 1, "float32")
    place = model.save_pretrained(tmp_path / "model")
    configured(place, alibi=False, rotary=None, extra=[])
    equal(ml.load_model(place), model)
    configured(place, alibi=True, window=5)
    with pytest.warns(UserWarning, match="unknown here and not used: alibi=True, window=5"):
        equal(ml.load_model(place), model)


def test_a_folder_without_tensors_says_what_it_needs(tmp_path):
    place = made("gpt2", 1, "float32").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"it describes a GPT2: read it with GPT2\.from_pretr"):
        ml.Bert.from_pretrained(place)
    shard(place, 3)
    (place / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"files, model-00002-of-00003\.safetensors are not in"):
        ml.load_model(place)
    index = place / "model.safetensors.index.json"
    for name in ("../a.safetensors", "/a.safetensors", "a.bin", 3, "a" * 300 + ".safetensors"):
        index.write_text(json.dumps({"weight_map": {"wte.weight": name}}), "utf-8")
        with pytest.raises(ValueError, match="does not map tensors to files in this folder"):
            ml.load_model(place)
    index.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors$"):
        ml.load_model(place)
    (place / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which can run any code"):
        ml.load_model(place)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        ml.load_model(tmp_path)


def test_a_name_on_the_hub_needs_its_library(tmp_path, monkeypatch):
    model = made("gpt2", 1, "float32")
    place = model.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"there is no folder some/gpt2, and .*\[hf\]"):
        ml.GPT2.from_pretrained("some/gpt2")
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./some/gpt2$"):
        ml.GPT2.from_pretrained("./some/gpt2")
    with pytest.raises(ValueError, match="is a file: give the folder with config"):
        ml.GPT2.from_pretrained(place / "config.json")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(place)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    equal(ml.GPT2.from_pretrained("some/gpt2"), model)
    assert asked == [("some/gpt2", ["*.json", "*.safetensors", "*.txt"])]


def test_a_model_with_adapters_is_not_written(tmp_path):
    model, _ = adapted(0, "float32")
    with pytest.raises(ValueError, match=r"save_pretrained: .* merge or detach the adapters first"):
        model.save_pretrained(tmp_path / "model")
    with lora.merged(model), pytest.raises(RuntimeError, match=r"call lora\.merge\(model\) first"):
        model.save_pretrained(tmp_path / "model")
    assert [*tmp_path.iterdir()] == []
    lora.merge(model)
    equal(ml.load_model(model.save_pretrained(tmp_path / "model")), model)
    with pytest.raises(ValueError, match=r"is not empty \(it has config\.json, model\.saf"):
        model.save_pretrained(tmp_path / "model")
    for dtype in ("int8", "bfloat16", int, None):
        with pytest.raises(ValueError, match="dtype must be one of float64, float32, float16"):
            ml.GPT2.from_pretrained(tmp_path / "model", dtype=dtype)
    for dtype in (np.float32, np.dtype("f4"), "float32"):
        equal(ml.GPT2.from_pretrained(tmp_path / "model", dtype=dtype), model)
    with pytest.raises(TypeError, match="called dtype here"):
        ml.GPT2.from_pretrained(tmp_path / "model", torch_dtype="float16")


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_loading_takes_the_memory_of_the_model_and_a_piece(tmp_path, numpy_only, stored):
    sizes = {"vocab_size": 4000, "d_model": 512, "n_layers": 2}
    model = made("gpt2", 1, stored, **sizes)
    place = model.save_pretrained(tmp_path / "model")
    size = sum(p.size * 4 for p in model.parameters())
    del model
    with meter() as memory:
        ml.load_model(place)  # what is imported and cached
        memory.reset()
        before = memory.read()[0]
        model = ml.load_model(place)
        assert size <= memory.read()[1] - before <= 1.1 * size + 3 * safetensors.PIECE
    assert sum(p.data.nbytes for p in model.parameters()) == size > 10 * safetensors.PIECE
