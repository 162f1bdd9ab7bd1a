"""words: another package's name for an argument is answered with the name used here."""

import inspect

import pytest

import minilora as ml
from minilora import accounting, data, lora, methods, nn, optim
from minilora.words import our_words, table

pytestmark = pytest.mark.usefixtures("numpy_only")

TOKENIZER = data.BPE([])

CALLS = [  # (callable, another package's word, the word here)
    (ml.fit, "num_steps", "steps"), (ml.fit, "max_steps", "steps"),
    (ml.fit, "gradient_accumulation_steps", "accumulation_steps"),
    (ml.fit, "lr_scheduler", "schedule"), (ml.fit, "loss_fn", "loss"),
    (ml.fit, "grad_clip", "max_grad_norm"), (ml.fit, "max_norm", "max_grad_norm"),
    (ml.fit, "eval_dataset", "held_out"), (ml.fit, "train_dataset", "batches"),
    (ml.fit, "eval_steps", "eval_every"), (ml.fit, "save_steps", "save_every"),
    (ml.fit, "logging_steps", "log_every"), (ml.fit, "resume_from_checkpoint", "resume"),
    (ml.fit, "output_dir", "checkpoint"), (ml.fit, "scaler", "loss_scale"),
    (ml.train_step, "criterion", "loss"), (ml.train_step, "max_norm", "max_grad_norm"),
    (ml.evaluate, "dataloader", "batches"), (ml.evaluate, "eval_dataset", "batches"),
    (optim.AdamW, "learning_rate", "lr"), (optim.AdamW, "params", "parameters"),
    (optim.AdamW, "beta1", "betas"), (optim.Adam, "epsilon", "eps"),
    (optim.SGD, "learning_rate", "lr"),
    (optim.linear_schedule, "num_warmup_steps", "warmup"),
    (optim.linear_schedule, "num_training_steps", "steps"),
    (optim.linear_schedule, "learning_rate", "peak"), (optim.cosine_schedule, "T_max", "steps"),
    (optim.cosine_schedule, "eta_min", "floor"),
    (optim.clip_grad_norm, "max_grad_norm", "max_norm"),
    (optim.clip_grad_norm, "params", "parameters"),
    (ml.LossScale, "init_scale", "scale"), (ml.LossScale, "growth_interval", "patience"),
    (accounting.plan, "batch_size", "batch"), (accounting.plan, "seq_len", "tokens"),
    (accounting.plan, "gradient_checkpointing", "recompute"),
    (accounting.ledger, "batch_size", "batch"), (accounting.ledger, "sequence_length", "tokens"),
    (ml.generate, "max_new_tokens", "n_tokens"), (ml.generate, "input_ids", "ids"),
    (ml.generate, "eos_token_id", "stop"), (ml.stream, "stop_strings", "stop"),
    (ml.stream, "max_new_tokens", "n_tokens"),
    (ml.generate, "use_cache", "cache"), (ml.generate, "seed", "rng"),
    (lora.attach, "adapter_name", "name"), (lora.attach, "peft_config", "config"),
    (lora.load, "model_id", "path"), (lora.load, "is_trainable", "trainable"),
    (lora.load, "adapter_name", "name"), (lora.save, "save_directory", "path"),
    (lora.load_peft, "model_id", "folder"), (lora.load_peft, "adapter_name", "name"),
    (lora.load_peft, "is_trainable", "trainable"), (lora.save_peft, "save_directory", "folder"),
    (lora.combine, "combination_type", "how"), (lora.combine, "svd_rank", "r"),
    (methods.apply, "adapter_name", "name"), (methods.apply, "seed", "rng"),
    (nn.Linear, "in_features", "d_in"), (nn.Linear, "out_features", "d_out"),
    (nn.Embedding, "num_embeddings", "n"), (nn.Embedding, "embedding_dim", "d"),
    (nn.LayerNorm, "normalized_shape", "d"), (nn.Dropout, "p", "rate"),
    (ml.GPT2, "seed", "rng"), (ml.GPT2, "torch_dtype", "dtype"),
    (ml.GPT2, "gradient_checkpointing", "recompute"), (ml.load_base, "model_name", "name"),
    (ml.load_base, "torch_dtype", "dtype"), (ml.load_model, "filename", "path"),
    (ml.save_model, "save_directory", "path"), (data.Windows, "batch_size", "batch"),
    (data.Windows, "block_size", "tokens"), (data.split, "test_size", "held_out"),
    (TOKENIZER.encode, "add_special_tokens", "add_special"),
    (TOKENIZER.decode, "skip_special_tokens", "skip_special"),
    (TOKENIZER.save, "save_directory", "folder"),
    (data.load_tokenizer, "pretrained_model_name_or_path", "folder"),
    (ml.LoRAConfig, "lora_alpha", "alpha"), (ml.LoRAConfig, "init_lora_weights", "init"),
    (ml.GPT2Config, "nhead", "n_heads"), (ml.BertConfig, "num_classes", "num_labels"),
]

