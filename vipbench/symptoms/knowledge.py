"""Knowledge ablation (Fig. 3 of ViP, arXiv 2409.00341): other texts in the symptoms' place.

`out-of-domain` deals out descriptions of birds, vehicles, food, …; `useless` true statements that
tell no class from another; `incorrect` turns key words of each symptom into their antonyms by a
shipped word list, and a symptom without such a word into its denial. Every class keeps as many
texts as it had. Nothing is drawn at random.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, get_args

Knowledge = Literal["symptoms", "out-of-domain", "useless", "incorrect"]
KNOWLEDGE: tuple[str, ...] = get_args(Knowledge)

_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")


def replace_knowledge(
    symptoms: Mapping[str, Sequence[str]], knowledge: str
) -> dict[str, tuple[str, ...]]:
    """The texts that stand in the symptoms' place, class by class. Raises ValueError."""
    if knowledge == "symptoms":
        return {name: tuple(texts) for name, texts in symptoms.items()}
    if knowledge == "incorrect":
        return {name: tuple(map(turned, texts)) for name, texts in symptoms.items()}
    if knowledge not in KNOWLEDGE:
        raise ValueError(f"unknown knowledge '{knowledge}'; known: {', '.join(KNOWLEDGE)}")
    pool, start, found = list(_data(knowledge)), 0, {}
    for name, texts in symptoms.items():
        # No text for two classes, as long as there are enough of them.
        found[name] = tuple(pool[(start + i) % len(pool)] for i in range(len(texts)))
        start += len(texts)
    return found


def turned(symptom: str) -> str:
    """`symptom` with every word of the list turned into its antonym; "without …" where it holds
    none."""
    words: Mapping[str, str] = _data("antonyms")
    count = 0

    def turn(match: re.Match[str]) -> str:
        nonlocal count
        antonym = words.get(match[0].lower())
        if antonym is None:
            return match[0]
        count += 1
        return antonym

    text = _WORD.sub(turn, symptom)
    return _articles(text) if count else f"without {symptom}"


def changes(symptoms: Mapping[str, Sequence[str]], knowledge: str) -> list[tuple[str, str, str]]:
    """(class, symptom, what stands in its place), for the user to read before a run."""
    new = replace_knowledge(symptoms, knowledge)
    return [
        (name, old, text)
        for name, texts in symptoms.items()
        for old, text in zip(texts, new[name], strict=True)
    ]


def _articles(text: str) -> str:
    """a/an as the word behind it wants it."""
    text = re.sub(r"\b([Aa])n (?=[^aeiouAEIOU\W])", r"\1 ", text)
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


@lru_cache
def _data(name: str) -> Any:
    file = resources.files("vipbench.symptoms").joinpath("data", "knowledge", f"{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))
