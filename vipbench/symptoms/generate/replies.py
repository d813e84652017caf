"""From a model's reply to features. A reply is data: it is cut into lines, each line is judged,
and nothing in it is run, opened or followed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from vipbench.symptoms.names import holds_name

MOST_FEATURES = 100  # of one reply
MOST_LINES = 1000
MOST_CHARACTERS, MOST_WORDS = 200, 30

_BULLET = re.compile(r"^\s*(?:[-*•–·‣◦]|\(?\d{1,3}[.)])\s+(.*)$")
_ADDRESS = re.compile(r"(?i)\b(?:https?|ftp|file|data|javascript):|\bwww\.|\S+@\S+\.\S+")
_CODE = re.compile(
    r"[`<>{}\\$|;^~]|\b(?:import|exec|eval|subprocess|sudo|curl|wget|rm\s+-|select\s+.*\s+from|drop"
    r"\s+table|__\w+__)\b|\w\(|&\w+;|\.\./|=\s*['\"]",
    re.IGNORECASE,
)
# Speech to a reader or a machine is no visual feature, whatever it asks for.
_ORDER = re.compile(
    r"(?i)\b(?:ignore|disregard|forget|override|bypass)\b.*\b(?:previous|above|prior|earlier|all|"
    r"instruction\w*|rules?|prompts?|safety)\b|\b(?:system|developer|assistant|user)\s*(?:prompt|"
    r"message|:)|\b(?:instructions?|password|api\s*key|secret|credentials?|token|prompt|jailbreak|"
    r"dataset|labels?|file|folder|download|upload|install|execute|run\s+the|open\s+the|email|"
    r"send\s|delete|overwrite|as\s+an\s+ai|language\s+model|i\s+am|i['’]m|i\s+can(?:not|['’]t)|"
    r"sorry|you\s+(?:are|must|should|will|can)|please|always\s+(?:answer|predict|output)|"
    r"classif(?:y|ied)|predict(?:ed)?|answer|output|respond|pretend|admin(?:istrator)?)\b"
)


@dataclass(frozen=True)
class Dropped:
    """A text that is not used, and why."""

    text: str
    reason: str


def features(reply: str, class_names: Sequence[str]) -> tuple[list[str], list[Dropped]]:
    """The bullet points of a reply that can be symptoms, and what was dropped with its reason."""
    kept: dict[str, str] = {}
    dropped: list[Dropped] = []
    lines = reply.splitlines()
    if len(lines) > MOST_LINES:
        dropped.append(Dropped(lines[MOST_LINES], f"the reply has more than {MOST_LINES} lines"))
    for line in lines[:MOST_LINES]:
        if not line.strip():
            continue
        found = _BULLET.match(line)
        if found is None:
            dropped.append(Dropped(line, "no bullet point"))
            continue
        text = tidy(found[1])
        reason = unfit(text, class_names)
        if reason is None and text.casefold() in kept:
            reason = "repeated"
        if reason is None and len(kept) == MOST_FEATURES:
            reason = f"more than {MOST_FEATURES} features"
        if reason is None:
            kept[text.casefold()] = text
        else:
            dropped.append(Dropped(found[1], reason))
    return list(kept.values()), dropped


def tidy(text: str) -> str:
    """One line without emphasis marks, white space at its ends and a final stop."""
    text = unicodedata.normalize("NFKC", " ".join(text.split()))
    return text.replace("**", "").replace("__", "").strip(" *_\"'“”").rstrip(".;,")


def unfit(text: str, class_names: Sequence[str], may_name: str | None = None) -> str | None:
    """Why a text cannot stand in a symptom file, or None. may_name: a class it may name."""
    if not text.isprintable():
        return "control or invisible characters"
    if len(text) > MOST_CHARACTERS or len(text.split()) > MOST_WORDS:
        return f"longer than {MOST_CHARACTERS} characters or {MOST_WORDS} words"
    if len(re.findall(r"[^\W\d_]{2,}", text)) < 2:
        return "fewer than two words"
    if _letters_of_mixed_scripts(text):
        return "letters of several scripts in one word"
    for pattern, reason in (
        (_ADDRESS, "an address"),
        (_CODE, "code or markup"),
        (_ORDER, "speech to the reader instead of a feature"),
    ):
        if pattern.search(text):
            return reason
    for name in class_names:
        if name != may_name and holds_name(name, text):
            return f"class leak: it names '{name}'"
    return None


def _letters_of_mixed_scripts(text: str) -> bool:
    """Latin letters beside look-alikes of other scripts, by which a name could slip through."""
    for word in text.split():
        scripts = {unicodedata.name(c, "?").split()[0] for c in word if c.isalpha()}
        if len(scripts) > 1:
            return True
    return False