NO_COUNTERPART = [  # (callable, another package's word, what the answer has in it)
    (ml.LoRAConfig, "use_dora", 'methods.apply(model, "dora", ...)'),
    (ml.LoRAConfig, "use_rslora", 'methods.apply(model, "rslora", ...)'),
    (ml.LoRAConfig, "lr", "lr belongs to the optimizer: AdamW(..., lr=...)"),
    (ml.LoRAConfig, "learning_rate", "belongs to the optimizer: AdamW(..., lr=...)"),
    (ml.LoRAConfig, "task_type", "is not needed"),
    (ml.fit, "lr", "belongs to the optimizer"), (ml.fit, "learning_rate", "AdamW(..., lr=...)"),
    (ml.fit, "epochs", "fit(..., steps=epochs * len(batches))"),
    (ml.fit, "num_train_epochs", "fit(..., steps=epochs * len(batches))"),
    (ml.fit, "warmup_steps", "optim.linear_schedule(peak, steps, warmup)"),
    (ml.fit, "fp16", "loss_scale=LossScale()"), (ml.fit, "batch_size", "data.Windows("),
    (ml.fit, "gradient_checkpointing", "model.recompute = True"),
    (optim.Adam, "weight_decay", "AdamW(..., weight_decay=...)"),
    (optim.AdamW, "momentum", "SGD(..., momentum=...)"),
    (ml.generate, "max_length", "n_tokens counts new tokens"),
    (ml.generate, "do_sample", "temperature=0"), (ml.GPT2, "device", 'minilora.use("cupy")'),
]


def name(f):
    return f if isinstance(f, str) else f.__qualname__


def answer(f, **words):
    """The message of the TypeError that the call ends in."""
    with pytest.raises(TypeError) as error:
        f(**words)
    return str(error.value)


@pytest.mark.parametrize("f, word, ours", CALLS, ids=name)
def test_a_foreign_word_is_answered_with_ours(f, word, ours):
    parameters = inspect.signature(f).parameters
    assert ours in parameters and word not in parameters
    assert answer(f, **{word: 3}) == f"{name(f)}: {word} is called {ours} here"


@pytest.mark.parametrize("f, word, remedy", NO_COUNTERPART, ids=name)
def test_a_foreign_word_without_a_counterpart_is_answered_with_a_remedy(f, word, remedy):
    assert word not in inspect.signature(f).parameters
    message = answer(f, **{word: 3})
    assert message == f"{name(f)}: {word} {table().remedies[word]}" and remedy in message


