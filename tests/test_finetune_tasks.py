"""`minilora finetune` with every method, from an adapter, and on labelled sentences."""

import json
import re
import shlex

import numpy as np
import pytest

import minilora as ml
from minilora import cli, data, lora, methods, viz
from minilora.cli import finetune
from minilora.cli.settings import DEFAULTS
from minilora.data.tokenizers import Added, Template, WordPiece
from minilora.models.pretrained import with_head

pytestmark = pytest.mark.usefixtures("numpy_only")
SHORT = "--steps 2 --batch 2 --window 8 --checks 1"
GOOD, BAD = ["fine", "good", "great"], ["poor", "bad", "dull"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "is", "the", *GOOD, *BAD]
SMALL = {"r": 2, "lp": 2, "layers": "1"}  # settings of a method, where it has them


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return tmp_path


@pytest.fixture
def bert(folder):
    """A small random BERT in a folder as Hugging Face lays it out, and sentences for it."""
    added = {word: Added(i) for i, word in enumerate(WORDS[:5])}
    model = ml.Bert(ml.BertConfig(vocab_size=len(WORDS), n_positions=16, d_model=32, n_layers=1,
                                  n_heads=2, dropout=0.0), rng=0)
    model.tokenizer = WordPiece(
        WORDS, added=added, template=Template(((2, 0), ("A", 0), (3, 0))), roles={"pad": 0})
    model.save_pretrained("bert")
    rng, rows = np.random.default_rng(0), ["text,label"]
    for i in range(80):
        words = [*rng.choice(["a", "film", "is", "the"], rng.integers(1, 6)),
                 rng.choice(GOOD if i % 2 else BAD)]
        rows.append(f"{' '.join(words)},{'praise' if i % 2 else 'blame'}")
    (folder / "films.csv").write_text("\n".join(rows) + "\n")
    (folder / "test.csv").write_text("\n".join(rows[:21]) + "\n")
    return "finetune --base bert --task classify --data films.csv"


def run(line: str, capsys) -> tuple[int, dict, str]:
    """Return (exit code, result, messages)."""
    code = cli.main([*shlex.split(line), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out or "{}"), err


def settings_of(name):
    return " ".join(f"--{key} {value}" for key, value in SMALL.items() if key in DEFAULTS[name])


# Methods, of a text.


@pytest.mark.parametrize("name", methods.METHODS)
def test_each_method_is_trained_and_its_file_goes_on_where_it_ended(name, capsys):
    line = f"finetune words.txt {SHORT} --lr 1e-4"
    code, first, said = run(f"{line} --method {name} {settings_of(name)} --out a.npz", capsys)
    assert code == 0 and first["method"] == name and "step 2/2" in said
    model = ml.load_base("shakespeare")
    methods.load(model, "a.npz")
    ((attached, method),) = model.adapters.configs.items()
    saved = sum(p.size for p in methods.trained_by(model, attached).values())
    twice = name == "pissa"  # its file is a LoRA of twice the rank
    assert 0 < first["trainable"] * (1 + twice) == saved
    code, second, _ = run(f"{line} --adapter a.npz --out b.npz", capsys)
    assert code == 0 and second["method"] == method.called == ("lora" if twice else name)
    assert second["before"] == pytest.approx(first["after"], rel=1e-6)
    assert second["trainable"] == saved and second["after"] != second["before"]


def test_a_run_from_an_adapter_belongs_to_that_adapter(capsys, monkeypatch):
    for name, seed in (("a", 0), ("b", 1)):
        assert run(f"finetune words.txt {SHORT} --out {name}.npz --seed {seed}", capsys)[0] == 0

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune.lora, "save", stop)
        assert run(f"finetune words.txt {SHORT} --adapter a.npz --out c.npz", capsys)[0] == 130
    code, _, said = run(f"finetune words.txt {SHORT} --adapter b.npz --out c.npz", capsys)
    assert code == 2 and "c.run.npz is a checkpoint of another run: " in said
    code, _, said = run(f"finetune words.txt {SHORT} --adapter a.npz --out c.npz", capsys)
    assert code == 0 and "continuing from step 2" in said


