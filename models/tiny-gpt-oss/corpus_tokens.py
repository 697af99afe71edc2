"""The tokens of the tiny GPT-OSS: its byte-level BPE tokenizer, and batches made from the corpus.

Left out: packing several examples into one row (rows of similar length waste little).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
from corpus import Corpus
from corpus_records import WORDS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:  # this folder's scripts run without the repository being installed
    sys.path.append(_ROOT)

from corpus_talks import MixedCorpus  # noqa: E402

from envs.retail.make_store import make_store  # noqa: E402

Batch = tuple[numpy.ndarray, numpy.ndarray]
"""Token ids [B, T], right-padded, and the mask [B, T] of the tokens that are trained."""

SPACE = "\u0120"
"""How byte-level BPE writes a space."""
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
# The released GPT-OSS pre-tokenizer (o200k): whatever splits its text splits this model's.
_CONTRACTIONS = "".join(
    f"'{end}|" for end in "s S t T re rE Re RE ve vE Ve VE m M ll lL Ll LL d D".split()
).rstrip("|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLIT = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+({_CONTRACTIONS})?",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*({_CONTRACTIONS})?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# A copied value must spell alike in the customer's text and in the JSON. So merges are learned on a
# finer split: digits stay single, and no merge joins a space, a mark or `#` with what follows.
LEARNING_SPLIT = r"\p{N}|#|_?\p{Ll}+|\p{Lu}\p{Ll}*|\p{L}|[^\s\p{L}\p{N}#]+|\s"
NUM_SPACED_WORDS = 640
"""Everyday lower-case words that also get a token with the space before them."""
MAX_TOKENS = 1_024
NUM_KEPT = 2_000
"""Batches that wait for their second use."""
STORE_SEED = 90_417  # never a seed of the shipped store


def load_store() -> tuple[dict, dict, dict]:
    """Return (users, orders, products) of a generated store that the project does not ship."""
    return make_store(seed=STORE_SEED)


def build_tokenizer(num_examples: int, vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus; special tokens get the first ids.

    Args:
        num_examples: Examples read from the corpus.
        vocab_size: Tokens in all.
        seed: Seed of the corpus.

    Returns:
        The tokenizer, with the released model's pre-tokenizer.
    """
    corpus = Corpus(seed, load_store())
    texts = []
    for number in range(num_examples):
        texts.append("".join(corpus.example()))
        if number % 40 == 0:  # everyday words that customers may use deserve tokens of their own
            texts.append(" ".join(WORDS["common"]))
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LEARNING_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPACED_WORDS,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    vocab, merges = learned["vocab"], [tuple(merge) for merge in learned["merges"]]
    counts = Counter(word for text in texts for word in re.findall(r"(?<= )[a-z]+", text))
    words = [word for word, _ in counts.most_common() if word in vocab][:NUM_SPACED_WORDS]
    for word in words:  # last, so that the word is whole before the space joins it
        vocab[SPACE + word] = len(vocab)
        merges.append((SPACE, word))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def make_corpus(seed: int, talk_share: float = 0.0) -> Any:
    """Return a stream of examples, `talk_share` of them conversations."""
    store = load_store()
    if not talk_share:
        return Corpus(seed, store)
    return MixedCorpus(seed, store, talk_share)


def encode_batches(
    corpus: Any, tokenizer: PreTrainedTokenizerFast, batch_tokens: int, pool_size: int
) -> Iterator[Batch]:
    """Yield endless (ids [B, T], loss mask [B, T]) of similar lengths, right-padded.

    Args:
        corpus: the example stream.
        tokenizer: the trained tokenizer.
        batch_tokens: B * T at most.
        pool_size: examples sorted by length at a time.
    """
    while True:
        examples = [corpus.segments() for _ in range(pool_size)]
        texts = [text for segments in examples for text, _ in segments]
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
        rows = []
        for segments in examples:
            ids, mask = [], []
            for _, is_trained in segments:
                piece = next(encoded)
                ids += piece
                mask += [is_trained] * len(piece)
            if len(ids) <= MAX_TOKENS:
                rows.append((ids, mask))
        rows.sort(key=lambda row: len(row[0]))
        batches = []
        while rows:
            width = math.ceil(len(rows[-1][0]) / 32) * 32
            count = max(1, batch_tokens // width)
            chosen, rows = rows[-count:], rows[:-count]
            if len(chosen) < count and batches:
                break  # the short remainder would be a small, noisy batch
            ids = numpy.full((len(chosen), width), tokenizer.pad_token_id, dtype=numpy.int32)
            mask = numpy.zeros((len(chosen), width), dtype=bool)
            for row, (row_ids, row_mask) in enumerate(chosen):
                ids[row, : len(row_ids)] = row_ids
                mask[row, : len(row_ids)] = row_mask
            batches.append((ids, mask))
        corpus.rng.shuffle(batches)
        yield from batches


def _produce(
    seed: int, tokenizer_dir: str, batch_tokens: int, pool_size: int, talk_share: float,
    out: multiprocessing.Queue,
) -> None:
    """Fill a queue with batches; runs in a background process until it is ended."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    corpus = make_corpus(seed, talk_share)
    for batch in encode_batches(corpus, tokenizer, batch_tokens, pool_size):
        out.put(batch)


def batch_stream(
    tokenizer_dir: Path, seed: int, batch_tokens: int, pool_size: int, num_workers: int,
    talk_share: float = 0.0,
) -> Iterator[Batch]:
    """Yield endless training batches.

    Args:
        tokenizer_dir: folder with tokenizer.json.
        seed: seed of the data.
        batch_tokens: B * T at most.
        pool_size: examples sorted by length at a time.
        num_workers: background processes; 0 makes batches inline, always the same for one seed.
        talk_share: share of examples that are conversations.

    Raises:
        RuntimeError: The background processes made nothing for a minute.
    """
    if num_workers == 0:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
        corpus = make_corpus(seed, talk_share)
        yield from encode_batches(corpus, tokenizer, batch_tokens, pool_size)
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
                talk_share,
                batches,
            ),
        )
        for i in range(num_workers)
    ]
    for producer in producers:
        producer.start()
    draws, kept = random.Random(seed), []
    try:
        while True:
            try:
                batch = batches.get(timeout=60)
            except queue.Empty:
                raise RuntimeError(
                    "the data workers made no batch for 60 s; try --workers 0"
                ) from None
            yield batch
            if len(kept) < NUM_KEPT:  # a GPU is faster than the workers: most batches come twice
                kept.append(batch)
            else:
                place = draws.randrange(NUM_KEPT)
                again, kept[place] = kept[place], batch
                yield again
    finally:
        for producer in producers:
            producer.kill()
