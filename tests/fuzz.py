"""Every reader of files against damaged ones: `python tests/fuzz.py` prints a table.

A damaged file is a valid one to which something was done by one who knows how such a file is made:
bytes cut, flipped, moved; members dropped, swapped, renamed, compressed, of another shape or dtype;
headers that lie; any place of its JSON replaced. What a reader makes of it is either the right
object, or a refusal in the file's name after which nothing has changed; anything else is a fault.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from strategies import adapted, everything, gpt2, ids, same_bytes, shake

import minilora as ml
from minilora import data, lora
from minilora.files import checkpoint

META = f"{checkpoint.META}.npy"
ODD = [
    None, True, False, 0, -1, 1, 3, 10**7, 10**8, 2**63, -(2**31), 0.0, 0.5, -2.5, 1e308, "", "x",
    "q", "default", "gpt2", "model", "tok.W", [], [0], ["q"], [[0, 1]], {}, {"a": 1},
    [[[[]]]], "\u0000", "b" * 3000,
]


# What is done to a file.


def take_apart(whole: bytes) -> list[tuple[str, bytes]]:
    """(name, bytes) of each member."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def put_together(members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", how) as archive:
        for name, held in members:  # two of a name make it warn
            archive.writestr(zipfile.ZipInfo(name), held, compress_type=how)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        np.save(out, array, allow_pickle=True)
    return out.getvalue()


def cut(whole: bytes, rng: random.Random) -> bytes:
    return whole[: rng.randrange(len(whole))]


def flipped(whole: bytes, rng: random.Random) -> bytes:
    out = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def moved(whole: bytes, rng: random.Random) -> bytes:
    """A piece dropped, doubled, zeroed, or noise in its place."""
    a, b = sorted(rng.randrange(len(whole) + 1) for _ in range(2))
    b = min(b, a + rng.choice([1, 4, 30, 400]))
    piece = [b"", whole[a:b] * 2, bytes(b - a), rng.randbytes(b - a)]
    return whole[:a] + rng.choice(piece) + whole[b:]


def directory(whole: bytes, rng: random.Random) -> bytes:
    """A field of the list of members, or of the end of the file, is another number."""
    out, at = bytearray(whole), whole.rfind(b"PK\5\6")
    starts = [at, *(i for i in range(len(whole) - 4) if whole[i : i + 4] in (b"PK\1\2", b"PK\3\4"))]
    place = rng.choice(starts) + rng.randrange(4, 22)
    width = rng.choice([1, 2, 4])
    number = rng.choice([0, 1, 8, 255, 65535, 2**32 - 1, rng.randrange(2**32)])
    out[place : place + width] = struct.pack("<L", number)[:width]
    return bytes(out)


