"""The model itself: load, adapt, sample, merge and export GPT-OSS.

Unsloth patches transformers, TRL and PEFT as it is imported, so it has to come before all of them:
that is why this package imports it, where there is a GPU to use it on.
"""

import importlib.util
import os

# Idle threads of a CPU run sleep instead of spinning: on a machine that does other work as well a
# step took 5.1 s with spinning threads and 1.3 s without. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if importlib.util.find_spec("unsloth") is not None:
    import torch

    if torch.cuda.is_available():
        import unsloth  # noqa: F401
