"""Constraints under the function names of the data set RLVR-IFeval (arXiv 2411.15124, section 6.2).

They are near IFEval's and not the same: there, a number of words is at least, around or at most another, and
a paragraph ends at `* * *`. Verdicts are those of the set's published functions, but for an unknown
quantifier, which is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from shunter.post.demand import Kind, bracketed, letter, one_of, text, texts, whole

quantifier = one_of("at least", "around", "at most")


def _near(count: int, wanted: int, how: str, room: int) -> bool:
    if how == "around":
        return abs(count - wanted) <= room
    return count >= wanted if how == "at least" else count <= wanted


def _tenth(wanted: int) -> int:
    return max(round(wanted * 0.1), 1)


def _keywords(answer: str, keyword_list: Sequence[str]) -> bool:
    return all(word.lower() in answer.lower() for word in keyword_list)


def _frequency(answer: str, word: str, N: int) -> bool:
    return re.findall(r"\w+", answer.lower()).count(word.lower()) == N


def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(word.lower() in answer.lower() for word in forbidden_words)


def _paragraphs(answer: str, N: int) -> bool:
    lines = "\n".join(line.strip() for line in answer.splitlines()).strip()
    parts = lines.split("* * *")
    return len(parts) == N and all(part.strip() for part in parts)


def _words(answer: str, N: int, quantifier: str) -> bool:
    return _near(len(answer.split()), N, quantifier, _tenth(N))


def sentences(answer: str) -> int:
    """Parts that end with . ? or ! before white space; not after an abbreviation like `e.g.` or `Dr.`."""
    count = 1
    for at, sign in enumerate(answer):
        if not sign.isspace() or at == 0 or answer[at - 1] not in ".?!":
            continue
        before = answer[max(0, at - 4) : at]
        short = len(before) == 4 and _word(before[0]) and before[1] == "." and _word(before[2])
        count += not short and re.fullmatch(r"[A-Z][a-z]\.", before[-3:]) is None
    return count


def _word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _sentences(answer: str, N: int, quantifier: str) -> bool:
    return _near(sentences(answer), N, quantifier, 1)


def _first_word(answer: str, N: int, first_word: str, i: int) -> bool:
    parts = answer.split("\n\n")
    return len(parts) == N and 1 <= i <= N and parts[i - 1].strip().startswith(first_word)


def _postscript(answer: str, postscript_marker: str) -> bool:
    at = answer.find(postscript_marker)
    return at >= 0 and len(answer[at:].strip()) > len(postscript_marker)


def _placeholders(answer: str, N: int) -> bool:
    return sum(bracketed(line) for line in answer.split("\n")) >= N


def _bullets(answer: str, N: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in answer.split("\n")) == N


def _title(answer: str) -> bool:
    return any(bracketed(line, "<<", ">>") for line in answer.split("\n"))


def _choice(answer: str, options: Sequence[str]) -> bool:
    return any(option in answer for option in options)


def _highlights(answer: str, N: int) -> bool:
    return sum(line.count("*") // 2 for line in answer.split("\n")) >= N


def _sections(answer: str, N: int, section_splitter: str) -> bool:
    return len(re.findall(rf"{re.escape(section_splitter)}\s?\d+", answer, re.IGNORECASE)) >= N


def _json(answer: str) -> bool:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True


def _two(answer: str) -> bool:
    parts = answer.split("******")
    return len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _capitals(answer: str, N: int, quantifier: str) -> bool:
    return _near(len(re.findall(r"\b[A-Z]+\b", answer)), N, quantifier, _tenth(N))


KINDS: Mapping[str, Kind] = {
    "verify_keywords": Kind(_keywords, {"keyword_list": texts}),
    "verify_keyword_frequency": Kind(_frequency, {"word": text, "N": whole}),
    "validate_forbidden_words": Kind(_forbidden, {"forbidden_words": texts}),
    "verify_letter_frequency": Kind(
        lambda a, letter, N: a.count(letter) == N, {"letter": letter, "N": whole}
    ),
    "verify_paragraph_count": Kind(_paragraphs, {"N": whole}),
    "validate_word_constraint": Kind(_words, {"N": whole, "quantifier": quantifier}),
    "verify_sentence_constraint": Kind(_sentences, {"N": whole, "quantifier": quantifier}),
    "validate_paragraphs": Kind(_first_word, {"N": whole, "first_word": text, "i": whole}),
    "verify_postscript": Kind(_postscript, {"postscript_marker": text}),
    "validate_placeholders": Kind(_placeholders, {"N": whole}),
    "verify_bullet_points": Kind(_bullets, {"N": whole}),
    "validate_title": Kind(_title),
    "validate_choice": Kind(_choice, {"options": texts}),
    "validate_highlighted_sections": Kind(_highlights, {"N": whole}),
    "validate_sections": Kind(_sections, {"N": whole, "section_splitter": text}),
    "validate_json_format": Kind(_json),
    "validate_repeat_prompt": Kind(
        lambda answer, original_prompt: answer.startswith(original_prompt), {"original_prompt": text}
    ),
    "validate_two_responses": Kind(_two),
    "validate_uppercase": Kind(lambda answer: answer == answer.upper()),
    "validate_lowercase": Kind(lambda answer: answer == answer.lower()),
    "validate_frequency_capital_words": Kind(_capitals, {"N": whole, "quantifier": quantifier}),
    "validate_end": Kind(lambda answer, end_phrase: answer.endswith(end_phrase), {"end_phrase": text}),
    "validate_quotation": Kind(lambda answer: answer.startswith('"') and answer.endswith('"')),
    "validate_no_commas": Kind(lambda answer: "," not in answer),
}
