"""Hostile and merely odd names, made harmless in each format."""

from __future__ import annotations

import re
import unicodedata

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # By number: their commands need a package, and babel gives the bare " a meaning.
    '"': r"{\char34}",
    "`": r"{\char96}",
    # A bracket after a row's \\ would be read as its argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
}
# α to ω in order; final sigma is sigma, omicron an o.
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma "
    "sigma tau upsilon phi chi psi omega"
)
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l"}
_LETTERS |= {"Ł": "L", "å": "aa", "Å": "AA"}


def plain(text: str) -> str:
    """One line without control characters, line breaks and marks that reverse the direction of
    writing: what a terminal can be given."""
    out = []
    for char in text:
        if char.isspace():
            out.append(" ")
        elif unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn"):
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(char)
    return "".join(out)


def latex(text: str) -> str:
    """Text for LaTeX as it comes, with no package and any engine: what pdflatex cannot set is
    named by its code point."""
    # Hyphens in a row would become dashes.
    return "".join(map(_latex_char, plain(text).replace("--", "-\0-").replace("--", "-\0-")))


def _latex_char(char: str) -> str:
    if char == "\0":
        return "{}"
    if char in _LATEX:
        return _LATEX[char]
    if char.isascii():
        return char
    if char in _LETTERS:
        return f"\\{_LETTERS[char]}{{}}"
    if "α" <= char <= "ω":
        name = _GREEK.split()[ord(char) - ord("α")]
        return "$o$" if name == "omicron" else f"$\\{name}$"
    apart = unicodedata.normalize("NFD", char)
    if len(apart) == 2 and apart[0].isascii() and apart[1] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(apart[0], apart[0])
        return f"\\{_ACCENTS[apart[1]]}{{{base}}}"
    return f"(U+{ord(char):04X})"


def markdown(text: str) -> str:
    """Text for a cell or line of GitHub Markdown: no mark-up, HTML, link, list or column break."""
    out = re.sub(r"[\\`*_{}\[\]#!|~$]", r"\\\g<0>", plain(text))
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        out = out.replace(char, entity)
    # What would begin a list or underline a heading.
    return re.sub(r"^\s*(\d*)([-+=.)])", r"\1\\\2", out.lstrip())
