"""Random dense models of 2 layers and a byte tokenizer with a chat template, made in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = CHATML.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16384,
    "tie_word_embeddings": True, "initializer_range": 0.2,
}


def make_vision_config(**text: object) -> Gemma3Config:
    """Return the settings of a model that reads images too; `text` are those of its language model."""
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }
    return Gemma3Config(
        text_config=Gemma3TextConfig(**text).to_dict(), vision_config=vision, mm_tokens_per_image=4,
        eos_token_id=text["eos_token_id"],
    )


SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    # The three things that trip loaders: an end of text that ends no answer and no padding token; a
    # token before every text and no system messages; thinking in the template.
    "llama": (LlamaForCausalLM, LlamaConfig, CHATML, ("<|im_start|>", "<|im_end|>"), {}),
    "gemma": (
        Gemma3ForCausalLM, Gemma3TextConfig, GEMMA, ("<bos>", "<end_of_turn>", "<start_of_turn>"), SLIDING,
    ),
    # From 4 B parameters on Gemma 3 reads images too: its text settings lie one level deeper.
    "gemma-vision": (
        Gemma3ForConditionalGeneration, make_vision_config, GEMMA,
        ("<bos>", "<end_of_turn>", "<start_of_turn>"), SLIDING,
    ),
    "qwen": (Qwen3ForCausalLM, Qwen3Config, THINKING, ("<|im_start|>", "<|im_end|>"), {}),
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with the family's special tokens and chat template."""
    template, tokens = FAMILIES[family][2:4]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", *tokens])
    special = {"eos_token": "<|endoftext|>"}
    if "gemma" in family:
        special["bos_token"] = "<bos>"
        bos = backend.token_to_id("<bos>")
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", bos)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16384, **special)
    tokenizer.chat_template = template
    return tokenizer


def make_model_dir(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a random model and its tokenizer; return the folder."""
    model_class, config_class, *_, own = FAMILIES[family]
    tokenizer = make_tokenizer(family)
    config = config_class(
        **SIZES | own, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = model_class(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
