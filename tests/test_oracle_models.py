"""The models against Hugging Face's, on shared weights: equal logits, losses and gradients."""

import numpy as np
import pytest
from strategies import DEBERTAS, made, normal, seen

import minilora as ml
from minilora import ops
from minilora.interop import checkpoints, names, settings
from minilora.models.families import SHAPES, build

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
pytestmark = [  # what 5.0 warns of while it is imported
    pytest.mark.oracle, pytest.mark.usefixtures("numpy_first"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
WITHIN = {
    "float32": 1e-5,
    "float64": 1e-6,  # DeBERTa's there takes the root of its scores' scale in float32
}

def fill(theirs, model) -> None:
    """Our weights into their model, every one."""
    own = weights(model)
    for name, p in theirs.named_parameters():
        with torch.no_grad():
            p.copy_(torch.tensor(own.pop(name)))
    assert own == {}


def weights(model, arrays=None) -> dict[str, np.ndarray]:
    """Our weights, or arrays in their place, by the names and in the layout of their model."""
    layout, kind = names.layout_of(type(model.config)), names.kind_of(model.config)
    tensors = checkpoints.views(model, arrays)
    return {layout.full(n, kind): checkpoints.joined(parts) for n, parts in tensors.items()}


def off(ours, theirs, at_least: float = 0.0) -> float:
    """How far apart they are, in units of their own size."""
    a, b = ml.asnumpy(ours).astype("f8"), theirs.detach().numpy().astype("f8")
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), at_least))


def compare(model, theirs, seed: int, padded: bool) -> dict[str, float]:
    """How far the logits, the loss and each gradient are from theirs."""
    fill(theirs.to(getattr(torch, str(model.tok.W.dtype))).eval(), model)
    c = model.config
    labels, rng = getattr(c, "num_labels", 0), np.random.default_rng(seed)
    at, mask = seen(model, seed, padded)
    how = {"attention_mask": None if mask is None else torch.tensor(mask.astype("int64"))}
    ours = {"mask": mask} if mask is not None else {}
    real = np.ones(at.shape, bool) if mask is None else mask
    if getattr(c, "n_types", 0) > 1:
        ours["types"] = rng.integers(0, c.n_types, at.shape)
        how["token_type_ids"] = torch.tensor(ours["types"])
    targets = rng.integers(0, labels or c.vocab_size, len(at) if labels else at.shape)
    if not labels:
        targets[~real | (rng.random(at.shape) < 0.3)] = -100
        targets[0, 1] = 1
    y, z = model(at, **ours), theirs(torch.tensor(at), **how).logits
    loss = ops.cross_entropy(y, targets)
    wanted = torch.nn.functional.cross_entropy(
        z.reshape(-1, z.shape[-1]), torch.tensor(targets.reshape(-1))
    )
    loss.backward()
    wanted.backward()
    keep = slice(None) if labels else real
    told = {"logits": off(ml.asnumpy(y)[keep], z[keep]), "loss": off(loss, wanted)}
    ours = weights(model, {name: p.grad for name, p in model.named_parameters()})
    for name, p in theirs.named_parameters():
        # softmax does not feel what all keys have: such a gradient is 0, and all of it is rounding
        # (with p2c it is felt, and small: float64 sees whether it is right)
        zero = name.endswith("pos_key_proj.bias") or (
            name.endswith((".self.key.bias", "key_proj.bias", "encoder.LayerNorm.bias"))
            and ("p2c" not in getattr(c, "pos_att_type", ()) or str(y.dtype) == "float32")
        )
        beside = theirs.get_parameter(name.replace("bias", "weight")).grad.norm() if zero else 0.0
        told[name] = off(ours[name], p.grad, float(beside))
    return told


def theirs_of(model):
    """Their model of our config."""
    kind = names.layout_of(type(model.config)).heads[names.kind_of(model.config)].architecture
    raw = settings.config_to(model.config) | {"attn_implementation": "eager"}
    if kind.startswith(("Bert", "Deberta")):
        raw["pad_token_id"] = 1  # as in `seen`: its row has no gradient there
    return getattr(hf, kind)(hf.AutoConfig.for_model(**raw))


CASES = [
    ("gpt2", {}), ("gpt2", {"d_ff": 5, "n_layers": 3}),
    ("bert", {}), ("bert", {"d_ff": 5, "n_layers": 3, "n_heads": 4}), ("bert", {"num_labels": 3}),
    ("roberta", {}), ("roberta", {"d_ff": 5, "n_layers": 1, "n_heads": 4}),
    ("roberta", {"num_labels": 3}),
    *(("deberta", sizes) for sizes in DEBERTAS),
    *(("deberta", {"num_labels": 3, **sizes}) for sizes in DEBERTAS[:3]),
    ("llama", {"qkv_bias": False}),
    ("llama", {"qkv_bias": False, "tied": False, "n_heads": 4, "n_kv_heads": 2, "rope_theta": 1e6}),
    ("llama", {"qkv_bias": False, "n_heads": 6, "n_kv_heads": 2, "d_model": 24, "n_layers": 3,
               "eps": 0.1}),
    ("llama", {"qkv_bias": False, "tied": False, "n_heads": 2, "n_kv_heads": 2, "rope_theta": 5.0}),
    ("llama", {"rope_theta": 1e6}),  # Qwen2, as it has biases
    ("llama", {"tied": False, "n_heads": 4, "n_kv_heads": 4, "eps": 1e-6}),
]


