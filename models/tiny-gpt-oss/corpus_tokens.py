"""The tokens of the tiny GPT-OSS: its byte-level BPE tokenizer, and batches made from the corpus.

Left out: packing several examples into one row (rows of similar length waste little).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from corpus import Corpus
from corpus_records import WORDS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Batch = tuple[numpy.ndarray, numpy.ndarray]
"""Token ids [B, T], right-padded, and the mask [B, T] of the tokens that are trained."""

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
# A copied value must split into the same tokens in the customer's text and in the JSON. So digits
# are single, capitalised words hold no space, and small words and marks hold the space AFTER them.
SPLIT = r"#W?|\p{N}|\p{Lu}\p{Ll}*|[\p{Ll}_]+(?:'\p{Ll}+)? ?|[^\s\p{L}\p{N}#_]+ ?|\s+|\p{L}"
MAX_TOKENS = 768
STORE_SEED = 90_417  # never a seed of the shipped store


def load_store() -> tuple[dict, dict, dict]:
    """Return (users, orders, products) of a generated store that the project does not ship."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:  # this folder's scripts run without the repository being installed
        sys.path.append(root)
    from envs.retail.make_store import make_store

    return make_store(seed=STORE_SEED)


def build_tokenizer(num_examples: int, vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on the corpus.

    Args:
        num_examples: corpus examples to learn merges from.
        vocab_size: tokens in all, special tokens included.
        seed: seed of the corpus stream.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
    )
    corpus = Corpus(seed, load_store())

    def texts() -> Iterator[str]:
        for number in range(num_examples):
            yield "".join(corpus.example())
            if (
                number % 40 == 0
            ):  # everyday words that customers may use deserve tokens of their own
                yield " ".join(WORDS["common"])

    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def encode_batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, batch_tokens: int, pool_size: int
) -> Iterator[Batch]:
    """Yield endless (ids [B, T], loss mask [B, T]) of similar lengths, right-padded.

    Args:
        corpus: the example stream.
        tokenizer: the trained tokenizer.
        batch_tokens: B * T at most.
        pool_size: examples sorted by length at a time.
    """
    while True:
        pairs = [corpus.example() for _ in range(pool_size)]
        prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
        answers = tokenizer([a for _, a in pairs], add_special_tokens=False)["input_ids"]
        rows = sorted(
            ((p, a) for p, a in zip(prompts, answers) if len(p) + len(a) <= MAX_TOKENS),
            key=lambda r: len(r[0]) + len(r[1]),
        )
        batches = []
        while rows:
            width = math.ceil((len(rows[-1][0]) + len(rows[-1][1])) / 16) * 16
            count = max(1, batch_tokens // width)
            chosen, rows = rows[-count:], rows[:-count]
            if len(chosen) < count and batches:
                break  # the short remainder would be a small, noisy batch
            ids = numpy.full((len(chosen), width), tokenizer.pad_token_id, dtype=numpy.int32)
            mask = numpy.zeros((len(chosen), width), dtype=bool)
            for row, (prompt, answer) in enumerate(chosen):
                end = len(prompt) + len(answer)
                ids[row, :end] = prompt + answer
                mask[row, len(prompt) : end] = True
            batches.append((ids, mask))
        corpus.rng.shuffle(batches)
        yield from batches


def _produce(
    seed: int, tokenizer_dir: str, batch_tokens: int, pool_size: int, out: multiprocessing.Queue
) -> None:
    """Fill a queue with batches; runs in a background process until it is ended."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    for batch in encode_batches(Corpus(seed, load_store()), tokenizer, batch_tokens, pool_size):
        out.put(batch)


def batch_stream(
    tokenizer_dir: Path, seed: int, batch_tokens: int, pool_size: int, num_workers: int
) -> Iterator[Batch]:
    """Yield endless training batches.

    Args:
        tokenizer_dir: folder with tokenizer.json.
        seed: seed of the data.
        batch_tokens: B * T at most.
        pool_size: examples sorted by length at a time.
        num_workers: background processes; 0 makes batches inline, always the same for one seed.

    Raises:
        RuntimeError: The background processes made nothing for a minute.
    """
    if num_workers == 0:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
        yield from encode_batches(Corpus(seed, load_store()), tokenizer, batch_tokens, pool_size)
        return
    context = multiprocessing.get_context("spawn")
    batches = context.Queue(maxsize=64)
    producers = [
        context.Process(
            target=_produce,
            daemon=True,
            args=(
                seed * 1000 + i,
                str(tokenizer_dir),
                batch_tokens,
                pool_size,
                batches,
            ),
        )
        for i in range(num_workers)
    ]
    for producer in producers:
        producer.start()
    try:
        while True:
            try:
                yield batches.get(timeout=60)
            except queue.Empty:
                raise RuntimeError(
                    "the data workers made no batch for 60 s; try --workers 0"
                ) from None
    finally:
        for producer in producers:
            producer.kill()
