"""IFEval's instructions (arXiv 2311.07911) under their own names, those that can be checked by counting.

Verdicts are those of the paper's published checkers, but for two things: words given by the data are words
here and no regular expressions, and no check takes longer than in proportion to the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from shunter.post.demand import Kind, bracketed, letter, one_of, text, texts, whole

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")
relation = one_of("less than", "at least")


def _related(count: int, wanted: int, how: str) -> bool:
    return count < wanted if how == "less than" else count >= wanted


def _times(word: str, answer: str) -> int:
    return len(re.findall(re.escape(word.strip()), answer, re.IGNORECASE))


def _existence(answer: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in keywords)


def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(_times(keyword, answer), frequency, relation)


def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


def _letters(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(answer.lower().count(letter.lower()), let_frequency, let_relation)


def _words(answer: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", answer)), num_words, relation)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", answer)
    inner = parts[1:-1]
    if not all(part.strip() for part in inner):
        return False
    ends = parts[:1] if len(parts) == 1 else [parts[0], parts[-1]]
    return len(inner) + sum(bool(part.strip()) for part in ends) == num_paragraphs


def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = answer.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth_paragraph <= filled or not (part := parts[nth_paragraph - 1].strip()):
        return False
    word = part.split()[0].lstrip("'").lstrip('"').lower()
    return filled == num_paragraphs and re.split(r"[.,?!'\"]", word, maxsplit=1)[0] == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return sum(bracketed(line) for line in answer.split("\n")) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), answer.lower()) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    """Lines that begin with - or with one *. A * alone takes the line after it with it, as the paper's
    pattern does."""
    lines = [line.lstrip() for line in answer.split("\n")]
    count = at = 0
    while at < len(lines):
        line, last = lines[at], at + 1 == len(lines)
        count += line[:1] == "-"
        if line[:1] == "*" and line[1:2] != "*" and not (line == "*" and last):
            count += 1
            if line == "*":
                count += lines[at + 1][:1] == "-"
                at += 1
        at += 1
    return count == num_bullets


def _highlights(answer: str, num_highlights: int) -> bool:
    single = [each.strip("*").strip() for each in re.findall(r"\*[^\n*]*\*", answer)]
    double = [each[2:-2].strip() for each in re.findall(r"\*\*[^\n*]*\*\*", answer)]
    return sum(map(bool, [*single, *double])) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", answer)) >= num_sections


def _json(answer: str) -> bool:
    inner = answer.strip()
    for fence in FENCES:
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str) -> bool:
    for line in answer.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if begin >= 0 and end > begin + 2 and line[begin : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two(answer: str) -> bool:
    parts = answer.split("******")
    if not all(part.strip() for part in parts[1:-1]):
        return False
    filled = [part.strip() for part in parts if part.strip()]
    return len(filled) == 2 and filled[0] != filled[1]


def _repeats(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    inner = answer.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(_existence, {"keywords": texts}),
    "keywords:frequency": Kind(_frequency, {"keyword": text, "frequency": whole, "relation": relation}),
    "keywords:forbidden_words": Kind(_forbidden, {"forbidden_words": texts}),
    "keywords:letter_frequency": Kind(
        _letters, {"letter": letter, "let_frequency": whole, "let_relation": relation}
    ),
    "length_constraints:number_paragraphs": Kind(_paragraphs, {"num_paragraphs": whole}),
    "length_constraints:number_words": Kind(_words, {"num_words": whole, "relation": relation}),
    "length_constraints:nth_paragraph_first_word": Kind(
        _first_word, {"num_paragraphs": whole, "nth_paragraph": whole, "first_word": text}
    ),
    "detectable_content:number_placeholders": Kind(_placeholders, {"num_placeholders": whole}),
    "detectable_content:postscript": Kind(_postscript, {"postscript_marker": text}),
    "detectable_format:number_bullet_lists": Kind(_bullets, {"num_bullets": whole}),
    "detectable_format:constrained_response": Kind(lambda answer: any(each in answer for each in OPTIONS)),
    "detectable_format:number_highlighted_sections": Kind(_highlights, {"num_highlights": whole}),
    "detectable_format:multiple_sections": Kind(_sections, {"section_spliter": text, "num_sections": whole}),
    "detectable_format:json_format": Kind(_json),
    "detectable_format:title": Kind(_title),
    "combination:two_responses": Kind(_two),
    "combination:repeat_prompt": Kind(_repeats, {"prompt_to_repeat": text}),
    "startend:end_checker": Kind(_ends, {"end_phrase": text}),
    "startend:quotation": Kind(_quoted),
    "punctuation:no_comma": Kind(lambda answer: "," not in answer),
}
