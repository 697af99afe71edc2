"""Text as a reader sees it: one normal form for comparing what a query says with what gold holds.

Used wherever words are compared with words: grounding, repeated queries, near duplicates, groups of
a split. Tools compare as tau-bench's do (letter case aside, composed and decomposed letters
differ), and the scorer compares arguments as they are.
"""

import re
import unicodedata

# Typographic forms of the apostrophe, the hyphen and the full-width ASCII characters.
_PLAIN = {ord(c): "'" for c in "\u2018\u2019\u02bc"} | {ord(c): "-" for c in "\u2010\u2011"}
_PLAIN |= {0xFF01 + i: 0x21 + i for i in range(94)}
_PLAIN |= {0x066B: ord("."), 0x066C: ord(",")}  # in Arabic numbers
_DIGIT = re.compile(r"\d")  # of any script
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
_INVISIBLE = re.compile(f"[\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef{_FILLERS}]")
_BLANKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """Return a text with letters composed (NFC), without invisible characters, in plain type.

    Letter case and white space stay, the digits of every script become ASCII's. Invisible are
    format characters (direction marks, zero-width characters, soft hyphens), variation selectors
    and fillers.
    """
    if text.isascii():
        return text
    text = "".join(c for c in _INVISIBLE.sub("", text) if unicodedata.category(c) != "Cf")
    text = _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    return unicodedata.normalize("NFC", text.translate(_PLAIN))


def is_blank(text: str) -> bool:
    """Tell whether a reader sees nothing: no letter, digit, punctuation or symbol."""
    return not any(unicodedata.category(c)[0] in "LNPS" and c not in _FILLERS for c in text)


def folded(text: str) -> str:
    """Return `plain` text without letter case, every run of white space as one blank.

    Case goes by Unicode's own folding, of no language: "Straße" is "STRASSE", a Turkish dotless i
    is no i.
    """
    return _BLANKS.sub(" ", plain(unicodedata.normalize("NFD", text).casefold()))
