"""Text that looks like what it is: in NFC, without invisible characters, with names that cannot be mistaken.

Source: Unicode UAX 15 (normalisation), UTS 39 (confusables; our names are ASCII, so its table shrinks to six pairs).
"""

from __future__ import annotations

import unicodedata

__all__ = ["fault_of_name", "fault_of_text", "skeleton"]

_ALLOWED = "\n\t "
_REFUSED = {
    "Cc": "a control",
    "Cf": "an invisible",
    "Cs": "a surrogate",
    "Co": "a private",
    "Cn": "an unassigned",
    "Zs": "an odd space",
    "Zl": "a line break",
    "Zp": "a line break",
}
_LOOKS = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", ".": "-"})
_PAIRS = (("rn", "m"), ("vv", "w"), ("cl", "d"))


def fault_of_text(text: str) -> str | None:
    """Why ``text`` must not be signed, or None: it is not in NFC, or holds what a reader cannot see.

    >>> fault_of_text("caf" + chr(0x65) + chr(0x301))
    'text is not in Unicode normal form C'
    """
    for character in text:
        kind = _REFUSED.get(unicodedata.category(character))
        if kind is not None and character not in _ALLOWED:
            return f"text holds {kind} character: U+{ord(character):04X}"
    if not unicodedata.is_normalized("NFC", text):
        return "text is not in Unicode normal form C"
    return None


def fault_of_name(text: str) -> str | None:
    """Which letter of a name is not one of ours, or None.

    >>> fault_of_name("hospit" + chr(0x430) + "l")
    "'а' is U+0430 CYRILLIC SMALL LETTER A, not a letter of a to z"
    """
    for character in text:
        if not character.isascii():
            name = unicodedata.name(character, "unnamed")
            shown = f"'{character}' is " if character.isprintable() else ""
            return f"{shown}U+{ord(character):04X} {name}, not a letter of a to z"
    return None


def skeleton(name: str) -> str:
    """Equal for names that a hurried reader takes for one another.

    >>> skeleton("hospital-1") == skeleton("hospitai.l")
    True
    """
    drawn = name.translate(_LOOKS)
    for pair, single in _PAIRS:
        drawn = drawn.replace(pair, single)
    return drawn
