"""A GPT-OSS of 2 layers with random weights and a byte tokenizer, made in a second.

It has the real architecture (experts, attention sinks, sliding window, YaRN, more query heads than
key heads, heads wider than the hidden size, a head of its own) and learns nothing worth
showing: it stands in where a test asks how the pieces work together, not how well.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

import configs
from data_reader import Task, task_to_json
from envs.retail import RetailDatabase

SPECIAL_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes and the harmony special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|return|>", pad_token="<|endoftext|>",
        model_max_length=8192, clean_up_tokenization_spaces=False,
    )


def make_model_dir(folder: Path, seed: int = 0) -> Path:
    """Write a random model and its tokenizer, loadable like any GPT-OSS folder.

    Args:
        folder: Where to write; created.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>", "<|endoftext|>"])
    config = GptOssConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=32, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        vocab_size=len(tokenizer), sliding_window=128, max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 1024,
        },
        tie_word_embeddings=False, eos_token_id=ids[0], pad_token_id=ids[2], initializer_range=0.08,
    )
    torch.manual_seed(seed)
    model = GptOssForCausalLM(config)
    model.generation_config.eos_token_id = ids[:2]
    model.generation_config.pad_token_id = ids[2]
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tasks(count: int) -> list[Task]:
    """Return short tasks about users of the shipped store, one user each.

    Args:
        count: How many.

    Returns:
        Tasks whose gold looks the customer up, and for every second one also looks at the account.
    """
    db = RetailDatabase.load()
    tasks = []
    for number, (user_id, user) in enumerate(sorted(db.users.items())[:count]):
        calls = [{"name": "find_user_id_by_email", "arguments": {"email": user["email"]}}]
        query = f"I am {user['email']}."
        if number % 2:
            calls.append({"name": "get_user_details", "arguments": {"user_id": user_id}})
            query += f" What is on account {user_id}?"
        tasks.append(Task(query, calls, "told", f"tiny-{number}", user_id))
    return tasks


def write_tasks(path: Path, count: int) -> Path:
    """Write `make_tasks(count)` to a JSONL file and return its path."""
    lines = [task_to_json(task) + "\n" for task in make_tasks(count)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def tiny_config(folder: Path, **overrides: object) -> configs.RunConfig:
    """Return settings of a run of a few seconds on the random model.

    Args:
        folder: Holds the model, the tasks and the run; they are made when missing.
        overrides: Dotted field names with `__` for the dot, e.g. `grpo__max_steps=2`.

    Returns:
        The settings.
    """
    model_dir, task_path = folder / "model", folder / "tasks.jsonl"
    if not model_dir.exists():
        make_model_dir(model_dir)
        write_tasks(task_path, 40)
    settings: dict[str, object] = {
        "model.model_name": str(model_dir), "model.num_threads": 1, "model.lora_rank": 4,
        "data.dataset_path": str(task_path), "data.eval_dataset_path": str(task_path),
        "sft.max_steps": 6, "sft.per_device_train_batch_size": 4, "sft.save_steps": 2,
        "sft.logging_steps": 1, "sft.warmup_steps": 0,
        "grpo.max_steps": 4, "grpo.per_device_train_batch_size": 4, "grpo.num_generations": 4,
        "grpo.gradient_accumulation_steps": 2, "grpo.max_completion_length": 12,
        "grpo.save_steps": 1, "grpo.eval_steps": 0, "grpo.beta": 0.01,
        "grpo.early_stopping_patience": 0, "grpo.max_gold_probability": 1.0,
        "data.grpo_dataset_path": "",
        "evaluation.num_tasks": 6, "evaluation.batch_size": 3, "evaluation.max_new_tokens": 12,
        "evaluation.num_bootstrap": 50,
        "output_dir": str(folder / "run"), "show_progress": False,
    }
    settings |= {name.replace("__", "."): value for name, value in overrides.items()}
    return configs.with_overrides(configs.get_preset("cpu"), settings)
