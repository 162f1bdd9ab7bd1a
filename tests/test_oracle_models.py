"""The models against Hugging Face's, on shared weights: equal logits, losses and gradients."""

import re

import numpy as np
import pytest
from strategies import DEBERTAS, made, normal, seen

import minilora as ml
from minilora import ops
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

NAMES = [  # theirs -> ours, tried in this order
    (r"^(bert|roberta|deberta|transformer|model)\.", ""),
    (r"embed_tokens", "tok"), (r"self_attn\.(.)_proj", r"attn.\1"),  # a Llama's
    (r"input_layernorm", "ln1"), (r"post_attention_layernorm", "ln2"), (r"^norm\.", "ln_f."),
    (r"mlp\.(gate|up|down)_proj", r"mlp.\1"), (r"^layers\.", "blocks."),
    (r"lm_head\.weight", "head.W"),
    (r"(cls\.predictions\.transform|cls\.predictions|lm_head|pooler)\.", "head."),
    (r"classifier\.dense", "head.dense"), (r"classifier(\.out_proj)?", "head.out"),
    (r"embeddings\.LayerNorm", "ln_e"), (r"encoder\.LayerNorm", "ln_r"),
    (r"embeddings\.word_embeddings|wte", "tok"),
    (r"embeddings\.position_embeddings|wpe", "pos"),
    (r"embeddings\.token_type_embeddings", "types"), (r"encoder\.rel_embeddings", "rel"),
    (r"encoder\.conv\.conv", "conv.mix"), (r"encoder\.conv", "conv"),
    (r"(encoder\.layer|^h)\.", "blocks."),
    (r"attention\.self\.(pos_)?([a-z])\w+", r"attn.\1\2"),  # pos_key_proj is pos_k
    (r"attention\.output\.dense|attn\.c_proj", "attn.o"), (r"attention\.output\.LayerNorm", "ln1"),
    (r"intermediate\.dense|mlp\.c_fc", "mlp.up"), (r"output\.dense|mlp\.c_proj", "mlp.down"),
    (r"output\.LayerNorm", "ln2"), (r"LayerNorm|layer_norm", "ln"), (r"ln_([12])", r"ln\1"),
    (r"(ln\w*)\.weight", r"\1.g"), (r"weight$", "W"), (r"bias$", "b"),
]


def named(theirs: str) -> str:
    for pattern, name in NAMES:
        theirs = re.sub(pattern, name, theirs)
    return theirs


def parts(name: str, t):
    """(our name, its part of their parameter), each a view in our layout."""
    ours = named(name)
    if ".attn.c_attn." in name:  # GPT-2 has one matrix for three, and all of them on their side
        for letter, part in zip("qkv", t.chunk(3, -1)):
            yield ours.replace("c_attn", letter), part.T if part.ndim == 2 else part
    elif ".c_" in name and t.ndim == 2:
        yield ours, t.T
    elif t.ndim == 3:  # the convolution's: (out, in, place)
        yield ours, t.permute(0, 2, 1).reshape(len(t), -1)
    else:
        yield ours, t


def fill(theirs, model) -> None:
    """Our weights into their model, every one."""
    own, filled = model.state_dict(), set()
    for name, p in theirs.named_parameters():
        with torch.no_grad():
            if p.ndim == 3:
                ((ours, _),) = parts(name, p)
                wide = torch.tensor(own[ours]).reshape(p.shape[0], p.shape[2], p.shape[1])
                p.copy_(wide.permute(0, 2, 1))
                filled.add(ours)
                continue
            for ours, part in parts(name, p):
                part.copy_(torch.tensor(own[ours]))
                filled.add(ours)
    assert filled == set(own)


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
    grads = {name: t for n, p in theirs.named_parameters() for name, t in parts(n, p.grad)}
    for name, p in model.named_parameters():
        # softmax does not feel what all keys have: such a gradient is 0, and all of it is rounding
        # (with p2c it is felt, and small: float64 sees whether it is right)
        zero = name.endswith("pos_k.b") or (
            name.endswith(("attn.k.b", "ln_r.b"))
            and not hasattr(c, "rope_theta")  # it is turned with its key, so it is felt
            and ("p2c" not in getattr(c, "pos_att_type", ()) or str(p.dtype) == "float32")
        )
        beside = grads[f"{name[:-1]}{'g' if 'ln' in name else 'W'}"].norm() if zero else 0.0
        told[name] = off(p.grad, grads[name], float(beside))
    return told