@pytest.mark.parametrize(
    ("dtype", "padded"),
    [("float32", True), ("float64", False),
     *(pytest.param(*both, marks=pytest.mark.thorough)
       for both in [("float32", False), ("float64", True)])],
)
@pytest.mark.parametrize(("family", "sizes"), CASES)
def test_logits_loss_and_every_gradient_are_theirs(family, sizes, dtype, padded):
    model = made(family, 3, dtype, **sizes)
    told = compare(model, theirs_of(model), 3, padded and family not in ("gpt2", "llama"))
    within = WITHIN["float32" if family == "llama" else dtype]  # its norms and angles are always so
    assert {name: x for name, x in told.items() if not x <= within} == {}


@pytest.mark.parametrize(
    ("sizes", "steps"), [(DEBERTAS[0], 2), (DEBERTAS[1], 3), (DEBERTAS[2], 2)]
)
def test_the_last_block_reads_again_as_often_as_theirs(sizes, steps):
    theirs = theirs_of(made("deberta", 4, "float32", **sizes))
    model = made("deberta", 4, "float32", z_steps=steps, **sizes)

    def again(encoder, given, out):  # as their model has it, where it fails: it takes a tuple apart
        (x, mask), query = given, out.hidden_states[-1]
        for _ in range(1, steps):
            query, _ = encoder.layer[-1](
                out.hidden_states[-2], encoder.get_attention_mask(mask), query_states=query,
                relative_pos=encoder.get_rel_pos(x), rel_embeddings=encoder.get_rel_embedding(),
            )
        out.hidden_states = (*out.hidden_states, query)

    theirs.deberta.encoder.register_forward_hook(again)
    told = compare(model, theirs, 4, True)
    assert {name: x for name, x in told.items() if not x <= WITHIN["float32"]} == {}


@pytest.mark.parametrize("sizes", DEBERTAS)
def test_what_the_last_block_says_is_theirs(sizes):
    model = made("deberta", 5, "float32", **sizes)
    theirs = theirs_of(model).eval()
    fill(theirs, model)
    at, mask = seen(model, 5, True)
    with ml.no_grad(), torch.no_grad():
        ours = model.encode(at, mask)
        wanted = theirs.deberta(torch.tensor(at), torch.tensor(mask.astype("int64")))[0]
    assert off(ml.asnumpy(ours)[mask], wanted[torch.tensor(mask)]) <= WITHIN["float32"]


@pytest.mark.parametrize(
    ("size", "most"), [(256, 512), (4, 8), (7, 12), (32, 512), (2, 3), (3, 5), (64, 1024)]
)
def test_buckets_are_theirs(size, most):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    from minilora.models.deberta import bucket

    away = np.arange(-most + 1, most)
    wanted = make_log_bucket_position(torch.tensor(away), size, most).long().numpy()
    assert bucket(away, size, most).tolist() == wanted.tolist()


@pytest.mark.parametrize("shape", ["bert-base", "roberta-base", "deberta-v2-xxlarge", "gpt2"])
def test_a_model_of_the_published_size_has_their_names_and_shapes(shape):
    with ml.using("shapes"), torch.device("meta"):
        model = build(SHAPES[shape], rng=0)
        theirs = theirs_of(model)
        theirs.tie_weights()  # 5.0 has it done by whoever loads weights
        layout, kind = names.layout_of(type(model.config)), names.kind_of(model.config)
        own = {layout.full(name, kind): checkpoints.shape_of(parts)
               for name, parts in checkpoints.views(model).items()}
    assert own == {name: tuple(p.shape) for name, p in theirs.named_parameters()}


def test_weights_of_another_model_are_not_equal():
    """The comparison sees what it should: one number changed in one matrix."""
    model = made("deberta", 3, "float32")
    theirs = theirs_of(model)
    original = fill

    def changed(there, ours):
        original(there, ours)
        with torch.no_grad():
            there.deberta.encoder.rel_embeddings.weight[3] += 0.01 * torch.tensor(normal(0, 8))

    globals()["fill"] = changed
    try:
        told = compare(model, theirs, 3, True)
    finally:
        globals()["fill"] = original
    assert told["logits"] > WITHIN["float32"]
