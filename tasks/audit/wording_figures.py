"""How varied the wording of a task file is, in figures that ids cannot inflate.

Distinct-n after Li et al. 2016 (different n-grams over all n-grams), over a sample of the texts
with order ids, emails, payment and user ids and numbers masked. Left out on purpose: judging
whether the words are any good.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random

# In this order: an email holds digits, an order id holds a number.
MASKS = (
    (re.compile(r"#?\bw\d{5,}\b"), " <order> "),
    (re.compile(r"(?<!\S)\S+@\S+"), " <email> "),
    (re.compile(r"\b(?:credit_card|paypal|gift_card)_\d+\b"), " <method> "),
    (re.compile(r"\b[a-z]+_[a-z]+_\d+\b"), " <user> "),
    (re.compile(r"\d+(?:[.,]\d+)*"), " <number> "),
)
TOKEN = re.compile(r"<\w+>|[a-z']+")
OPENER_LENGTH = 4


def masked_tokens(text: str) -> tuple[str, ...]:
    """Return the lower-case words of a text, ids, emails and numbers masked."""
    text = text.lower()
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return tuple(TOKEN.findall(text))


def distinct(tokens: list[tuple[str, ...]], n: int) -> float:
    """Return the share of different n-grams; 1.0 means that none is used twice.

    Args:
        tokens: One tuple of words a text.
        n: Words in an n-gram.
    """
    grams = [t[i : i + n] for t in tokens for i in range(len(t) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def wording_figures(
    texts: Iterable[str], num_texts: int = 400, seed: int = 0
) -> dict[str, int | float]:
    """Return the wording figures of a random sample of texts.

    Args:
        texts: The texts, such as all queries of a file.
        num_texts: How many of them count, drawn at random; fewer when there are fewer.
        seed: Decides which ones.

    Returns:
        `num_texts`, `distinct_2` to `distinct_4` (0.0 to 1.0, higher is more varied), `openers_4`
        (different first four words), `distinct_masked` (texts that differ after masking),
        `vocabulary` (different words), `median_words` and `max_words` of a text.
    """
    texts = list(texts)
    if len(texts) > num_texts:
        texts = Random(seed).sample(texts, num_texts)
    tokens = [masked_tokens(text) for text in texts]
    lengths = sorted(len(text.split()) for text in texts) or [0]
    return {
        "num_texts": len(tokens),
        "distinct_2": round(distinct(tokens, 2), 3),
        "distinct_3": round(distinct(tokens, 3), 3),
        "distinct_4": round(distinct(tokens, 4), 3),
        "openers_4": len({t[:OPENER_LENGTH] for t in tokens}),
        "distinct_masked": len(set(tokens)),
        "vocabulary": len({word for t in tokens for word in t}),
        "median_words": lengths[len(lengths) // 2],
        "max_words": lengths[-1],
    }
