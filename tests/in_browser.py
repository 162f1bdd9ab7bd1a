"""What minilora does in a browser's Python, and what it says there. test_live.py runs this file."""

import sys

import numpy as np

import minilora as ml
from minilora import accounting, data, lora
from minilora.data.tasks import sql
from minilora.exercises import book
from minilora.files.journal import Journal
from minilora.jobs import executors
from minilora.site.cells import Cells

assert sys.platform == "emscripten" and "minilora.backend.threads" in sys.modules


def refused(error, words, call, *args):
    try:
        call(*args)
    except error as found:
        assert words in str(found), found
    else:
        raise AssertionError(f"{words!r} was not said")


# A base, an adapter, some steps, a file, a merge.
model = ml.GPT2(ml.GPT2Config(vocab_size=32, n_positions=16, d_model=16, n_layers=1, n_heads=2),
                rng=0, dtype="float32")
lora.attach(model, lora.LoRAConfig(r=2, alpha=4, targets=("q", "v")), rng=0)
batches = data.Windows(np.arange(500) % 32, 2, 8, seed=0)
held_out = [batches[0]]
before = ml.evaluate(model, held_out)
optimizer = ml.AdamW(model.trainable_parameters(), lr=1e-2)
ml.fit(model, batches, optimizer, 20, progress=False)
after = ml.evaluate(model, held_out)
assert after < before
path = lora.save(model, "adapter.npz")
assert lora.verify(model, held_out[0][0]).passed
lora.merge(model)
assert abs(ml.evaluate(model, held_out) - after) < 1e-4
path = ml.save_model(model, "model.npz")
assert ml.evaluate(ml.load_model(path), held_out) == ml.evaluate(model, held_out)
ml.load_base("shakespeare")
with Journal("runs.jsonl") as journal:
    journal.add("a", {"x": 1})
assert "a" in Journal("runs.jsonl")

# What is missing is said where it is asked for.
assert ml.threads(1) == ml.threads() == 1
refused(ValueError, "threads: Python has one thread in a browser: n must be 1, not 2",
        ml.threads, 2)
refused(OSError, "shapes: this Python has addresses of 32 bits, as in a browser",
        accounting.plan, "gpt3-175b")
refused(ValueError, "no process can be started in a browser: use the driver without a pool",
        executors.pool("processes", 2).__enter__)
refused(ImportError, "mini-sql runs its queries in SQLite, which this Python came without",
        sql.execute, "select", sql.question(np.random.default_rng(0)).table)

# The cells of the page, and its checks.
cells, said = Cells(), []
assert cells.run("a = 1\nprint('x')\na + 1", "cell 1", said.append) == ""
assert "".join(said) == "x\n2\n"
assert cells.run("a +", "cell 2", said.append).endswith("SyntaxError: invalid syntax")
assert "the file has no function unbroadcast" in cells.check("02", "x = 1\n")[0]
for number in ("02", "06"):
    text, solution = cells.check(number, book.exercise(number).solution())
    assert "✗" not in text and solution.startswith("import numpy"), text
    text, solution = cells.check(number, book.exercise(number).stub())
    assert "is not written yet" in text and not solution
print("all of it ran")
