"""Each user error on the command line has its exact words: one row per error."""

import pytest

from moe_cli.config.compose import Composer, load_config
from moe_cli.errors import ConfigError

NO_SHAPE = "is not a setting. Write: key=value, such as expert=8"
NO_GRAMMAR = "cannot be read. Put quotes around a value with spaces or signs:"
BELOW_ONE = "must be at least 0 and below 1."
BALANCES = "There are: entropy, importance, load, loss_free, mutual_information, none, quantile, switch, z."
ROUTERS = "There are: expert_choice, hash, noisy_topk, random, relu, sigmoid, sinkhorn, soft, switch, topk."

WORDS = [
    (["k"], f"'k' {NO_SHAPE}"),
    (["=3"], f"'=3' {NO_SHAPE}"),
    (
        ["k=2 expert=4"],
        "'k=2 expert=4' holds two settings in one word. Write them apart, without the quotes: k=2 expert=4",
    ),
    (["k=[1"], f"'k=[1' {NO_GRAMMAR} 'k=\"...\"'"),
    (["k=choice()"], f"'k=choice()' {NO_GRAMMAR} 'k=\"...\"'"),
    (["k=interval(1,4)"], "'k=interval(1,4)' is an interval; train takes one value, such as k=1"),
    (["k=range(1,1)"], "'k=range(1,1)' names no value."),
    (["k=1,2"], "'k=1,2' names several values; train takes one. Use: moe sweep k=1,2"),
    (
        ["capacity=null,1.5"],
        "'capacity=null,1.5' names several values; train takes one. Use: moe sweep capacity=null,1.5",
    ),
]

KEYS = [
    (["expret=8"], "no setting 'expret'. Did you mean 'expert'?"),
    (["num_experts=8"], "no setting 'num_experts'. Here it is 'expert'."),
    (["model.top_k=2"], "no setting 'model.top_k'. Here it is 'k'."),
    (["lr=0.1"], "no setting 'lr'. Did you mean 'optim.lr'?"),
    (["ruoter=switch"], "no setting 'ruoter'. Did you mean 'router'?"),
    (["zebra=1"], "no setting 'zebra'. All settings: moe config"),
    (["_target_=os.system"], "no setting '_target_'. All settings: moe config"),
    (["eval=3"], "'eval' is a group of settings. Set one of them, such as eval.k=..."),
    (["router.name=switch"], "'router.name' follows from the choice of the group. Write: router=switch"),
    (["router=topk", "router.jitter=0.1"], "no setting 'router.jitter' with router=topk. It belongs to router=switch."),
    (
        ["router=random", "router.jitter=0.1"],
        "no setting 'router.jitter' with router=random. It belongs to router=switch.",
    ),
    (
        ["optim=adamw", "optim.momentum=0.9"],
        "no setting 'optim.momentum' with optim=adamw. It belongs to optim=muon, sgd.",
    ),
    (
        ["data=python", "data.path=x"],
        "no setting 'data.path' with data=python. It belongs to data=fashion_mnist, hf, image_folder, movielens, text, tokens.",
    ),
    (
        ["balance=none", "balance.weight=1"],
        "no setting 'balance.weight' with balance=none. It belongs to balance=switch, entropy, importance, load, mutual_information, z.",
    ),
    (
        ["balance=switch+z", "balance.weight=1"],
        "no setting 'balance.weight' with balance=switch+z. Each method has its own: balance.switch.weight, "
        "balance.z.weight",
    ),
    (
        ["balance=switch", "balance.switch.weight=1"],
        "no setting 'balance.switch.weight'. Did you mean 'balance.weight'?",
    ),
    (
        ["balance=none", "balance.z.weight=1"],
        "no setting 'balance.z.weight' with balance=none. Combine the methods: balance=switch+z",
    ),
    (["experiment=makemoe", "model=vit"], "no setting 'data.tokenizer' with data=digits."),
    (
        ["balance=switch+z", "balance.switch=1"],
        "'balance.switch' is a group of settings. Set one of them, such as balance.switch.weight=...",
    ),
    (
        ["balance=switch+z", "balance.switch.wieght=1"],
        "no setting 'balance.switch.wieght'. Did you mean 'balance.switch.weight'?",
    ),
]

