"""Find queries that nearly repeat an earlier one, in one pass and linear time.

Ids, emails and numbers are masked first, so that the wording is compared and not the customer.
Each query gets a MinHash signature over its three-word shingles (Broder, "On the resemblance and
containment of documents", 1997); banding finds candidates. Left out: exact similarities and all
pairs of a group - each query is tied to one earlier query at most.
"""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np

from common.reader_text import folded

# A pair at 0.8 meets in some band with probability 0.99, one at 0.4 in 0.12.
NUM_BANDS = 12
NUM_ROWS = 5
SHINGLE_WORDS = 3
MAX_WORDS = 10_000  # of a query; what comes later, such as a pasted file, is not compared
# Constants of MurmurHash3's finalizer, which makes a hash of 64 bits out of a number of 64 bits.
MIX_1, MIX_2, HALF = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)
MASKS = (
    (re.compile(r"(?<!\S)\S+@\S+"), "<email>"),
    (re.compile(r"#?\bw\d+\b"), "<order>"),
    (re.compile(r"\b[a-z]+(?:_[a-z]+)*_\d+\b"), "<id>"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "<n>"),
)
WORD = re.compile(r"<\w+>|[^\W\d_]+(?:'[^\W\d_]+)?")


def masked_words(text: str) -> list[str]:
    """Return the words of a text, case folded, ids and numbers replaced by their kind."""
    text = folded(text)
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return WORD.findall(text)


class NearDuplicates:
    """Remembers the wording of the queries seen so far; about 2 KB a query.

    Args:
        threshold: Estimated Jaccard similarity of shingle sets, 0..1, from which two queries are
            called near duplicates; one changed word of fifty leaves 0.88. The estimate's standard
            error is 0.05 at 0.8.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        self._threshold = threshold
        num_hashes = NUM_BANDS * NUM_ROWS
        random = np.random.default_rng(0)
        self._seeds = random.integers(0, 1 << 63, num_hashes, dtype=np.uint64)[:, None]
        self._bands: list[dict[int, int]] = [{} for _ in range(NUM_BANDS)]
        self._signatures: list[bytes] = []

    def check(self, query: str) -> tuple[int, float] | None:
        """Return (index of an earlier query, similarity) for a near duplicate; remember it.

        Args:
            query: The text; queries are numbered from 0 in the order they come.
        """
        signature = self._signature(query)
        index = len(self._signatures)
        raw = signature.tobytes()
        self._signatures.append(raw)
        candidates = set()
        width = NUM_ROWS * signature.itemsize
        for number, band in enumerate(self._bands):
            # As an int, a key takes half the memory of bytes.
            key = int.from_bytes(raw[number * width : (number + 1) * width])
            candidates.add(band.setdefault(key, index))
        candidates.discard(index)
        if not candidates:
            return None
        similarity, negative = max((self._similarity(signature, c), -c) for c in candidates)
        return (-negative, similarity) if similarity >= self._threshold else None

    def _signature(self, query: str) -> np.ndarray:
        words = masked_words(query)[:MAX_WORDS]
        ends = range(max(1, len(words) - SHINGLE_WORDS + 1))
        shingles = {crc32(" ".join(words[i : i + SHINGLE_WORDS]).encode()) for i in ends}
        hashes = np.fromiter(shingles, dtype=np.uint64)
        # Each seed must order the shingles in a way of its own; a linear function would not.
        mixed = (hashes[None, :] ^ self._seeds) * MIX_1
        mixed = (mixed ^ (mixed >> HALF)) * MIX_2
        # The low half of a minimum tells two minima apart and halves the memory.
        return (mixed ^ (mixed >> HALF)).min(axis=1).astype(np.uint32)

    def _similarity(self, signature: np.ndarray, other: int) -> float:
        earlier = np.frombuffer(self._signatures[other], dtype=np.uint32)
        return float((signature == earlier).mean())
