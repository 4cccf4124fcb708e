"""What all tests share: shapes checked, one thread, and no deadlines on a machine that others use too."""

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The shapes in signatures are checked at run time, where there are tensors; an int passes for a float, as in mypy.
install_import_hook(
    ["moe_cli.moe", "moe_cli.models", "moe_cli.tasks", "moe_cli.training"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

torch.set_num_threads(1)
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")