def members(whole: bytes, rng: random.Random) -> bytes:
    """A member dropped, doubled, renamed, swapped with another one, compressed, added."""
    held = take_apart(whole)
    i, j = (rng.randrange(len(held)) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        del held[i]
    elif kind == 1:
        held.insert(j, held[i])
    elif kind == 2:
        name = held[i][0]
        to = [
            f"x{name}",
            name[:-4],
            f"{name}.npy",
            "../x.npy",
            "",
            f"{name[:-4]}.W.npy",
            held[j][0],
        ]
        held[i] = rng.choice(to), held[i][1]
    elif kind == 3:
        held[i], held[j] = (held[i][0], held[j][1]), (held[j][0], held[i][1])
    elif kind == 4:
        return put_together(held, zipfile.ZIP_DEFLATED)
    else:
        held.insert(i, (rng.choice(["blocks.9.attn.q.A.npy", "x", "x.npy"]), held[j][1]))
    return put_together(held)


def numbers(whole: bytes, rng: random.Random) -> bytes:
    """A member's array is of another shape or dtype, or holds what is no number."""
    held = take_apart(whole)
    i = rng.choice([i for i, (name, _) in enumerate(held) if name != META] or [0])
    array = np.load(io.BytesIO(held[i][1]))
    wide = array.astype("float64")
    size = max(1, array.size)
    nasty = np.array([rng.choice([np.nan, np.inf, -np.inf, 1e300])] * size)
    made = rng.choice([
        wide.T, wide.reshape(-1), wide[None], wide.reshape(-1)[: size // 2], np.zeros((0, 3)),
        wide.astype("int64"), wide.astype("complex64"), wide.astype("bool"), wide.astype("U4"),
        wide.astype("float16"), wide.astype(">f4"), wide, np.array(["x", None], object),
        nasty.reshape(array.shape) if array.size else wide, np.asfortranarray(wide),
        np.zeros((*array.shape, 1)), np.float64(3.0), wide.astype("M8[s]"),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
    ])
    held[i] = held[i][0], npy(made)
    return put_together(held)


def headers(whole: bytes, rng: random.Random) -> bytes:
    """A header says something else than what follows it."""
    held = take_apart(whole)
    i = rng.randrange(len(held))
    name, old = held[i]
    body = old[10 + int.from_bytes(old[8:10], "little") :]
    shapes = ["()", "(1,)", "(10**9,)", "(1000000000000,)", "(-1,)", "(2, 3", "(0,)", "(2, 8)",
              "(4294967296, 4294967296)", "(8, 2)", "[2]", "(2.0,)", "(True,)"]
    kinds = ["'<f4'", "'<f8'", "'|O'", "'<f2'", "'<i8'", "'|u1'", "[('a', '<f4')]", "'<c8'"]
    order = rng.choice(["False", "True", "0"])
    text = f"{{'descr': {rng.choice(kinds)}, 'fortran_order': {order}, 'shape': "
    text += f"{rng.choice(shapes)}, }}"
    if rng.random() < 0.1:
        text = rng.choice(["(" * 5000, "-" * 5000 + "1", "__import__('os')", "", "{" * 300])
    head = text.encode().ljust(118) + b"\n"
    version = rng.choice([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"])
    held[i] = name, b"\x93NUMPY" + version + struct.pack("<H", len(head)) + head + body
    return put_together(held)


def facts(whole: bytes, rng: random.Random) -> bytes:
    """A place of its JSON is replaced, dropped, doubled, or all of it is no JSON."""
    held = dict(take_apart(whole))
    meta = json.loads(np.load(io.BytesIO(held[META])).tobytes())
    text = None
    if rng.random() < 0.15:
        good = json.dumps(meta)
        text = rng.choice([
            good[: rng.randrange(len(good))], "[" * 2000, "[]", "", "null", '"x"', "NaN",
            good[:-1] + ', "kind": "x"}', good.replace("1", "NaN"), good.replace("2", "1e999"),
            good.replace("1", "9" * 5000), "\ud800", good + " ", good[:-1] + ', "more": 1}',
        ])
    else:
        places = [(meta, key) for key in meta]
        for holder, key in places:
            below = holder[key]
            if isinstance(below, dict):
                places += [(below, key) for key in below]
            elif isinstance(below, list):
                places += [(below, i) for i in range(len(below))]
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "q", "blocks.0.attn.v", f"{key}x"])] = holder.pop(key)
        else:
            holder[key] = rng.choice(ODD)
    raw = (json.dumps(meta) if text is None else text).encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        raw = b"\xff" + raw
    held[META] = npy(np.frombuffer(raw, np.uint8))
    return put_together([*held.items()])


DAMAGES = [cut, flipped, moved, directory, members, numbers, headers, facts, facts]
BYTES = (cut, flipped, moved, directory)  # after which what is still read must be the same thing


# Who reads it, into what, and is it right?


class Reader:
    """make(folder) writes a valid file; read(path) gives what is compared; subject() for before."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{type(self).__name__.lower()}.npz"
        self.make()
        self.whole = self.path.read_bytes()
        self.right = self.read()
        self.fresh()

    def fresh(self) -> None:
        """Something new to read into."""

    def state(self) -> object:
        """All that a refusal has to leave alone."""


class Model(Reader):
    """ml.load_model"""

    def make(self):
        model = gpt2(0, "float32", vocab_size=260)
        model.tokenizer = data.BPE([(97, 98), (256, 99)])
        ml.save_model(model, self.path)

    def read(self):
        model = ml.load_model(self.path)
        assert np.isfinite(ml.asnumpy(model(ids()).data)).all()
        if model.tokenizer is not None:
            model.tokenizer.decode(model.tokenizer.encode("abc"))
        again = self.path.with_suffix(".again.npz")
        ml.save_model(model, again)  # what was read is whole enough to be written and read
        ml.load_model(again)
        merges = model.tokenizer and model.tokenizer.merges
        return model.state_dict(), {"merges": merges, "config": model.config}


class Adapter(Reader):
    """lora.load"""

    def make(self):
        model, _ = adapted(0, "float32", targets=("q", "tok"), trainable="ln_f", alpha=5)
        lora.save(model, self.path)
        self.fresh()

    def fresh(self):
        self.model = gpt2(0, "float32")
        self.optimizer = ml.SGD(self.model.trainable_parameters(), lr=0.1)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        with warnings.catch_warnings(action="ignore"):  # trained on another base
            lora.load(self.model, self.path)
        (name,) = self.model.adapters.active
        assert np.isfinite(ml.asnumpy(self.model(ids()).data)).all()
        again = self.path.with_suffix(".again.npz")
        arrays, meta = checkpoint.read(lora.save(self.model, again))
        layers = {at: tuple(of.values()) for at, of in meta["layers"].items()}
        return arrays, {"name": name, "layers": layers, "config": self.model.adapters.configs[name]}


class Run(Reader):
    """ml.fit, going on from a checkpoint"""

    def make(self):
        self.fresh()
        ml.fit(self.model, self.batches, self.optimizer, 3, checkpoint=self.path, progress=False,
               held_out=self.batches)
        self.fresh()

    def fresh(self):
        self.model, _ = adapted(0, "float32", dropout=0.5, alpha=5)
        self.batches = [(ids(0), ids(1)), (ids(2), ids(3))]
        self.optimizer = ml.AdamW(self.model.trainable_parameters(), lr=0.01)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        history = ml.fit(self.model, self.batches, self.optimizer, 3, checkpoint=self.path,
                         progress=False, held_out=self.batches)
        arrays = self.model.state_dict() | self.optimizer.state_dict()
        return arrays, {"history": history}


class State(Reader):
    """Module.load_state_dict, of arrays from a file"""

    which = "model"

    def make(self):
        self.fresh()
        shake(self.model.parameters(), 1)
        shake([ml.Tensor(a) for a in self.optimizer.arrays().values()], 2)
        checkpoint.write(self.path, getattr(self, self.which).state_dict(), {})
        self.fresh()

    def fresh(self):
        self.model = gpt2(0, "float32")
        self.optimizer = ml.AdamW(self.model.trainable_parameters(), lr=0.01)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        arrays, _ = checkpoint.read(self.path)
        into = getattr(self, self.which)
        try:
            into.load_state_dict(arrays)
        except (ValueError, KeyError) as error:  # as of any dict: it has no file's name
            raise ValueError(f"{self.path}: {error.args[0]}") from None
        return into.state_dict(), {}


class Moments(State):
    """Optimizer.load_state_dict, of arrays from a file"""

    which = "optimizer"


READERS = [Model, Adapter, Run, State, Moments]


def judged(reader: Reader, seed: int) -> tuple[str, str]:
    """("right", "other", "refused" or "FAULT", what was done and came of it) for one damaged file.

    other: a file that hangs together and tells of another thing, such as another alpha.
    """
    rng = random.Random(seed)
    damage = rng.choice(DAMAGES)
    reader.path.write_bytes(damage(reader.whole, rng))
    before, began = reader.state(), time.process_time()
    try:
        got = reader.read()
    except ValueError as error:
        said = str(error)
        if not said.startswith(str(reader.path)):
            return "FAULT", f"{damage.__name__}: without the file's name: {said}"
        if reader.state() != before:
            return "FAULT", f"{damage.__name__}: refused, and something changed: {said}"
        if time.process_time() - began > 2:
            return "FAULT", f"{damage.__name__}: slow"
        return "refused", said
    except Exception as error:
        return "FAULT", f"{damage.__name__}: {type(error).__name__}: {error}"
    reader.fresh()
    same = got[0].keys() == reader.right[0].keys() and got[1] == reader.right[1]
    same = same and all(same_bytes(got[0][name], a) for name, a in reader.right[0].items())
    if not same and damage in BYTES:
        return "FAULT", f"{damage.__name__}: another thing was read"
    return "right" if same else "other", damage.__name__


def main() -> int:
    told = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    told.add_argument("--inputs", type=int, default=10_000, help="damaged files a reader (10000)")
    told.add_argument("--seed", type=int, default=0, help="of the first one (0)")
    names = [kind.__name__ for kind in READERS]
    told.add_argument("readers", nargs="*", help=f"of {', '.join(names)} (all)")
    args = told.parse_args()
    if odd := set(args.readers) - set(names):
        told.error(f"there is no reader {min(odd)}: there are {', '.join(names)}")
    print(f"{'reader':<10}{'inputs':>8}{'right':>8}{'other':>8}{'refused':>9}{'else':>6}  seconds")
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in READERS:
            if args.readers and kind.__name__ not in args.readers:
                continue
            reader, counts, began = kind(Path(folder)), Counter(), time.perf_counter()
            for seed in range(args.seed, args.seed + args.inputs):
                verdict, why = judged(reader, seed)
                counts[verdict] += 1
                if verdict == "FAULT":
                    print(f"  {kind.__name__}, seed {seed}: {why}", file=sys.stderr)
                    reader.fresh()
            bad += counts["FAULT"]
            row = "".join(f"{counts[v]:>{w}}" for v, w in
                          (("right", 8), ("other", 8), ("refused", 9), ("FAULT", 6)))
            seconds = time.perf_counter() - began
            print(f"{kind.__name__:<10}{args.inputs:>8}{row}{seconds:>9.0f}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
