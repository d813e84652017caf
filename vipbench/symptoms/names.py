"""Whether a text holds a class name."""

from __future__ import annotations

import re
import unicodedata


def holds_name(name: str, text: str) -> bool:
    """Whether `text` holds `name` as whole words, singular or plural."""
    words = re.findall(r"\w+", normal(name))
    if not words:
        return False
    last = "|".join(map(re.escape, sorted(_forms(words[-1]))))
    pattern = r"[\W_]+".join([*map(re.escape, words[:-1]), f"(?:{last})"])
    return re.search(rf"(?<!\w){pattern}(?!\w)", normal(text)) is not None


def _forms(word: str) -> set[str]:
    """`word` in singular and plural, as far as endings tell (nevus, nevi; keratosis, -oses)."""
    forms = {word, word + "s", word + "es"}
    if len(word) > 3:
        if word.endswith("s") and not word.endswith("ss"):
            forms.add(word[:-1])
        for one, many in (("us", "i"), ("sis", "ses")):
            if word.endswith(one):
                forms.add(word.removesuffix(one) + many)
            if word.endswith(many):
                forms.add(word.removesuffix(many) + one)
    return forms


def normal(text: str) -> str:
    """`text` without regard to case, underscores and white space."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return " ".join(text.split())
