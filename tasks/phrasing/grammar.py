"""Turn phrases with `{slots}` into clean sentences.

A fact (an id, a name, a price) is put between marks while sentences are built, so that capitals,
typing slips and punctuation rules leave it alone; `finish` removes the marks.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random

FACT_START, FACT_END, ARTICLE = "\x02", "\x03", "\x04"

SLOT = re.compile(r"\{(\w+)\}")
FACT = re.compile(f"{FACT_START}([^{FACT_END}]*){FACT_END}")
# A fact, or else the first letter of a sentence, of a line or of a numbered point.
SENTENCE_START = re.compile(
    f"{FACT_START}[^{FACT_END}]*{FACT_END}"
    r"|((?:^|\n)(?:\(?\d[.)] )?|[.!?]\)?\s+(?:\(?\d\) )?)([a-z])"
)
# A full stop outside of facts.
SENTENCE_END = re.compile(rf"\. (?![^{FACT_START}]*{FACT_END})")
WORD = re.compile(r"[a-z]{5,}")
VOWELS = frozenset("aeiouAEIOU")

# A word that carries meaning for an argument is never misspelt.
KEPT_WORDS = frozenset(
    "mistake accident wrong button error duplicate cancel return exchange address apartment second "
    "pending delivered shipped street country state without number suite line".split()
)


def fact(value: str) -> str:
    """Mark a value that must stay as it is."""
    return f"{FACT_START}{value}{FACT_END}"


class Grammar:
    """Expand phrases with one random stream."""

    def __init__(self, rng: Random, phrases: Mapping[str, tuple[str, ...]]):
        self.rng = rng
        self.phrases = phrases

    def pick(self, name: str, slots: Mapping[str, str]) -> str:
        """Choose one alternative of a name and expand it."""
        return self.expand(self.rng.choice(self.phrases[name]), slots)

    def expand(self, template: str, slots: Mapping[str, str]) -> str:
        """Fill every slot: from `slots` as given, else from the phrases.

        Args:
            slots: Ready texts by name; they win over phrases.

        Raises:
            KeyError: A slot has neither a text nor phrases.
        """

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            if name in slots:
                return slots[name]
            if name == "an":
                return ARTICLE
            return self.pick(name, slots)

        return SLOT.sub(fill, template)

    def frame(self, frame: str, name: str, slots: Mapping[str, str]) -> str:
        """Choose an alternative of `name` and put its first sentence into a frame ("could you ...?")."""
        first, *rest = SENTENCE_END.split(self.pick(name, slots), maxsplit=1)
        sentence = self.pick(frame, {**slots, "vp": first})
        if not rest:
            return sentence
        return f"{sentence if sentence[-1] in '.?!' else sentence + '.'} {rest[0]}."


def phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Return what finds any of these phrases in a text, with anything short in a slot's place."""
    forms = (".{1,30}?".join(map(re.escape, SLOT.split(phrase)[::2])) for phrase in phrases)
    return re.compile("|".join(forms), re.IGNORECASE)


def resolve_articles(text: str) -> str:
    """Put "a" or "an" by the sound of the next word, as far as its letters tell."""

    def article(match: re.Match[str]) -> str:
        return "an" if match.group(1) in VOWELS else "a"

    return re.sub(f"{ARTICLE}(?=[ {FACT_START}\"]*(\\w))", article, text)


def tidy_punctuation(text: str) -> str:
    """Remove the doubled and stranded punctuation that joining phrases leaves."""
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" +([,.;:!?)])", r"\1", text)
    text = re.sub(r",+([.;:!?)])", r"\1", text)
    text = re.sub(r",(\s*[,-])", r"\1", text)
    text = re.sub(r"([.!?])\1+", r"\1", text)
    text = re.sub(r"([.!?;:])[.,;]", r"\1", text)
    text = re.sub(r";\s*;", ";", text)
    return re.sub(r" *\n *", "\n", text).strip()


def capitalize(text: str) -> str:
    """Begin every sentence with a capital letter."""

    def start(match: re.Match[str]) -> str:
        return match.group(1) + match.group(2).upper() if match.group(2) else match.group()

    return SENTENCE_START.sub(start, text)


def lower_case(text: str) -> str:
    """Write everything but the facts in lower case, as hurried people do."""
    parts = FACT.split(text)
    # Odd parts are facts.
    return "".join(fact(p) if n % 2 else p.lower() for n, p in enumerate(parts))


def slip(rng: Random, word: str) -> str:
    """Return a word with one typing slip: swapped, lost or doubled letters."""
    place = rng.randrange(1, len(word) - 2)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == 1:
        return word[:place] + word[place + 1 :]
    return word[:place] + word[place] + word[place:]


def add_slips(rng: Random, text: str, num_slips: int) -> str:
    """Misspell some words that are neither facts nor tied to an argument.

    Args:
        num_slips: How many words to misspell, if there are as many.
    """
    parts = FACT.split(text)
    spots = [
        (n, match.start(), match.group())
        for n, part in enumerate(parts)
        if n % 2 == 0
        for match in WORD.finditer(part)
        if match.group() not in KEPT_WORDS
    ]
    for n, start, word in sorted(rng.sample(spots, min(num_slips, len(spots))), reverse=True):
        parts[n] = parts[n][:start] + slip(rng, word) + parts[n][start + len(word) :]
    return "".join(fact(p) if n % 2 else p for n, p in enumerate(parts))


def finish(text: str) -> str:
    """Take the marks away."""
    return text.replace(FACT_START, "").replace(FACT_END, "")
