"""What all tests share: one thread, and no deadlines on a machine that others use too."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")