def test_the_text_to_evaluate_on_is_not_trained_on(folder, capsys):
    (folder / "other.txt").write_text("a rose by any other name would smell as sweet\n" * 9)
    code, result, said = run(f"finetune words.txt {SHORT} --eval other.txt", capsys)
    model = ml.load_base("shakespeare")
    whole = len(model.tokenizer.encode((folder / "words.txt").read_text()))
    assert code == 0 and f"{whole:,} tokens to train on" in said
    ids = model.tokenizer.encode((folder / "other.txt").read_text())
    expected = ml.evaluate(model, data.sequential(ids, 2, 8)[:1])
    assert result["before"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not viz.available(), reason="needs pip install '.[viz]'")
@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_losses_are_drawn(name, start, folder, capsys):
    code, result, _ = run(f"finetune words.txt {SHORT} --chart {name}", capsys)
    assert code == 0 and result["chart"] == name
    assert (folder / name).read_bytes().startswith(start)


def test_a_folder_for_peft_is_asked_for_by_its_model_and_name(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(lora, "save_peft", lambda *given: calls.append(given), raising=False)
    code, result, _ = run(f"finetune words.txt {SHORT} --export peft out", capsys)
    assert code == 0 and result["export"] == "out"
    ((model, path),) = calls
    assert path == "out" and model.adapters.configs


REFUSED = {
    "kjv --method bitfit --r 4": "--r is for lora.*: bitfit has no settings",
    "kjv --method adapter-h --alpha 4": "--alpha is for lora.*: adapter-h has --r",
    "kjv --method full --targets q": "--targets is for lora.*: full has no settings",
    "kjv --method nothing": "--method nothing: choose|--method nothing: did you mean",
    "kjv --method preembed --li 2": "--li 2: a text has no prompt for tokens to follow: give --lp",
    "kjv --method preembed --lp 200 --window 100": "--window 100: shakespeare reads 56 tokens",
    "kjv --adapter a.npz --r 4": "--adapter a.npz has its own method and settings: leave out --r",
    "kjv --adapter a.npz --method full": "a.npz has its own method and settings: leave out --me",
    "kjv --export onnx x": "--export onnx: choose peft, as in --export peft FOLDER",
    "kjv --export peft": "--export needs a value for each: --export peft FOLDER",
    "kjv --export peft here": "--export peft here: it exists: give a new folder",
    "kjv --method full --export peft x": "--export peft: full has no form in PEFT: it is for --me",
    "kjv --chart a.jpg": "--chart a.jpg: give a name that ends in .png or .svg",
    "kjv --chart old.png": "old.png exists, and minilora did not write it so: give another --chart",
    "kjv --eval none.txt": "none.txt is neither a file nor a built-in text",
    "kjv --eval kjv": "--eval kjv has what is trained on, .*: give another file, or leave it out",
    "kjv --data a.csv": "--data is for --task classify: give a text as the first argument",
    "kjv --task sort": "--task sort: choose text or classify",
    "kjv --task classify --data a.csv": "--task classify takes no text 'kjv': give --data FILE.csv",
    "--task classify": "--task classify needs --data: a CSV file with the columns text and label",
    "--task classify --data a.csv --checks 2": "--checks is for a text: --task classify scores all",
    "--task classify --data a.csv": "shakespeare is a GPT2, a decoder: --task classify reads an en",
    "kjv --base here": "here has no config.json|config.json",
    "kjv --base mini-encoder": "mini-encoder is a Bert, an encoder: give a decoder",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_act_together_is_refused_before_the_work(line, folder, capsys):
    (folder / "here").mkdir()
    (folder / "old.png").write_bytes(b"")
    lora_file = ml.load_base("shakespeare")
    lora.attach(lora_file, ml.LoRAConfig(r=1), rng=0)
    lora.save(lora_file, "a.npz")
    code, _, said = run(f"finetune {line}", capsys)
    assert code == 2 and not [*folder.glob("adapter*")]
    assert re.search(REFUSED[line], said), said


def test_a_chart_without_its_library_is_refused_before_the_work(folder, capsys, monkeypatch):
    def missing():
        raise ImportError("figures need matplotlib: pip install '.[viz]'")

    monkeypatch.setattr(viz, "need", missing)
    code, _, said = run(f"finetune words.txt {SHORT} --chart a.png", capsys)
    assert code == 2 and "figures need matplotlib: pip install" in said
    assert not [*folder.glob("*.npz")]


# Sentences with labels.


@pytest.mark.filterwarnings("ignore:load. .*another base")
@pytest.mark.parametrize("name", ["lora", "full", "bitfit", "adapter-h", "preembed", "fttop2"])
def test_a_folder_learns_labels_and_its_file_has_the_head(name, bert, capsys):
    line = f"{bert} --method {name} {settings_of(name)} --eval test.csv --batch 8"
    more = "--lr 1e-2 --steps 60" if name == "full" else "--steps 3"
    code, first, said = run(f"{line} {more} --out a.npz", capsys)
    assert code == 0 and (name != "full" or first["accuracy"] > 0.9 > first["accuracy_before"])
    assert "80 sentences to train on, 20 held out; labels blame, praise" in said
    assert first["frequent"] == 0.5 and first["sentences_per_second"] > 0
    assert first["after"] != first["before"] and "sentences a second in training" in said
    model = with_head(ml.Bert.from_pretrained("bert"), 2, rng=1)  # another head: it is replaced
    assert "head.out.W" in methods.load(model, "a.npz")
    test = data.read_labelled("test.csv", ["blame", "praise"])
    rows = data.token_rows(test.texts, model.tokenizer, 16)
    right = [model(row[None]).data.argmax() == y for row, y in zip(rows, test.labels)]
    assert np.mean(right) == first["accuracy"]
    code, second, _ = run(f"{bert} --adapter a.npz --eval test.csv --steps 1 --out b.npz", capsys)
    assert code == 0 and second["accuracy_before"] == first["accuracy"]


def test_a_tenth_of_the_sentences_is_held_out_and_one_pass_is_made(bert, capsys):
    code, result, said = run(f"{bert} --batch 10", capsys)
    assert code == 0 and "72 sentences to train on, 8 held out" in said
    assert result["steps"] == 8 and "nats a sentence; to beat" not in said
    again = run(f"{bert} --batch 10 --out b.npz", capsys)[1]
    assert again["after"] == result["after"]


def test_a_label_that_the_data_does_not_have_is_refused(bert, folder, capsys):
    (folder / "test.csv").write_text("text,label\nthe film,praise\na film,neither\n")
    code, _, said = run(f"{bert} --eval test.csv", capsys)
    assert code == 2 and "test.csv: row 3: its label 'neither' is not one of blame, praise" in said


@pytest.mark.parametrize(("more", "words"), [
    ("--eval data.csv", "--eval data.csv has what is trained on"),
    ("--window 1", "--window 1: a sentence is cut to its first tokens and its last"),
])
def test_a_setting_that_says_nothing_is_refused(more, words, bert, capsys):
    data = re.search(r"--data (\S+)", bert)[1]
    code, _, said = run(f"{bert} {more.replace('data.csv', data)}", capsys)
    assert code == 2 and words.replace("data.csv", data) in said


def test_a_folder_without_a_tokenizer_is_refused(bert, folder, capsys):
    for path in folder.glob("bert/*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    code, _, said = run(bert, capsys)
    assert code == 2 and "bert has no tokenizer: put its tokenizer.json there" in said


@pytest.mark.oracle
@pytest.mark.thorough
def test_a_folder_that_transformers_wrote_is_classified(bert, folder, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained("theirs")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer("vocab.txt").save_pretrained("theirs")
    line = bert.replace("--base bert", "--base theirs")
    code, result, said = run(f"{line} --steps 2", capsys)
    assert code == 0 and result["trainable"] > 0, said