@pytest.mark.parametrize("f", sorted({f for f, *_ in CALLS}, key=name), ids=name)
def test_any_other_word_is_answered_with_the_names_and_a_near_one(f):
    parameters = inspect.signature(f).parameters
    names = ", ".join(n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD)
    open_ended = names != ", ".join(parameters)
    if not open_ended:
        assert answer(f, zzz=3) == f"{name(f)}: unknown argument 'zzz': it takes {names}"
    near = max(parameters, key=len)
    if not open_ended:
        message = f"{name(f)}: unknown argument '{near}z': did you mean {near}? It takes {names}"
        assert answer(f, **{f"{near}z": 3}) == message


def test_settings_that_are_passed_on_are_answered_by_whoever_receives_them():
    assert answer(accounting.plan, shape="gpt2", lora_alpha=3) == (
        "LoRAConfig: lora_alpha is called alpha here"
    )
    assert answer(accounting.plan, shape="gpt2", method="bitfit", zzz=3) == (
        "BitFit: unknown argument 'zzz': it takes trainable"
    )
    with pytest.raises(TypeError, match=r"^DoRA: target_modules is called targets here$"):
        methods.apply(ml.GPT2(ml.GPT2Config(9, 4, 8, 1, 2), rng=0), "dora", target_modules="q")


@pytest.mark.parametrize("kind", [ml.LoRAConfig, methods.DoRA])
@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16"])
def test_an_initialization_that_is_a_method_names_the_method(kind, value):
    words = f"{kind.__name__}: init='{value}' is a method of its own here: methods.apply(model, "
    for settings in ({"init": value}, {"init_lora_weights": value}):
        assert answer(kind, **settings).startswith(words + '"pissa", ')
    with pytest.raises(TypeError, match="is a method of its own here"):
        kind(2, 4.0, "q", 0.0, value)
    with pytest.raises(ValueError, match=r"gaussian, kaiming, not 'eva'$"):
        kind(init="eva")


def test_what_a_remedy_names_is_there():
    for word in ("dora", "rslora", "pissa"):
        assert word in methods.METHODS
    assert "pissa" in table().values["init"]
    assert ml.GPT2(ml.GPT2Config(9, 4, 8, 1, 2), recompute=True, rng=0).recompute
    assert not set(table().remedies) & set(inspect.signature(ml.LoRAConfig).parameters)


def test_each_of_our_words_is_a_parameter_of_a_public_callable():
    public = [getattr(ml, name) for name in ml.__all__] + [TOKENIZER.encode, TOKENIZER.decode]
    for room in (lora, methods, accounting, data, nn, optim):
        public += vars(room).values()
    ours = set()
    for f in public:
        if callable(f) and f.__module__.startswith("minilora"):
            ours |= inspect.signature(f).parameters.keys()
    assert {word for words in table().names.values() for word in words} <= ours


def test_a_subclass_is_named_and_the_first_foreign_word_counts():
    class Mine(optim.Optimizer):
        pass

    assert answer(Mine, params=3, learning_rate=4) == "Mine: params is called parameters here"


def test_a_decorated_function_keeps_its_signature_and_passes_everything_on():
    def f(a, b=2, *rest, c: int = 3, **settings) -> tuple:
        """f's own words."""
        return a, b, rest, c, settings

    checked = our_words(f)
    assert inspect.signature(checked) == inspect.signature(f)
    assert (checked.__doc__, checked.__name__, checked.__wrapped__) == (f.__doc__, "f", f)
    assert checked(1, 5, 6, c=4, d=7) == (1, 5, (6,), 4, {"d": 7}) and checked(a=1) == f(1)
    with pytest.raises(TypeError, match="missing 1 required positional"):
        checked()
    lines = inspect.getsource(ml.fit)
    assert "def fit(" in lines and "steps" in inspect.signature(ml.fit).parameters
    assert "lr" in inspect.signature(ml.AdamW).parameters


def test_an_error_from_inside_is_left_as_it_is():
    @our_words
    def f(a):
        return g(zzz=a)

    def g():
        pass

    with pytest.raises(TypeError, match=r"g.* unexpected keyword argument 'zzz'"):
        f(a=1)
