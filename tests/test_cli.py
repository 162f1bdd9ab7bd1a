"""The command line: what it writes can be read again, merged is unmerged, bad input is told."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from strategies import gpt2, shake
from test_messages import FOREIGN

import minilora as ml
from minilora import accounting, cli, data, demo, lora
from minilora.cli import commands, finetune, inputs, parser

once = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, backend):
    """Everything happens in a folder of its own, on the backend of the test."""
    monkeypatch.chdir(tmp_path)
    put_in_use(backend, monkeypatch)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    return tmp_path


def put_in_use(backend, monkeypatch):
    """Whichever backend a command line asks for, it gets this one, plain or not."""

    def use(name, plain):
        monkeypatch.setattr(backend, "plain", plain)

    monkeypatch.setattr(cli, "backend", SimpleNamespace(use=use))


def run(line: str, capsys) -> dict:
    code = cli.main([*shlex.split(line), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@once
def test_finetune_merge_and_generate_tell_one_story(folder, capsys):
    tuned = run(
        "finetune words.txt --out fox.npz --steps 12 --batch 4 --window 32 --checks 2", capsys
    )
    assert tuned["after"] < tuned["before"] - 0.5 and not list(folder.glob("*.run.npz"))
    assert tuned["trainable"] == 4 * 2 * 8 * (160 + 160) and tuned["bytes"] < 200_000
    merged = run("merge --adapter fox.npz --out plain.npz", capsys)
    assert 0 < merged["difference"] <= merged["bound"] and merged["layers"] == 8
    ask = "generate --prompt the --tokens 12 --seed 3"
    unmerged = run(f"{ask} --adapter fox.npz", capsys)
    assert run(f"{ask} --base plain.npz", capsys) == unmerged
    assert run(f"{ask} --base plain.npz --no-cache", capsys) == unmerged
    assert run(ask, capsys) != unmerged


@once
def test_a_base_in_half_precision_tells_the_same_story(folder, capsys):
    stored = "--base-dtype float16"
    run(
        f"finetune words.txt --out fox.npz --steps 2 --batch 2 --window 16 --checks 1 {stored}",
        capsys,
    )
    merged = run(f"merge --adapter fox.npz --out plain.npz {stored}", capsys)  # without a warning
    assert 0 < merged["difference"] <= merged["bound"]
    ask = "generate --prompt the --tokens 12 --temperature 0"
    unmerged = run(f"{ask} --adapter fox.npz {stored}", capsys)
    assert run(f"{ask} --base plain.npz", capsys) == unmerged


def test_an_interrupted_finetune_goes_on_and_ends_the_same(folder, capsys, monkeypatch):
    line = "finetune words.txt --steps 4 --batch 2 --window 16 --checks 1"
    whole = run(f"{line} --out whole.npz", capsys)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune.lora, "save", stop)  # the run itself is done and on disk by then
        assert cli.main([*line.split(), "--out", "part.npz"]) == 130
    assert capsys.readouterr().err == (
        "minilora: interrupted; the run is done, and in part.run.npz: the same command writes the "
        "adapter\n"
    )
    kept = (folder / "part.run.npz").read_bytes()
    assert cli.main([*line.split(), "--out", "part.npz", "--seed", "1"]) == 2
    told = capsys.readouterr().err
    assert "--seed: 0 then, 1 now" in told and "another --out, or --restart" in told
    assert (folder / "part.run.npz").read_bytes() == kept and not (folder / "part.npz").exists()
    part = run(f"{line} --out part.npz", capsys)
    assert part["after"] == whole["after"] and part["before"] == whole["before"]
    with np.load("whole.npz") as a, np.load("part.npz") as b:
        for name in a.files:
            assert name == "meta.json" or a[name].tobytes() == b[name].tobytes()
    (folder / "part.run.npz").write_bytes(kept)
    other = run(f"{line} --out part.npz --seed 1 --restart", capsys)
    assert other["before"] == whole["before"] and other["after"] != whole["after"]


def stopped(message=""):
    def stop(*args, **settings):
        raise KeyboardInterrupt(*[message] * bool(message))

    return stop


@once
def test_an_interruption_says_what_is_true(capsys, monkeypatch):
    for said, told in (("", "interrupted; nothing new was kept"), ("in a.npz", "in a.npz")):
        monkeypatch.setattr(commands, "generate", stopped(said))
        assert cli.main(["generate"]) == 130
        assert capsys.readouterr().err == f"minilora: {told}\n"


CHANGES = ["--seed 1", "--targets q", "--r 4", "--alpha 8", "--dropout 0.5", "--lr 0.1",
           "--checks 2", "--dtype float64", "--batch 3", "--window 8"]


@once
def test_all_that_makes_a_run_what_it_is_is_told_to_it(folder, monkeypatch):
    told = []

    def fit(model, batches, optimizer, steps, about, resume, held_out, schedule, **settings):
        told.append(about)
        rates = [schedule(i) for i in range(steps)]
        assert rates.index(max(rates)) == steps // 20 and max(rates) == about["--lr"]
        assert resume and len(held_out) == about["--checks"]
        adapters = [m for _, m in model.named_modules() if isinstance(m, lora.Adapter)]
        assert {adapter.dropout for adapter in adapters} == {about["--dropout"]}
        raise ValueError("enough")

    monkeypatch.setattr(finetune, "fit", fit)
    line = "finetune words.txt --batch 2 --window 16 --checks 1"
    for change in ["", *CHANGES]:
        assert cli.main([*line.split(), *change.split()]) == 2
        if change:
            option, value = change.split()
            differ = {name for name in told[0] if told[-1][name] != told[0][name]}
            assert (
                differ == {option}
                and str(told[-1][option]).strip("(',)").removesuffix(".0") == value
            )
    assert told[0]["text"] == (folder / "words.txt").read_text()
    assert np.array_equal(told[0]["tokenizer"], ml.load_base().tokenizer.merges)


def windows(model, text, batch, tokens):
    held_out = model.tokenizer.encode(data.split(text)[1])
    return data.sequential(held_out, batch, tokens)


@once
def test_an_adapter_that_is_worse_than_the_base_is_written_told_and_returns_1(folder, capsys):
    line = "finetune kjv --steps 2 --batch 2 --window 16 --checks 2 --lr 1000 --json"
    assert cli.main(line.split()) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["passed"] and told["after"] > told["before"] + 1
    assert err.endswith(f"\nminilora: {told['failed']}\n") and (folder / "adapter.npz").exists()
    assert told["failed"].startswith("the adapter is worse than the base by ")
    assert told["failed"].endswith(
        "try a smaller --lr (it was 1000) or fewer --steps; adapter.npz is written all the same"
    )
    assert not (folder / "adapter.run.npz").exists()


def test_what_is_worse_by_less_than_windows_differ_anyway_is_not_told():
    model = ml.load_base()
    checks = windows(model, data.load_text("kjv"), 3, 16)[:2]
    each = [ml.evaluate(model, [(x[None], y[None])]) for xs, ys in checks for x, y in zip(xs, ys)]
    spread, base = np.std(each), np.mean(each)
    lora.attach(model, ml.LoRAConfig(targets="q"), rng=0)
    for _, layer in model.named_modules():
        if isinstance(layer, lora.Adapter):
            layer.B.data[...] = 1.0  # of no use: only the base's own losses count
    for more, fine in ((-1, True), (0, True), (0.9, True), (1.1, False)):
        told = finetune._worse(model, checks, base, base + more * spread)
        assert (told == "") is fine, more
    assert f"loss differs by {spread:.4f} from" in told and f"by {1.1 * spread:.4f} nats" in told
    assert not [p for p in model.parameters() if p.grad is not None]


def test_account_sets_full_beside_lora(capsys, backend):
    on_host = backend.on_host  # a device's pool hands out whole blocks, its ops are told
    near, near_peak = (0.01, 0.01) if on_host else (0.03, 0.1)  # all at once: larger scratch
    told = run("account --batch 1 --window 16 --r 2", capsys)
    assert told["lora"]["trainable"] == 4 * 2 * 2 * 320
    for side in told.values():
        for name, row in side["bytes"].items():
            allowed = near_peak if name == "peak" else near
            assert row["measured"] == pytest.approx(row["predicted"], rel=allowed)
    bytes_of = {name: side["bytes"]["total"]["measured"] for name, side in told.items()}
    assert bytes_of["lora"] < bytes_of["full"]


@once
def test_account_shows_what_recomputing_and_a_narrow_base_save(capsys):
    line = "account --batch 4 --window 64"
    kept, less = run(line, capsys), run(f"{line} --recompute --base-dtype float16", capsys)
    for name in ("activations", "peak"):
        assert all(less[m]["bytes"][name]["measured"] < kept[m]["bytes"][name]["measured"]
                   for m in ("full", "lora"))
    frozen = [side["lora"]["bytes"]["frozen weights"]["measured"] for side in (kept, less)]
    assert 0.5 <= frozen[1] / frozen[0] < 0.51


@once
def test_account_of_a_named_shape_is_its_plan(capsys):
    line = "account gpt3-175b --r 4 --targets q,v --window 16 --policy mixed --recompute --plain"
    told = run(line, capsys)
    planned = accounting.plan(
        "gpt3-175b", r=4, alpha=16, targets=("q", "v"), tokens=16, policy="mixed", recompute=True,
        plain=True,
    )
    assert told == planned.as_dict() and told["bytes"]["frozen weights"] > 300e9
    assert cli.main(["account", "gpt2", "--method", "full", "--window", "8"]) == 0
    assert "gpt2: full, 1 × 8 tokens" in capsys.readouterr().out


def test_plain_runs_no_kernel_and_writes_the_same(capsys, monkeypatch):
    line = "generate --prompt the --tokens 6 --temperature 0"
    written = run(line, capsys)

    def kernel(*arrays, **settings):
        raise ValueError("a kernel")

    for op in ml.kernels.TABLE:
        monkeypatch.setattr(op, "kernel", kernel)
    assert run(f"{line} --plain", capsys) == written
    assert cli.main(line.split()) == 2 and "a kernel" in capsys.readouterr().err


def test_the_number_of_threads_changes_no_bit_of_an_adapter(folder, capsys):
    before, files = ml.threads(), []
    line = "finetune words.txt --out fox.npz --steps 2 --batch 2 --window 16 --checks 1"
    for n in (1, 3):
        run(f"{line} --threads {n}", capsys)
        assert ml.threads(before) == n
        files.append((folder / "fox.npz").read_bytes())
    assert files[0] == files[1]


def test_finetune_recomputes_to_the_same_adapter(folder, capsys):
    line = "finetune words.txt --steps 3 --batch 2 --window 16 --checks 1 --dropout 0.2"
    run(f"{line} --out one.npz", capsys)
    run(f"{line} --out two.npz --recompute", capsys)
    with np.load("one.npz") as one, np.load("two.npz") as two:
        arrays = [name for name in one.files if one[name].dtype.kind == "f"]
        assert arrays and all(np.array_equal(one[a], two[a.replace("one", "two")]) for a in arrays)


def test_half_precision_is_what_is_asked_for(folder, monkeypatch):
    told = {}

    def fit(model, *_, loss_scale=None, **settings):
        told.update(dtype=str(model.ln_f.g.dtype), scale=loss_scale)
        raise ValueError("enough")

    monkeypatch.setattr(finetune, "fit", fit)
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --dtype"
    for dtype in ("float16", "float32"):
        assert cli.main([*line.split(), dtype]) == 2
        assert told["dtype"] == dtype and (told["scale"] is not None) == (dtype == "float16")


def test_finetune_in_half_precision_learns_with_a_scaled_loss(folder, capsys):
    line = "finetune words.txt --out fox.npz --steps 4 --batch 1 --window 8 --checks 1"
    told = run(f"{line} --dtype float16", capsys)
    run("generate --adapter fox.npz --tokens 2 --base-dtype float16", capsys)  # without a warning
    whole = run(line, capsys)
    assert told["after"] < told["before"] and abs(told["after"] / whole["after"] - 1) < 0.01


def test_info_tells_versions(capsys):
    told = run("info", capsys)
    assert told["numpy"] == np.__version__ and "cupy" in told["devices"].lower()


def test_options_before_the_command_are_those_behind_it(capsys, backend):
    before = ml.threads()
    try:
        assert cli.main(["--json", "--plain", "--threads", "1", "info"]) == 0
        assert json.loads(capsys.readouterr().out)["numpy"] == np.__version__
        assert backend.plain and ml.threads() == 1
    finally:
        ml.threads(before)
    written = [run(line, capsys) for line in (
        "--seed 3 generate --tokens 8", "generate --tokens 8 --seed 3", "generate --tokens 8",
        "--seed 4 generate --tokens 8 --seed 3",
    )]
    assert written[0] == written[1] == written[3] != written[2]
    assert not backend.plain


@once
def test_every_setting_of_the_decoder_reaches_it(capsys, monkeypatch):
    def generate(model, ids, tokens, **settings):
        told.append({"ids": ids.tolist(), "tokens": tokens, **settings})
        return ids

    told = []
    monkeypatch.setattr(commands, "generate", generate)
    encode = ml.load_base().tokenizer.encode
    run("generate --prompt 'To be,\\nor not' --tokens 3 --temperature 0.5 --top-k 4 --top-p 0.6 "
        "--seed 7 --no-cache", capsys)
    run("generate", capsys)
    assert told == [
        {"ids": encode("To be,\nor not").tolist(), "tokens": 3, "temperature": 0.5, "top_k": 4,
         "top_p": 0.6, "rng": 7, "cache": False},
        {"ids": encode("\n").tolist(), "tokens": 100, "temperature": 0.8, "top_k": None,
         "top_p": 0.95, "rng": 0, "cache": True},
    ]


@once
def test_a_base_is_stored_as_it_is_asked_for(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    stored = []
    monkeypatch.setattr(commands, "generate", lambda model, ids, *_, **__: stored.append(
        str(model.blocks[0].attn.q.base.W.data.dtype)) or ids)
    for option in ([], ["--base-dtype", "float16"]):
        with warnings.catch_warnings(action="ignore"):
            assert cli.main(["generate", "--adapter", "half.npz", *option]) == 0
    assert stored == ["float32", "float16"]


@once
@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_the_whole_is_told_without_a_command(option, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([option])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert ml.__version__ in out if "v" in option else all(name in out for name in COMMANDS)


@once
@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_text_may_come_from_a_pipe(folder):
    os.mkfifo(folder / "pipe")
    writer = threading.Thread(target=(folder / "pipe").write_text, args=("To be",), daemon=True)
    writer.start()
    assert inputs.text("pipe") == "To be"
    writer.join()


def test_names_are_parted_by_commas_and_blanks_are_not_of_them():
    assert parser.parse(["account", "--targets", " q , *.v,"]).targets == ("q", "*.v")


COMMANDS = [*parser.parser()[1]]
NEEDED = {"finetune": ["kjv"], "merge": ["--adapter", "a.npz"], "tutorials": ["list"],
          "ex": ["status"], "reproduce": ["counts"]}
VALUES = {"--seed": ["3"], "--backend": ["cupy:1"], "--threads": ["2"], "--plain": [], "--json": []}


@once
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", parser.COMMON)
def test_each_common_option_may_stand_on_either_side_of_each_command(command, option):
    line, given = [command, *NEEDED.get(command, [])], [option, *VALUES[option]]
    behind = parser.parse([*line, *given])
    assert parser.parse([*given, *line]) == behind != parser.parse(line)
    if VALUES[option]:
        assert parser.parse([f"{option}={given[1]}", *line]) == behind
        assert (
            parser.parse([option, {"--backend": "numpy"}.get(option, "7"), *line, *given]) == behind
        )


OPTIONS = [
    (name, option)
    for name, sub in parser.parser()[1].items()
    for option in parser._options(sub)
    if (name, option) != ("ex", "--json")
]  # fmt: skip    it takes a file or none: below
FREE = {
    "--base",
    "--adapter",
    "--prompt",
    "--targets",
    "--engines",
    "--shapes",
    "--only",
}  # any words will do
FLAGS = {"--plain", "--json", "--recompute", "--restart", "--no-cache", "--no-whole", "--growth",
         "--parity", "--give-up", "--compare", "--markdown"}


@once
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_each_option_refuses_what_is_no_value_of_it_by_its_name(command, option):
    line = [command, *NEEDED.get(command, [])]
    with pytest.raises(ValueError, match=f"^{option} (needs a|takes no) value"):
        parser.parse([*line, f"{option}=x"] if option in FLAGS else [*line, option])
    if option in FLAGS | FREE:
        return
    for odd in ("odd", "", "nan", "inf", "-1", "1e3", "0x1", "1.5", "9" * 20):
        try:
            parser.parse([*line, f"{option}={odd}"])
        except ValueError as error:
            said = str(error)
            assert re.match(rf"{option} {re.escape(odd or repr(odd))}[: ].*\bgive ", said), said
            assert not re.search("argument|invalid|choose|Error", said), said
        else:
            assert odd in ("1e3", "1.5", "9" * 20), odd
            assert option in ("--lr", "--alpha", "--temperature")


@once
def test_only_grading_takes_a_file_behind_json(folder, capsys):
    assert parser.parse(["ex", "status", "--json"]).json is True
    assert str(parser.parse(["ex", "grade", "class", "--json", "all.json"]).json) == "all.json"
    with pytest.raises(ValueError, match=r"^--json all\.txt: give a name that ends in \.json"):
        parser.parse(["ex", "grade", "class", "--json=all.txt"])
    assert cli.main(["ex", "status", "--json", "all.json"]) == 2
    assert "ex status takes no file behind --json: only grade does" in capsys.readouterr().err


@once
@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_option_and_what_it_is_without_it(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and (f"usage: minilora {command} " in told)
    args = vars(parser.parse([command, *NEEDED.get(command, [])]))
    for name, option in OPTIONS:
        default = args.get(option[2:].replace("-", "_"), None)
        if name == command and isinstance(default, int | float) and option not in FLAGS | FREE:
            assert f"({default:g})" in told, option
    for option in parser.parser()[1][command]._actions:
        assert option.help, option.dest


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with files of every kind."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    (folder / "short.txt").write_text("a few words only\nand a few more\n" * 6)
    (folder / "one.txt").write_text("x")
    (folder / "two.txt").write_text("xy")
    (folder / "bytes.txt").write_bytes(b"abc\xff")
    for name in ("empty.txt", "empty.npz", "file.npz"):
        (folder / name).write_text("words\n" * (name == "file.npz"))
    (folder / "folder").mkdir()
    np.savez(folder / "numbers.npz", a=np.arange(3.0))
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="q"), name="fox", rng=0)
    shake(model.trainable_parameters().values(), 0)
    lora.save(model, folder / "fox.npz")
    assert cli.main(["merge", f"--adapter={folder}/fox.npz", f"--out={folder}/plain.npz"]) == 0
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="q"), name="half", rng=0, base_dtype="float16")
    lora.save(model, folder / "half.npz")
    deep = gpt2(n_layers=5)
    lora.attach(deep, ml.LoRAConfig(targets="q"), rng=0)
    lora.save(deep, folder / "deep.npz")
    small = gpt2(n_positions=12)
    ml.save_model(small, folder / "mute.npz")
    lora.attach(small, ml.LoRAConfig(targets="q"), rng=0)
    lora.save(small, folder / "small.npz")
    return folder


TEXT = "a file, or one of plays, kjv, devil"
LONGER = "give a longer text, or --window"
BROKEN = "is not a minilora file, or it is damaged: it does not end as a .npz file does"
MISTAKES = {  # what is typed -> what is answered
    "finetun kjv": "there is no command finetun: did you mean finetune?",
    "words.txt": "there is no command words.txt: there are finetune, generate, merge, account, re",
    "''": "there is no command '': there are finetune, generate, merge, account, reproduce, info",
    "--stesp 3 finetune kjv": "there is no option --stesp: did you mean --steps?",
    "--zzz info": "there is no option --zzz: see `minilora --help`",
    "--jsn info": "there is no option --jsn: did you mean --json?",
    "--window 3": "--window goes behind its command: minilora account --window",
    "--steps 3 finetune kjv": "--steps goes behind its command: minilora finetune --steps",
    "finetune kjv --stpes 3": "finetune has no option --stpes: did you mean --steps?",
    "finetune kjv --wind 3": "finetune has no option --wind: did you mean --window?",
    "finetune --stpes=3": "finetune has no option --stpes: did you mean --steps?",
    "info word --zzz --aaa": "info has no option --zzz",
    "generate --zzz": "generate has no option --zzz: see `minilora generate --help`",
    "info now": "info takes no 'now': see `minilora info --help`",
    "finetune kjv devil": "finetune takes no 'devil': see `minilora finetune --help`",
    "finetune": f"finetune needs a text: {TEXT}",
    "merge": "merge needs --adapter: the .npz that `minilora finetune` writes",
    "finetune kjv --lr": "--lr needs a value; if it begins with -, write --lr=-...",
    "finetune kjv --lr -1e-3": "--lr needs a value; if it begins with -, write --lr=-...",
    "generate --no-cache=yes": "--no-cache takes no value, not 'yes'",
    "finetune kjv --steps -1": "--steps -1: give a whole number from 1",
    "finetune kjv --steps 2.5": "--steps 2.5: give a whole number from 1",
    "finetune kjv --r 0": "--r 0: give a whole number from 1",
    "finetune kjv --checks 0": "--checks 0: give a whole number from 1",
    "finetune kjv --batch 0": "--batch 0: give a whole number from 1",
    "finetune kjv --batch 9999999999": "--batch 9999999999: give 1,000,000,000 or less",
    "finetune kjv --window 0": "--window 0: give a whole number from 1",
    "finetune kjv --window 1000": "--window 1000: shakespeare reads 256 tokens: give 256 or less",
    "account gpt2 --window 1025": "--window 1025: gpt2 reads 1024 tokens: give 1024 or less",
    "finetune kjv --alpha 0": "--alpha 0: give a finite number above 0",
    "finetune kjv --lr nan": "--lr nan: give a finite number above 0",
    "finetune kjv --dropout 1": "--dropout 1: give a number from 0 to below 1",
    "finetune kjv --dtype float8": "--dtype float8: give float16 or float32 or float64",
    "finetune kjv --base-dtype int8": "--base-dtype int8: give float16",
    "finetune kjv --dtype float16 --base-dtype float16": "--base-dtype float16 is that of --dtype",
    "finetune kjv --targets ,": "--targets ,: give one name or several, by commas",
    "finetune kjv --targets zz": "--targets: no layer matches 'zz': there are down, k, o, pos, q,",
    "account gpt2 --targets zz": "--targets: no layer matches 'zz': there are down, k, o, pos, q,",
    "account --r 0": "--r 0: give a whole number from 1",
    "account gpt5": "shape gpt5: did you mean gpt2?",
    "finetune kjv --base nowhere.npz": "there is no file nowhere.npz, nor a built-in base of that",
    "finetune kjv --base fox.npz": "fox.npz holds an adapter, not a model",
    "info --seed -1": "--seed -1: give a whole number from 0",
    "info --threads 5000": "--threads 5000: give 1,024 or less",
    "info --backend cupi": "--backend cupi: give numpy, cupy, or cupy:1",
    "info --backend shapes": "--backend shapes: give numpy, cupy, or cupy:1",
    "generate --tokens -1": "--tokens -1: give a whole number from 0",
    "generate --temperature -1": "--temperature -1: give a finite number from 0",
    "generate --temperature nan": "--temperature nan: give a finite number from 0",
    "generate --top-p 2": "--top-p 2: give a number above 0, up to 1",
    "generate --top-k 0": "--top-k 0: give a whole number from 1",
    "generate --prompt ''": r"--prompt '': give at least one character; \n is a new line",
    "generate --prompt \udcff": r"--prompt '\udcff': give UTF-8 text",
    "generate --base-dtype float16": "--base-dtype float16 goes with an adapter: give --adapter",
    "generate --base none": "there is no file none, nor a built-in base of that name: there is sh",
    "generate --base folder": "folder is a folder, not a file",
    "generate --base fox.npz": "fox.npz holds an adapter, not a model",
    "generate --base file.npz": f"file.npz {BROKEN}",
    "generate --base mute.npz": "mute.npz has no tokenizer with it: set model.tokenizer before sa",
    "generate --adapter none.npz": "there is no file none.npz",
    "generate --adapter folder": "folder is a folder, not a file",
    "generate --adapter plain.npz": "plain.npz holds a model, not an adapter",
    "generate --adapter empty.npz": f"empty.npz {BROKEN}",
    "generate --adapter words.txt": f"words.txt {BROKEN}",
    "generate --adapter small.npz": "small.npz: ",
    "generate --adapter deep.npz": "deep.npz: it does not fit: this model has no 'blocks.4.attn.q'",
    "merge --adapter half.npz": "half.npz was trained over this base in half precision: give --ba",
    "merge --adapter fox.npz --base-dtype float16": "fox.npz was trained over this base as it is: ",
    "merge --adapter half.npz --base plain.npz": "half.npz was trained over another base than pla",
    "merge --adapter fox.npz --base plain.npz": "plain.npz already holds fox.npz: use it without",
    "merge --adapter fox.npz --out fox.npz": "--out fox.npz is there, and holds no model: give an",
    "merge --adapter fox.npz --out numbers.npz": "--out numbers.npz is there, and holds no model:",
    "finetune kjv --out plain.npz": "--out plain.npz is there, and holds no adapter: give another",
    "finetune kjv --out a.txt": "--out a.txt: give a name that ends in .npz, such as a.npz",
    "finetune kjv --out none/a.npz": "--out none/a.npz: none is not a folder: create it first, or",
    "finetune kjv --out folder": "--out folder is a folder: give the name of a file in it",
    "finetune kjv --out ''": "--out '' is not a file name: give one, such as out.npz",
    "finetune none.txt": "there is no file none.txt, nor a built-in text of that name: there are",
    "finetune folder": "folder is a folder: give a text file",
    f"finetune {os.devnull}": f"{os.devnull} is a device: give a text file",
    "finetune bytes.txt": "bytes.txt is not UTF-8 text: byte 3 is 0xff: save it as UTF-8",
    "finetune empty.txt": "empty.txt is empty: give a longer text",
    "finetune one.txt": "one.txt is one character: give a longer text",
    "finetune two.txt": "two.txt has too few tokens: 1 to train on, 1 held out, and a wi",
    "finetune short.txt": "short.txt has too few tokens: 70 to train on, 14 held out, and",
    "account gptt": "shape gptt: did you mean gpt2?",
    "account --method full": "--method and --policy go with a shape: account gpt2 --method full",
    "account gpt2 --base-dtype float16": "account gpt2: give --policy 'half base' for --base-dtype",
    "account --batch 1000000000": "there is not enough memory (Unable to allocate 1.86 TiB for an",
    "bench --engines numpyy": "--engines numpyy: there are minilora, minilora full, minilora reco",
    "bench --shapes round": "there is no shape 'round': there are classroom, long, gpt2-small, ti",
    "bench --shapes tiny:0": "there is no shape 'tiny:0': there are classroom, long, gpt2-small,",
    "bench --shapes ''": "--shapes '' leaves nothing to measure: give one, or --growth",
    "bench --rounds 0": "--rounds 0: give a whole number from 1",
    "bench --chart a.jpg": "--chart a.jpg: give a name that ends in .png or .svg or .pdf, such as",
    "bench --parity --rounds 3": "--parity measures otherwise: leave --rounds out",
    "bench --parity": "--parity compares a device with the host: give --backend cupy",
    "bench --growth --backend cupy": "--growth measures the host: leave --backend out",
    "pretrain --steps 0": "--steps 0: give a whole number from 1",
    "pretrain --out fox.npz": "--out fox.npz is there, and holds no model: give another name, or",
}


@once
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_a_sentence_and_returns_2(line, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    before = {path: path.read_bytes() for path in shelf.iterdir() if path.is_file()}
    assert cli.main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith(f"minilora: {MISTAKES[line]}")
    assert not FOREIGN.search(err.replace(r"\xff", "")) and len(err) < 330
    assert {path: path.read_bytes() for path in shelf.iterdir() if path.is_file()} == before


@once
@pytest.mark.parametrize(("line", "told"), [
    ("generate --adapter half.npz", "half.npz was trained over this base in half precision: give "),
    ("generate --adapter fox.npz --base plain.npz", "plain.npz already holds fox.npz: use it "),
    ("account --r 161 --batch 1 --window 4 --targets 0.attn.q", "attach: ΔW of blocks.0.attn.q ha"),
])
def test_a_warning_is_a_line_without_a_source(line, told, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([*line.split(), *["--tokens", "1"] * line.startswith("gen")]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"minilora: warning: {told}")


ERRORS = {
    "x": ValueError("x"), "no 'x'": KeyError("no 'x'"), "y": RuntimeError("y"),
    "there is not enough memory: ask for less, such as a smaller --batch or --r": MemoryError(),
    "there is no file a.npz": FileNotFoundError(2, "No such file or directory", "a.npz"),
    "a.npz: permission denied": PermissionError(13, "Permission denied", "a.npz"),
    "disk full": OSError("disk full"), "no way": OSError(5, "No way"),
    "z": OverflowError("z"), "deep": RecursionError("deep"),
    "end": EOFError("end"), "no cupy": ImportError("no cupy"), "nan": FloatingPointError("nan"),
}


@once
@pytest.mark.parametrize("told", ERRORS)
def test_what_goes_wrong_inside_is_told_without_a_traceback(told, capsys, monkeypatch):
    def fails(*args, **settings):
        raise ERRORS[told]

    monkeypatch.setattr(commands, "generate", fails)
    assert cli.main(["generate"]) == 2
    assert capsys.readouterr() == ("", f"minilora: {told}\n")


@once
@pytest.mark.parametrize("error", [TypeError, AttributeError, IndexError, AssertionError])
def test_a_mistake_of_ours_is_not_dressed_up_as_one_of_the_users(error, monkeypatch):
    def fails(*args, **settings):
        raise error

    monkeypatch.setattr(commands, "generate", fails)
    with pytest.raises(error):
        cli.main(["generate"])


@once
@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_nobody_reads_on_and_it_ends_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(ml.__file__).parent.parent)},
    )
    process.stdout.close()
    with process.stderr:
        told = process.stderr.read()
    assert process.wait() == 141 and told == b""


@once
def test_what_is_replaced_is_told(shelf, folder, capsys):
    (folder / "adapter.npz").write_bytes((shelf / "fox.npz").read_bytes())
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1"
    assert cli.main(line.split()) == 0
    assert "adapter.npz is there, and will be replaced" in capsys.readouterr().out
    for name in ("base", "a.b"):  # a name that a layer could not have is not the adapter's
        run(f"{line} --out {name}.npz", capsys)


@once
def test_a_window_is_what_the_base_reads_and_the_text_holds(folder, capsys):
    small = gpt2(dtype="float32", vocab_size=300, n_positions=12)
    small.tokenizer = data.BPE([])
    ml.save_model(small, folder / "small.npz")
    line = "finetune words.txt --base small.npz --steps 1 --batch 1 --checks 1"
    run(line, capsys)
    run(f"{line} --window 12", capsys)
    run("merge --base small.npz --adapter adapter.npz", capsys)
    (folder / "short.txt").write_text("abcdefgh\nj")
    assert cli.main(f"{line.replace('words', 'short')} --window 1".split()) == 2
    assert capsys.readouterr().err.endswith("takes 2 of each: give a longer text\n")
    (folder / "short.txt").write_text("a\nbcdefghij")
    assert cli.main(f"{line.replace('words', 'short')} --window 2".split()) == 2
    assert "few tokens: 2 to train on, 9 held out, and a window of 2 takes 3" in (
        told := capsys.readouterr().err
    )
    assert told.endswith("give a longer text, or --window 1 or less\n")
    run(f"{line.replace('words', 'short')} --window 1", capsys)


@once
def test_a_merge_that_is_wrong_is_not_written(folder, shelf, capsys, monkeypatch):
    proof = SimpleNamespace(passed=False, as_dict=lambda: {"checks": {"float64": False}})
    monkeypatch.setattr(commands.lora, "verify", lambda model, ids: proof)
    assert cli.main(["merge", "--adapter", str(shelf / "fox.npz"), "--json"]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["passed"] and told["verified"] == {"checks": {"float64": False}}
    assert err == f"{proof}\nminilora: model.npz is not written: the merge is wrong, see above\n"
    assert not list(folder.glob("*.npz"))


@once
def test_what_was_merged_is_known_afterwards(folder, capsys, monkeypatch):
    logits = SimpleNamespace(difference=0.0, bound=1.0)
    proof = SimpleNamespace(passed=True, as_dict=dict, logits=logits)  # it is not about that
    monkeypatch.setattr(commands.lora, "verify", lambda model, ids: proof)
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --out"
    run(f"{line} one.npz", capsys)
    run("merge --adapter one.npz --out one-in.npz", capsys)
    run(f"{line} two.npz --base one-in.npz --seed 1", capsys)
    run("merge --adapter two.npz --base one-in.npz --out both-in.npz", capsys)
    for adapter in ("one", "two"):
        assert cli.main(f"merge --adapter {adapter}.npz --base both-in.npz".split()) == 2
        assert f"both-in.npz already holds {adapter}.npz" in capsys.readouterr().err
    assert not (folder / "model.npz").exists()
    run(f"{line} wide.npz --dtype float64", capsys)  # the same numbers, so the same base
    run("merge --adapter wide.npz", capsys)


@once
def test_the_demo_adapts_accounts_and_merges_as_the_readme_shows_it(monkeypatch):
    """Of its steps only three run."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    shown = readme.split("<!-- demo -->")[1].split("\n5. ")[0].partition("1. ")[2]
    models, lines = [], []

    def fit(model, batches, optimizer, steps, schedule, log_every, **how):
        models.append(model.state_dict())
        if len(models) == 2:
            raise InterruptedError
        told = re.findall(r"step +(\d+)/(\d+) .* lr (\S+) ", shown)
        assert told == [(str(i), str(steps), f"{schedule(i - 1):.2e}")
                        for i in range(log_every, steps + 1, log_every)]
        assert optimizer.weight_decay == 0
        return ml.fit(model, batches, optimizer, 3, schedule=schedule, log_every=1, **how)

    monkeypatch.setattr(demo, "fit", fit)
    told = demo.demo(0, lines.append)
    with pytest.raises(InterruptedError):
        demo.demo(0, lines.append)
    assert all(np.array_equal(a, models[1][name]) for name, a in models[0].items())

    def words(text):
        return {re.sub(r"-?\d[\d,.e:-]*|\s+", " ", line).strip() for line in text.splitlines()
                if not line.strip().startswith(("step", "(furthest"))}

    assert {line for line in lines if line.startswith("LoRA, r")} <= {*shown.splitlines()}
    assert words(shown) <= words("\n".join(lines))
    assert re.search(r"held-out loss: (\S+) before", shown)[1] == f"{told['before']:.3f}"
    assert told["after"] < told["before"] and told["same_sample"]
    assert 0 < told["difference"] <= told["bound"]
    assert told["lora"]["gradients"]["measured"] == 4 * told["trainable"]