CHOICES = [
    (["optim=lion", "data.path=a"], "optim=lion: no such choice. There are: adamw, muon, sgd."),
    (["model=gtp"], "model=gtp: no such choice. Did you mean 'gpt'? There are: bert, gpt, lstm, mmoe, t5, vit."),
    (["router=tokp"], f"router=tokp: no such choice. Did you mean 'topk'? {ROUTERS}"),
    (["router=null"], f"router=null: no such choice. {ROUTERS}"),
    (["router="], f"router=: no such choice. {ROUTERS}"),
    (["router=3"], f"router=3: no such choice. {ROUTERS}"),
    (["balance=swich"], f"balance=swich: no such choice. Did you mean 'switch'? {BALANCES}"),
    (["balance=z+swich"], f"balance=swich: no such choice. Did you mean 'switch'? {BALANCES}"),
    (["balance=switch+"], f"balance=: no such choice. {BALANCES}"),
    (["balance=z+z"], "balance=z+z names a method twice."),
    (["balance=switch+none"], "balance=none is the control without balancing: it cannot be combined."),
    (["balance.scope=word"], "balance.scope=word is not one of: batch, sequence, global."),
    (["drop=positon"], "drop=positon is not one of: position, probability, random, causal. Did you mean 'position'?"),
    (["match=all"], "match=all is not one of: active, total, flops, model_flops, active+total+flops, none."),
    (["model.activation=tanh"], "model.activation=tanh is not one of: silu, gelu, relu, relu2."),
    (["model.ffn_type=gul"], "model.ffn_type=gul is not one of: glu, mlp. Did you mean 'glu'?"),
    (["model.dispatch=fast"], "model.dispatch=fast is not one of: auto, loop, grouped_mm, einsum, reference."),
    (
        ["data.tokenizer=gpt2"],
        "data.tokenizer=gpt2 is not one of: bytes, chars, bpe, nor the path of a tokenizer.json.",
    ),
    (
        ["optim.schedule=cosin"],
        "optim.schedule=cosin is not one of: cosine, linear, wsd, constant. Did you mean 'cosine'?",
    ),
    (["train.device=gpu"], "train.device=gpu is not one of: auto, cpu, cuda, cuda:N."),
    (["train.device=cudas"], "train.device=cudas is not one of: auto, cpu, cuda, cuda:N."),
    (["train.device=cuda:x"], "train.device=cuda:x is not one of: auto, cpu, cuda, cuda:N."),
]

TYPES = [
    (["expert=eight"], "expert=eight is not a whole number."),
    (["expert=2.5"], "expert=2.5 is not a whole number."),
    (["expert=true"], "expert=true is not a whole number."),
    (["expert="], "expert= is not a whole number."),
    (["expert=null"], "expert=null is not a whole number."),
    (["expert=[1,2]"], "expert=[1,2] is a list; one run takes one value. Use: moe sweep expert=1,2"),
    (["expert=1e400"], "expert=inf is not a whole number."),
    (["k=two"], "k=two is not a whole number or null."),
    (["k={a:1}"], "k={'a': 1} is not a whole number or null."),
    (["optim.lr=fast"], "optim.lr=fast is not a number."),
    (["optim.lr=nan"], "optim.lr=nan is not a number."),
    (["capacity=much"], "capacity=much is not a number or null."),
    (["model.tie_embeddings=1"], "model.tie_embeddings=1 is not true or false."),
    (["router.renormalise=maybe"], "router.renormalise=maybe is not true or false or null."),
    (["train.device=null"], "train.device=null is not text."),
]