def theirs_of(model, kind: str, **more):
    """Their model of our config, by the name of its class."""
    c = model.config
    config = {
        "vocab_size": c.vocab_size, "attn_implementation": "eager",
        "num_labels": getattr(c, "num_labels", 0) or 2,
    }
    if kind.startswith("GPT2"):
        made_of = hf.GPT2Config(
            **config, n_positions=c.n_positions, n_embd=c.d_model, n_layer=c.n_layers,
            n_head=c.n_heads, n_inner=c.d_ff or None, bos_token_id=0, eos_token_id=0,
        )
        return getattr(hf, kind)(made_of)
    config |= {
        "hidden_size": c.d_model, "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_ff or 4 * c.d_model, "max_position_embeddings": c.n_positions,
    }
    if kind.startswith(("Llama", "Qwen2")):
        config |= {
            "num_key_value_heads": c.n_kv_heads, "rms_norm_eps": c.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
            "tie_word_embeddings": c.tied, "hidden_act": "silu",
        }
        return getattr(hf, kind)(getattr(hf, kind.replace("ForCausalLM", "Config"))(**config))
    config |= {
        "type_vocab_size": c.n_types, "layer_norm_eps": c.eps, "pad_token_id": PAD,
    }
    if kind.startswith("Roberta"):
        config |= {
            "pad_token_id": c.padding_id, "bos_token_id": 0, "eos_token_id": 2,
            "max_position_embeddings": c.n_positions + c.padding_id + 1,
        }
    if kind.startswith("Deberta"):
        config |= {
            "relative_attention": bool(c.pos_att_type), "pos_att_type": list(c.pos_att_type),
            "share_att_key": c.share_att_key, "position_buckets": c.position_buckets or -1,
            "max_relative_positions": c.max_relative_positions or -1,
            "norm_rel_ebd": "layer_norm" if c.norm_rel_ebd else "none",
            "position_biased_input": c.position_biased_input,
            "conv_kernel_size": c.conv_kernel_size, "conv_act": c.conv_act,
        }
    name = "DebertaV2" if kind.startswith("Deberta") else kind.split("For")[0]
    return getattr(hf, kind)(getattr(hf, f"{name}Config")(**config))


PAD = 1  # in every family of these tests
CASES = [
    ("gpt2", "GPT2LMHeadModel", {}),
    ("gpt2", "GPT2LMHeadModel", {"d_ff": 5, "n_layers": 3}),
    ("bert", "BertForMaskedLM", {}),
    ("bert", "BertForMaskedLM", {"d_ff": 5, "n_layers": 3, "n_heads": 4}),
    ("bert", "BertForSequenceClassification", {"num_labels": 3}),
    ("roberta", "RobertaForMaskedLM", {}),
    ("roberta", "RobertaForMaskedLM", {"d_ff": 5, "n_layers": 1, "n_heads": 4}),
    ("roberta", "RobertaForSequenceClassification", {"num_labels": 3}),
    *(("deberta", "DebertaV2ForMaskedLM", sizes) for sizes in DEBERTAS),
    *(
        ("deberta", "DebertaV2ForSequenceClassification", {"num_labels": 3, **sizes})
        for sizes in DEBERTAS[:3]
    ),
    ("llama", "LlamaForCausalLM", {"qkv_bias": False}),
    ("llama", "LlamaForCausalLM", {
        "qkv_bias": False, "tied": False, "n_heads": 4, "n_kv_heads": 2, "rope_theta": 1e6}),
    ("llama", "LlamaForCausalLM", {
        "qkv_bias": False, "n_heads": 6, "n_kv_heads": 2, "d_model": 24, "n_layers": 3,
        "eps": 0.1}),
    ("llama", "LlamaForCausalLM", {
        "qkv_bias": False, "tied": False, "n_heads": 2, "n_kv_heads": 2, "rope_theta": 5.0}),
    ("llama", "Qwen2ForCausalLM", {"rope_theta": 1e6}),
    ("llama", "Qwen2ForCausalLM", {"tied": False, "n_heads": 4, "n_kv_heads": 4, "eps": 1e-6}),
]


@pytest.mark.parametrize(
    ("dtype", "padded"),
    [("float32", True), ("float64", False),
     *(pytest.param(*both, marks=pytest.mark.thorough)
       for both in [("float32", False), ("float64", True)])],
)
@pytest.mark.parametrize(("family", "kind", "sizes"), CASES)
def test_logits_loss_and_every_gradient_are_theirs(family, kind, sizes, dtype, padded):
    model = made(family, 3, dtype, **sizes)
    told = compare(model, theirs_of(model, kind), 3, padded and family not in ("gpt2", "llama"))
    within = WITHIN["float32" if family == "llama" else dtype]  # its norms and angles are always so
    assert {name: x for name, x in told.items() if not x <= within} == {}


@pytest.mark.parametrize(
    ("sizes", "steps"), [(DEBERTAS[0], 2), (DEBERTAS[1], 3), (DEBERTAS[2], 2)]
)
def test_the_last_block_reads_again_as_often_as_theirs(sizes, steps):
    model = made("deberta", 4, "float32", z_steps=steps, **sizes)
    theirs = theirs_of(model, "DebertaV2ForMaskedLM")

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
    theirs = theirs_of(model, "DebertaV2ForMaskedLM").eval()
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


@pytest.mark.parametrize("shape", ["bert-base", "roberta-base", "deberta-v2-xxlarge", "gpt2",
                                   "smollm2-135m"])
def test_a_model_of_the_published_size_has_their_names_and_shapes(shape):
    kind = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM", "gpt2": "GPT2LMHeadModel",
            "deberta": "DebertaV2ForMaskedLM", "smollm2": "LlamaForCausalLM"}[shape.split("-")[0]]
    with ml.using("shapes"), torch.device("meta"):
        model = build(SHAPES[shape], rng=0)
        theirs = theirs_of(model, kind)
        theirs.tie_weights()  # 5.0 has it done by whoever loads weights
        own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {n: tuple(x.shape) for name, p in theirs.named_parameters() for n, x in parts(name, p)}
    assert own == wanted


def test_weights_of_another_model_are_not_equal():
    """The comparison sees what it should: one number changed in one matrix."""
    model = made("deberta", 3, "float32")
    theirs = theirs_of(model, "DebertaV2ForMaskedLM")
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
