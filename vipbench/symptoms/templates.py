"""Files of prompt templates: texts that hold `{}` once, in the place of the class name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vipbench.symptoms.load import MAX_CHARACTERS, SymptomError, file_text

MOST = 1000


def is_template(value: Any) -> bool:
    """Whether `value` is a text with one `{}` and no other brace."""
    if not isinstance(value, str) or value.count("{}") != 1:
        return False
    return value.count("{") == value.count("}") == 1


def load_templates(path: Path) -> tuple[str, ...]:
    """The templates of a file: a JSON list, or one a line. Raises SymptomError."""
    what = f"template file '{path}'"
    text = file_text(path, what)
    found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip()[:1] == "[":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SymptomError(f"{what} is not JSON: {error}") from None
    wrong = [one for one in found if not is_template(one) or len(one) > MAX_CHARACTERS]
    if not found or wrong or len(found) > MOST:
        given = f"got {str(wrong[0])[:80]!r}" if wrong else f"got {len(found)} of them"
        raise SymptomError(
            f"{what}: expected 1 to {MOST} texts, each holding {{}} once and at most "
            f"{MAX_CHARACTERS} characters, a line each or as a JSON list; {given}"
        )
    if len(set(found)) < len(found):
        twice = next(one for one in found if found.count(one) > 1)
        raise SymptomError(f"{what} holds the template '{twice}' twice")
    return tuple(found)