RANGES = [
    *[
        ([f"{key}={low - 1}"], f"{key}={low - 1} is too small: the least is {low}.")
        for key, low in {
            "expert": 1, "k": 1, "seed": 0, "eval.k": 1, "model.num_layers": 1, "model.num_heads": 1,
            "model.d_model": 1,
            "model.d_ff": 1, "model.d_expert": 1, "model.moe_layer_freq": 1, "model.context_length": 1,
            "model.shared_experts": 0, "train.steps": 1, "train.tokens": 1, "train.batch_size": 1,
            "train.grad_accumulation": 1, "train.eval_every": 1, "train.eval_tokens": 1, "train.checkpoint_every": 1,
            "train.log_every": 1, "train.threads": 1,
        }.items()
    ],
    *[
        ([f"{key}=0"], f"{key}=0.0 must be greater than 0.")
        for key in ("capacity", "eval.capacity", "balance.weight", "optim.lr", "optim.adam_lr", "optim.grad_clip",
                    "train.flops", "train.model_flops", "train.minutes")
    ],
    (["balance=z", "balance.weight=0"], "balance.weight=0.0 must be greater than 0."),
    (["balance=loss_free", "balance.bias_update_rate=0"], "balance.bias_update_rate=0.0 must be greater than 0."),
    (["balance=quantile", "balance.iterations=0"], "balance.iterations=0 must be greater than 0."),
    (["balance=entropy", "balance.weight=-1"], "balance.weight=-1.0 must be greater than 0."),
    (["balance=z+switch", "balance.switch.weight=0"], "balance.switch.weight=0.0 must be greater than 0."),
    (["model.rope_base=1"], "model.rope_base=1.0 must be greater than 1."),
    (["optim.weight_decay=-1"], "optim.weight_decay=-1.0 is too small: the least is 0."),
    *[
        ([f"{key}={value}"], f"{key}={value} {BELOW_ONE}")
        for key in ("model.dropout", "optim.beta1", "optim.beta2", "optim.momentum")
        for value in ("1.0", "-0.1")
    ],
    (["router=switch", "router.jitter=1.0"], f"router.jitter=1.0 {BELOW_ONE}"),
    (["data.val_fraction=0.6"], "data.val_fraction=0.6 must be between 0.001 and 0.5."),
    (["data.val_fraction=0"], "data.val_fraction=0.0 must be between 0.001 and 0.5."),
    (["optim.warmup_fraction=2"], "optim.warmup_fraction=2.0 must be between 0 and 1."),
    (["optim.decay_fraction=-1"], "optim.decay_fraction=-1.0 must be between 0 and 1."),
    (["optim.min_lr_ratio=1.5"], "optim.min_lr_ratio=1.5 must be between 0 and 1."),
]  # fmt: skip

