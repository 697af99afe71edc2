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
        if torch.cuda.get_device_capability() >= (8, 0):
            # Compiling the layers takes minutes, and is no faster where a group's prompt is shared.
            # With "1" experts would run one by one, too; see docs/GPU.md.
            os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "partial")
        import unsloth  # noqa: F401
