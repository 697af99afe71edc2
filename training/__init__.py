"""Train and evaluate: SFT, GRPO, metrics, plots. `gptoss` comes first, as it imports Unsloth."""

import gptoss  # noqa: F401
