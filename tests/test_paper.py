"""The paper's numbers: by formula, by running the model, and as printed in the paper."""

import dataclasses
import json

import pytest
from conftest import THOROUGH

from minilora import accounting, cli, methods
from minilora.accounting import claims
from minilora.accounting.paper import Both, Chosen, status
from minilora.models.families import SHAPES

pytestmark = pytest.mark.usefixtures("numpy_only")
ROWS = (*claims.ROWS, *claims.SIZES)
TRIED = [i for i, row in enumerate(ROWS)  # of the largest models only some; the command runs all
         if THOROUGH or row.config.d_model < 1024 or i % 12 == 0]


@pytest.mark.parametrize("i", TRIED)
def test_formula_and_run_give_the_registered_number(i):
    row = ROWS[i]
    assert row.formula == row.exact == row.ran(), (row.source, row.what)


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_each_formula_gives_the_registered_number(i):
    assert ROWS[i].formula == ROWS[i].exact


def test_every_mismatch_has_a_reason_and_no_row_appears_twice():
    for row in (*ROWS, *claims.RATIOS):
        assert row.status != "mismatch" or row.why, row.what
        assert row.printed and row.source
    assert len(ROWS) == len({(row.source, row.what, str(row.shape)) for row in ROWS})


@pytest.mark.parametrize(
    ("exact", "printed", "unit", "wanted"),
    [
        (294_912, "0.3", 10**6, "match"), (491_520, "0.4", 10**6, "truncated"),
        (3_171_840, "3.0", 10**6, "MiB"), (124_645_632, "125.0", 10**6, "nominal"),
        (1_564_549_632, "1500.0", 10**6, "nominal"), (603_979_776, "603.8", 10**6, "mismatch"),
        (603_979_776, "604.0", 10**6, "match"), (603_979_776, "603.9", 10**6, "truncated"),
        (354_310_144, "355.0", 10**6, "mismatch"), (18_874_368, "18", 10**6, "truncated"),
        (350_443_634_688, "350", 10**9, "match"), (0.01077, "0.01", 1, "match"),
        (1_250_000, "1.3", 10**6, "match"), (1_150_000, "1.2", 10**6, "match"),  # half goes up
        (23_002_848, "23.00", 10**6, "match"), (174_604_259_328, "175,255.8", 10**6, "mismatch"),
    ],
)
def test_the_status_of_a_printed_number(exact, printed, unit, wanted):
    assert status(exact, printed, unit) == wanted


def test_two_methods_together_count_once():
    small = dataclasses.replace(SHAPES["gpt2"], vocab_size=10, n_positions=4, d_model=8, n_layers=2,
                                n_heads=2)
    norms = Chosen(("blocks.*.ln1",), lambda c: 2 * c.d_model * c.n_layers)
    for method in (methods.AdapterH(r=3), methods.LoRA(r=2), methods.Full()):
        head = Chosen((), lambda c: 0, ((8, 3, True),))
        row = claims.Row("", "", small, Both(method, head), 0, "1")
        assert row.ran() == row.formula == method.count(small) + 27
    assert claims.Row("", "", small, Both(methods.AdapterP(r=1), norms), 0, "1").ran() == (
        2 * (2 * 8 + 1 + 8) + 32
    )


def test_the_command_prints_every_row_and_fails_where_one_is_wrong(monkeypatch, capsys):
    some = [row for row in claims.ROWS if row.shape == "gpt2-medium" and "LoRA" in row.what]
    some.append(next(row for row in claims.ROWS if row.status == "MiB"))
    some.append(next(row for row in claims.ROWS if "(tried)" in row.what))
    monkeypatch.setattr(claims, "ROWS", some)
    monkeypatch.setattr(claims, "SIZES", claims.SIZES[-1:])
    assert cli.main(["reproduce", "counts"]) == 0
    out = capsys.readouterr().out
    assert all(f"{row.exact:,}" in out and row.what in out and row.why in out for row in some)
    assert f"{len(some) + 4} numbers: " in out and "; 1 more were tried as an" in out
    assert "393,216" in out
    assert cli.main(["reproduce", "counts", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["counts"]) == len(some) and result["passed"] is True
    assert sum(result["statuses"].values()) == len(some) + 4
    assert result["tried"] == {"mismatch": 1}
    assert cli.main(["reproduce", "counts", "--markdown"]) == 0
    assert capsys.readouterr().out.count("\n|---|") == 3
    monkeypatch.setattr(claims, "ROWS", [dataclasses.replace(some[0], exact=1)])
    assert cli.main(["reproduce", "counts"]) == 1
    assert "1 rows differ from the registered value" in capsys.readouterr().err


def test_methods_stand_side_by_side(capsys, monkeypatch):
    line, every = "account gpt2 --window 8 --compare", accounting.COMPARED
    tables = {type(row.method) for row in claims.ROWS if isinstance(row.method, methods.Method)}
    assert {type(method) for method in every} == tables  # every method that the paper counts
    monkeypatch.setattr(accounting, "COMPARED", [every[i] for i in (0, 2, 3, 6, 11)])
    assert cli.main([*line.split(), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [*result] == [accounting.label(method) for method in accounting.COMPARED]
    for method in accounting.COMPARED:
        one = result[accounting.label(method)]
        assert one["parameters"]["trainable"] == method.count(SHAPES["gpt2"])
        assert one["checkpoint"] == 4 * one["parameters"]["trainable"]
    assert result["full"]["bytes"]["peak"] == max(one["bytes"]["peak"] for one in result.values())
    assert cli.main(line.split()) == 0
    out = capsys.readouterr().out
    assert "lora r=8 targets=q,v" in out and max(map(len, out.splitlines())) <= 115
    half = "account roberta-base --compare --policy"
    assert cli.main([*half.split(), "half base"]) == 0
    out = capsys.readouterr().out
    assert "1 × 248 tokens, AdamW, half base" in out  # 512, less 256 + 8
    assert "full training has no frozen base" in out and "preembed lp=256 li=8  " in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("account gpt2 --method bitfit --lp 3", "or lora+prelayer: bitfit has no settings"),
        ("account gpt2 --method bitfit --r 8", "rslora: bitfit has no settings"),
        ("account gpt2 --compare --targets q", "its own methods and sizes: leave out --targets"),
        ("account gpt2 --method lora --compare", "its own methods and sizes: leave out --method"),
        ("account --compare", "--compare needs a shape"),
        ("account --li 3", "--li needs a shape"),
        ("reproduce", "reproduce needs to know what to reproduce: counts"),
        ("reproduce everything", "choose all, counts"),
    ],
)
def test_options_that_do_not_go_together_are_refused(line, words, capsys):
    assert cli.main(line.split()) == 2
    assert words in capsys.readouterr().err
