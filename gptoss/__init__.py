"""The model itself: load, adapt, sample, merge and export GPT-OSS.

Unsloth patches transformers, TRL and PEFT as it is imported, so it has to come before all of them:
that is why this package imports it, where there is a GPU to use it on.
"""

import importlib.util
import os

from common.threads import quiet_idle_threads

quiet_idle_threads()

if importlib.util.find_spec("unsloth") is not None:
    import torch

    if torch.cuda.is_available():
        # Layers run as they are: compiling them takes minutes before the first step. With "1", too,
        # experts would run one by one; see docs/GPU.md.
        os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "partial")
        import unsloth  # noqa: F401
