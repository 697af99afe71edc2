"""What a task file repeats: exact and near duplicates, splits that share customers, few wordings.

Near duplicates are found in one pass and linear time: each query gets a MinHash signature over its
three-word shingles (Broder, "On the resemblance and containment of documents", 1997), banding finds
candidates, and a query is tied to one earlier query at most. Ids, emails and numbers are masked
first, so that wordings are compared and not customers.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from common.reader_text import folded
from common.user_error import quoted
from data_reader import Splits, Task, split_number, task_group
from envs.retail import RetailDatabase
from tasks.audit.finding import Finding

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
    (re.compile(r"\b(?:credit_card|paypal|gift_card)_\d+\b"), "<method>"),
    (re.compile(r"\b[a-z]+(?:_[a-z]+)*_\d+\b"), "<id>"),
    (re.compile(r"\d+(?:[.,]\d+)*"), "<n>"),
)
WORD = re.compile(r"<\w+>|[^\W\d_]+(?:'[^\W\d_]+)?")
MAX_EXAMPLES = 20
NUM_WORDING_TEXTS = 400  # whose figures are given; more texts repeat more, so figures need one size


def fingerprint(text: str) -> int:
    """Return 64 bits of a text that stay the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def normalized_query(query: str) -> str:
    """Return a query without case, punctuation and spacing, which make no new task."""
    return " ".join(re.findall(r"[\w#@]+", folded(query)))


class UniquenessCheck:
    """Remember the tasks seen so far and name repeated ones.

    About 100 bytes a task: only 64-bit hashes are kept.
    """

    def __init__(self) -> None:
        self._queries: set[int] = set()
        self._task_ids: set[int] = set()

    def check(self, task: Task) -> list[Finding]:
        """Return a finding for each way in which the task repeats an earlier one; remember it.

        An empty `task_id` is not compared.
        """
        findings = []
        query = fingerprint(normalized_query(task.query))
        if query in self._queries:
            findings.append(Finding("duplicate_query", "an earlier task has the same query"))
        self._queries.add(query)
        if task.task_id:
            task_id = fingerprint(task.task_id)
            if task_id in self._task_ids:
                findings.append(Finding("duplicate_task_id", f"task_id {quoted(task.task_id)} is taken"))
            self._task_ids.add(task_id)
        return findings


def masked_words(text: str) -> list[str]:
    """Return the words of a text, case folded, ids and numbers replaced by their kind."""
    text = folded(text)
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return WORD.findall(text)


class NearDuplicates:
    """Remember the wording of the queries seen so far; about 2 KB a query.

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
        """Return (number of an earlier query, from 0, similarity) for a near duplicate; remember it."""
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


class Place(NamedTuple):
    """Where a task is."""

    path: str
    line: int
    split: str
    """The split that training puts it into."""


class SplitLeakage:
    """Collect the customers and queries of each split, dealt out as in training, over any number of files."""

    def __init__(
        self, db: RetailDatabase, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    ) -> None:
        self._db, self._seed, self._fractions = db, seed, fractions
        self._customers: dict[str, dict[str, Place]] = {}
        self._queries: dict[int, dict[str, Place]] = {}
        self._near = NearDuplicates()
        self._places: list[Place] = []
        self._near_pairs: list[tuple[Place, Place]] = []

    def split_of(self, task: Task) -> str:
        """Return the split that training puts the task into."""
        return Splits._fields[split_number(task, self._seed, self._fractions, self._db)]

    def add(self, task: Task, path: str, line: int) -> tuple[str, dict[str, Any] | None]:
        """Add one task.

        Returns:
            Its split, and {"line", "of_path", "of_line", "similarity"} when its wording nearly
            repeats that of an earlier task in any of the files.
        """
        place = Place(path, line, self.split_of(task))
        customer = customer_of(task, self._db)
        self._customers.setdefault(customer, {}).setdefault(place.split, place)
        query = fingerprint(normalized_query(task.query))
        self._queries.setdefault(query, {}).setdefault(place.split, place)
        likeness = self._near.check(task.query)
        self._places.append(place)
        if likeness is None:
            return place.split, None
        other = self._places[likeness[0]]
        if other.split != place.split:
            self._near_pairs.append((other, place))
        similarity = round(likeness[1], 2)
        near = {"line": line, "of_path": other.path, "of_line": other.line, "similarity": similarity}
        return place.split, near

    def to_dict(self) -> dict[str, Any]:
        """Return counts of what is in more than one split, and the first examples."""
        users = [(name, seen.values()) for name, seen in self._customers.items() if len(seen) > 1]
        seen_twice = [seen.values() for seen in self._queries.values() if len(seen) > 1]
        queries = [("same query", places) for places in seen_twice]
        near = [("near duplicates", pair) for pair in self._near_pairs]
        return {
            "num_users_in_two_splits": len(users),
            "num_queries_in_two_splits": len(queries),
            "num_near_duplicates_in_two_splits": len(near),
            "examples": [
                f"{name}: " + ", ".join(f"{p.path}:{p.line} ({p.split})" for p in places)
                for name, places in (users + queries + near)[:MAX_EXAMPLES]
            ],
        }


def customer_of(task: Task, db: RetailDatabase) -> str:
    """Name the customer by gold's own calls; by the row's user id where gold finds nobody."""
    by_calls = task_group(Task(task.query, task.gold_actions, "", ""), db)
    found_by_calls = by_calls.startswith("user:") or not task.user_id
    return by_calls if found_by_calls else f"user:{task.user_id}"


def distinct(tokens: list[tuple[str, ...]], n: int) -> float:
    """Return the share of different n-grams; 1.0 means that none is used twice."""
    grams = [t[i : i + n] for t in tokens for i in range(len(t) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


class EvenSample:
    """Keep up to `size` of the texts that come, each with the same chance (reservoir sampling)."""

    def __init__(self, size: int = NUM_WORDING_TEXTS) -> None:
        self.texts: list[str] = []
        self._size = size
        self._num_seen = 0
        self._random = Random(0)

    def add(self, text: str) -> None:
        """Keep a text, or not."""
        self._num_seen += 1
        if self._num_seen <= self._size:
            self.texts.append(text)
            return
        place = self._random.randrange(self._num_seen)
        if place < self._size:
            self.texts[place] = text


def wording_figures(texts: Sequence[str]) -> dict[str, int | float]:
    """Return how varied texts are.

    Returns:
        `num_texts`, `distinct_2` to `distinct_4` (0.0 to 1.0, higher is more varied), `openers_4`
        (different first four words), `distinct_masked` (texts that differ after masking),
        `vocabulary` (different words), `median_words` and `max_words` of a text.
    """
    tokens = [tuple(masked_words(text)) for text in texts]
    lengths = sorted(len(text.split()) for text in texts) or [0]
    return {
        "num_texts": len(tokens),
        "distinct_2": round(distinct(tokens, 2), 3),
        "distinct_3": round(distinct(tokens, 3), 3),
        "distinct_4": round(distinct(tokens, 4), 3),
        "openers_4": len({t[:4] for t in tokens}),
        "distinct_masked": len(set(tokens)),
        "vocabulary": len({word for t in tokens for word in t}),
        "median_words": lengths[len(lengths) // 2],
        "max_words": lengths[-1],
    }
