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
_BLANKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """Return a text with letters composed (NFC), without invisible characters, in plain type.

    Letter case and white space stay. Invisible are format characters (direction marks, zero-width
    characters, soft hyphens) and variation selectors.
    """
    if text.isascii():
        return text
    text = "".join(
        c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f"
    )
    return unicodedata.normalize("NFC", text.translate(_PLAIN))


def folded(text: str) -> str:
    """Return `plain` text without letter case, every run of white space as one blank.

    Case goes by Unicode's own folding, of no language: "Straße" is "STRASSE", a Turkish dotless i
    is no i.
    """
    return _BLANKS.sub(" ", plain(unicodedata.normalize("NFD", text).casefold()))