TOGETHER = [
    (["expert=8", "k=9"], "k=9 is more than expert=8: a token cannot choose more experts than there are."),
    (["expert=8", "eval.k=9"], "eval.k=9 is more than expert=8: a token cannot choose more experts than there are."),
    (["router=switch", "k=2"], "k=2: router=switch sends each token to one expert. Use k=1, or router=topk."),
    (
        ["k=1", "router.renormalise=true"],
        "k=1 with router.renormalise=true makes every weight 1 and leaves the gate without a gradient. "
        "Use router.renormalise=false.",
    ),
    (
        ["model.d_model=130", "model.num_heads=4"],
        "model.d_model=130 cannot be divided among model.num_heads=4: choose a multiple.",
    ),
    (
        ["model.d_model=12", "model.num_heads=4"],
        "model.d_model=12 over model.num_heads=4 gives heads of odd width 3: rotary positions need an even width.",
    ),
    (
        ["model.moe_layer_freq=5", "model.num_layers=4"],
        "model.moe_layer_freq=5 is more than model.num_layers=4: no layer would have experts. "
        "Use expert=1 for a dense model.",
    ),
    (
        ["expert=8", "k=2", "model.d_ff=512", "model.ffn_type=mlp", "model.d_expert=100"],
        "model.d_expert=100 is set by match=active to 256. To choose it yourself: match=none",
    ),
    (
        ["balance=load"],
        "balance=load: the load loss is estimated from the noise of the router, and router=topk has none. "
        "Use router=noisy_topk, or balance=importance.",
    ),
    (
        ["balance=load+z", "router=switch"],
        "balance=load+z: the load loss is estimated from the noise of the router, and router=switch has none. "
        "Use router=noisy_topk, or balance=importance.",
    ),
    (
        ["balance=quantile+loss_free"],
        "balance=loss_free+quantile: loss_free and quantile both set the bias of the choice. Use one.",
    ),
    (["data=text"], "data=text needs a file or folder. Add: data.path=FILE_OR_FOLDER"),
    (["data=tokens"], "data=tokens needs a file or folder of tokens. Add: data.path=FILE_OR_FOLDER"),
    (
        ["data=tokens", "data.path=a"],
        "data=tokens needs the size of the vocabulary. Add, for GPT-2's: data.vocab_size=50257",
    ),
    (
        ["data=tokens", "data.path=a", "data.vocab_size=50257", "data.dtype=int16"],
        "data.dtype=int16 is not one of: uint8, uint16, uint32, uint64. Did you mean 'uint16'?",
    ),
    (
        ["data=tokens", "data.path=a", "data.vocab_size=50257", "data.tokenizer=bytes"],
        "no setting 'data.tokenizer' with data=tokens. It belongs to data=python, bible_asv, "
        "bible_kjv, corpora_mix, hf, shakespeare, text, tiny_shakespeare, torch_sources.",
    ),
    (["data=tokens", "data.path=a", "data.vocab_size=1"], "data.vocab_size=1 must be between 2 and 4294967296."),
    (["data=text", "data.path="], "data=text needs a file or folder. Add: data.path=FILE_OR_FOLDER"),
    (
        ["optim.warmup_fraction=0.5", "optim.decay_fraction=0.7"],
        "optim.warmup_fraction=0.5 and optim.decay_fraction=0.7 are shares of the budget: together at most 1.",
    ),
    (
        ["model.num_heads=4", "model.num_kv_heads=3"],
        "model.num_heads=4 cannot share model.num_kv_heads=3 evenly: choose a divisor.",
    ),
    (["model.num_heads=4", "model.d_head=3"], "model.d_head=3 is odd: rotary positions need an even width."),
    (
        ["model.first_k_dense=4"],
        "model.first_k_dense=4 leaves no layer of model.num_layers=4 to experts. Use expert=1 for a dense model.",
    ),
    (
        ["train.steps=1", "train.tokens=5"],
        "train.steps=1 and train.tokens=5 are 2 budgets: give one, and null to the others.",
    ),
    (
        ["train.steps=1", "train.flops=1e9", "train.minutes=2"],
        "train.steps=1 and train.flops=1000000000.0 and train.minutes=2.0 are 3 budgets: give one, and null to the others.",
    ),
]


TABLE = [*WORDS, *KEYS, *CHOICES, *TYPES, *RANGES, *TOGETHER]


@pytest.mark.parametrize(("words", "message"), TABLE, ids=[" ".join(words) for words, _ in TABLE])
def test_what_is_refused_and_how(words: list[str], message: str) -> None:
    """The words are refused with just this message: what is wrong, what was given, what to do."""
    with pytest.raises(ConfigError) as error:
        load_config(words)
    assert message == str(error.value)


def test_an_unknown_experiment_is_refused_with_those_there_are() -> None:
    """As any group, with whatever conf/experiment holds."""
    with pytest.raises(ConfigError) as error:
        load_config(["experiment=nothing"])
    names = ", ".join(Composer().choices("experiment"))
    assert f"experiment=nothing: no such choice. There are: {names}." == str(error.value)


def test_a_command_that_takes_one_value_is_named() -> None:
    """The error names the command that was typed."""
    with pytest.raises(ConfigError, match=r"^'k=1,2' names several values; config takes one\."):
        load_config(["k=1,2"], command="config")


def test_a_dangling_reference_is_said_first() -> None:
    """A value that refers to nothing is refused in at most three lines."""
    with pytest.raises(ConfigError) as error:
        load_config(["seed=${nothing}"])
    lines = str(error.value).splitlines()
    assert "Interpolation key 'nothing' not found" == lines[0]
    assert len(lines) <= 3
