"""What passes through every function of `gptoss` and `training`: a model and its tokenizer."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = PreTrainedModel | PeftModel
Tokenizer = PreTrainedTokenizerBase
