"""Quality filters against datatrove's classes: throughput of one core, and how often they agree.

Both sides judge the same documents in memory, one core, in alternating rounds. The baseline runs twice: with
its default splitter (spaCy's), as its users run it, and with ours, written in Python as a regular expression,
so that decisions can be compared and the gain told apart from that of a simpler splitter. A decision is to
keep or to drop, and for C4 also the text that stays. Where a decision with spaCy's words is another and with
ours the same, the words explain it; which pieces the two splitters make of the same text is counted beside.

Two corpora: English as it is, and as much as is asked made of its paragraphs, drawn anew with what filters
look for among them. English is what the project ships, and the text files that are named.

datatrove is no part of shunter. Make an environment with it and run this there:
    python -m venv peers
    peers/bin/pip install 'datatrove==0.10.1' 'xxhash<4' spacy tokenizers regex pydantic PyYAML pyarrow
    PYTHONPATH=. peers/bin/python -m bench.curate --text tinyshakespeare.txt   # all, keeps the result
    PYTHONPATH=. peers/bin/python -m bench.curate --tiny                       # to try it; keeps nothing
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import ROOT, alternate, machine, save
from shunter.data.curation.c4 import C4Quality
from shunter.data.curation.fineweb import FineWebQuality
from shunter.data.curation.gopher import GopherQuality, GopherRepetition
from shunter.data.curation.operators import Operator
from shunter.data.curation.pages import Pages

GOAL, SAME = 20.0, 0.99
RESAMPLED, TINY = 20.0, 0.3  # MB
SAMPLED = 300  # documents whose words are looked at
BATCH = 1 << 18  # characters
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


def clean(files: Sequence[Path] = ()) -> list[str]:
    """The shipped English and that of text files, in sections of about 3,000 characters."""
    from shunter.jobs.curate import sections

    found: list[str] = []
    for path in files:
        text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        found += [part for part in sections(text, 3000) if part.strip()]
    for name in ("state_union", "inaugural"):
        with zipfile.ZipFile(ROOT / "recipes" / "data" / f"{name}.zip") as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".txt"):
                    text = archive.read(member).decode("utf-8", "replace").replace("\r\n", "\n")
                    found += [part for part in sections(text, 3000) if part.strip()]
    return found


def resampled(texts: Sequence[str], megabytes: float, seed: int) -> list[str]:
    """Documents of 1 to 12 drawn paragraphs. Two in five get what filters look for: menus, repeats, lists."""
    draw = np.random.default_rng(seed)
    paragraphs = [part for text in texts for part in text.split("\n\n") if part.strip()]
    sentences = [s for part in paragraphs for s in part.replace("\n", " ").split(". ") if len(s) > 20]
    found, size = [], 0.0
    while size < megabytes * 1e6:
        parts = [paragraphs[i] for i in draw.integers(0, len(paragraphs), int(draw.integers(1, 13)))]
        kind, dose = int(draw.integers(0, 20)), int(draw.integers(2, 40))
        lines = [sentences[i] for i in draw.integers(0, len(sentences), dose)]
        if kind == 0:
            parts += ["\n".join(line[:25] for line in lines)]
        elif kind == 1:
            parts += [parts[0]] * (dose // 6)
        elif kind == 2:
            parts += ["\n".join(f"- {line}" for line in lines)]
        elif kind == 3:
            parts += ["\n".join(f"{line[:60]}..." for line in lines)]
        elif kind == 4:
            parts += [f"{lines[0]} " * dose]
        elif kind == 5:
            parts += [" ".join(f"#{word}" for line in lines for word in line.split()[:2])]
        elif kind == 6:
            parts += ["\n".join(f"{n} | {n * n} | {n / 7:.3f}" for n in range(dose * 3))]
        elif kind == 7:
            parts = [f"{line}. We use cookies. {{}}" if dose % 2 else f"{line}." for line in lines[:6]]
        found.append("\n\n".join(parts))
        size += len(found[-1])
    return found


def batches(texts: Sequence[str]) -> list[list[str]]:
    """As the job cuts them."""
    found: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if size > BATCH:
            found.append([])
            size = 0
        found[-1].append(text)
        size += len(text)
    return found


def splitter() -> Any:
    """Our words and sentences for datatrove: written again as a regular expression."""
    import regex
    from datatrove.utils.word_tokenizers import WordTokenizer

    letter = r"[\p{L}\p{M}\p{N}_]"
    joined = rf"(?<={letter})['\u2019](?={letter})|(?<=\p{{Nd}})[.,](?=\p{{Nd}})"
    word = rf"(?:[{UNSPACED}--\p{{M}}--\p{{N}}]\p{{M}}*|(?:[\p{{L}}\p{{M}}\p{{N}}_--{UNSPACED}]|{joined})+)"
    words = regex.compile(rf"{word}|([^\s\p{{L}}\p{{M}}\p{{N}}_])\1*", regex.V1)
    from shunter.data.curation.glyphs import terminals

    ends = "".join(regex.escape(mark) for mark in terminals())
    sentence = regex.compile(rf"(?<!\p{{Nd}}(?=[.,]\p{{Nd}}))[{ends}][^\p{{L}}\p{{M}}\p{{N}}_]*")

    class Ours(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return [found.group() for found in words.finditer(text)]

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[a:b] for a, b in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [found.end() for found in sentence.finditer(text)]
            ends = ends if ends and ends[-1] == len(text) else [*ends, len(text)]
            return list(zip([0, *ends[:-1]], ends, strict=True))

    return Ours()


def peers(language: str) -> list[tuple[Operator, Any]]:
    """Ours and datatrove's class, both with published defaults."""
    from datatrove.pipeline import filters

    return [
        (GopherQuality(), filters.GopherQualityFilter(language=language)),
        (GopherRepetition(), filters.GopherRepetitionFilter(language=language)),
        (FineWebQuality(), filters.FineWebQualityFilter(language=language)),
        (C4Quality(), filters.C4QualityFilter(language=language)),
    ]


def judged(operator: Operator, parts: Sequence[list[str]]) -> list[tuple[bool, str, str]]:
    """Kept, text, reason of each document, by ours."""
    found = []
    for texts in parts:
        verdicts = operator.judge(Pages(texts))
        left = verdicts.texts or texts
        reasons = [verdicts.reasons[r] if r >= 0 else "" for r in verdicts.reason.tolist()]
        found += [(not reason, text, reason) for reason, text in zip(reasons, left, strict=True)]
    return found


def baseline(peer: Any, texts: Sequence[str]) -> list[tuple[bool, str, str]]:
    """The same by datatrove's class. Its cache of split texts is emptied first."""
    from datatrove.data import Document
    from datatrove.utils import text as module

    module.split_into_parts.cache_clear()
    found = []
    for number, text in enumerate(texts):
        document = Document(text=text, id=str(number))
        result = peer.filter(document)
        kept, reason = result if isinstance(result, tuple) else (result, "")
        found.append((bool(kept), document.text, reason))
    return found


def compare(name: str, texts: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """All filters on one corpus."""
    from datatrove.utils import word_tokenizers

    parts, size = batches(texts), sum(len(text.encode()) for text in texts) / 1e6
    cases: dict[str, Any] = {}
    made: dict[tuple[str, str], list[bool]] = {}  # by filter and splitter: whether the decisions are alike
    original = word_tokenizers.load_word_tokenizer
    for words in ("spaCy", "ours"):
        word_tokenizers.load_word_tokenizer = original if words == "spaCy" else _always(splitter())
        for ours, peer in peers("en"):
            last: dict[str, list[tuple[bool, str, str]]] = {}

            def mine(last: Any = last, ours: Operator = ours) -> None:
                last["mine"] = judged(ours, parts)

            def theirs(last: Any = last, peer: Any = peer) -> None:
                last["theirs"] = baseline(peer, texts)

            judged(ours, parts[:1]), baseline(peer, texts[:1])  # what they load is not timed
            timed = alternate(mine, theirs, rounds, 0, limit=seconds)
            both = list(zip(last["mine"], last["theirs"], strict=True))
            alike = [a[0] == b[0] and (a[1] == b[1] or not a[0]) for a, b in both]
            made[ours.name, words] = alike
            odd = Counter(
                f"{a[2] or 'kept'} / {b[2] or 'kept'}"
                for (a, b), same in zip(both, alike, strict=True)
                if not same
            )
            case = {
                "dropped": sum(not a[0] for a, _ in both),
                "dropped_by_datatrove": sum(not b[0] for _, b in both),
                "documents": len(texts),
                "same_decision": sum(alike) / len(alike),
                "same_keep_or_drop": sum(a[0] == b[0] for a, b in both) / len(both),
                "differences (ours / theirs)": dict(odd.most_common(5)),
                "mb_per_second": {
                    "ours": size / float(np.median(timed["a"])),
                    "datatrove": size / float(np.median(timed["b"])),
                },
                "ratio": timed["ratio_median"],
                "ratio_interval": [timed["ratio_low"], timed["ratio_high"]],
                "cpu_ratio": timed["cpu_ratio_median"],
                "others": timed["others"],
            }
            cases[f"{ours.name}, words by {words}"] = case
            print(
                f"{name:<10}{ours.name:<19}{words:<7}{case['mb_per_second']['ours']:>8.1f}"
                f"{case['mb_per_second']['datatrove']:>8.2f}{case['ratio']:>8.1f}{case['cpu_ratio']:>8.1f}"
                f"{case['same_decision']:>9.2%}{case['dropped']:>6}/{len(texts)} {dict(odd.most_common(3))}",
                flush=True,
            )
    word_tokenizers.load_word_tokenizer = original
    for (operator, words), alike in made.items():
        if words == "spaCy":
            pairs = zip(alike, made[operator, "ours"], strict=True)
            explained = sum(same for other, same in pairs if not other)
            told = {"different": alike.count(False), "the same with our words": explained}
            cases[f"{operator}, words by spaCy"]["explained_by_words"] = told
            print(f"{name:<10}{operator:<19}{told}", flush=True)
    return {"megabytes": size, "documents": len(texts), "filters": cases, "words": pieces(texts)}


def pieces(texts: Sequence[str]) -> dict[str, Any]:
    """What the two splitters make of the same texts: how many words, and which only one of them has."""
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    spacy, mine = load_word_tokenizer("en"), splitter()
    step = max(1, len(texts) // SAMPLED)
    counts, only = [0, 0], [Counter[str](), Counter[str]()]
    for text in texts[::step]:
        ours, theirs = Counter(mine.word_tokenize(text)), Counter(spacy.word_tokenize(text))
        counts = [counts[0] + sum(ours.values()), counts[1] + sum(theirs.values())]
        only[0].update(ours - theirs)
        only[1].update(theirs - ours)
    return {
        "ours": counts[0],
        "spaCy": counts[1],
        "only ours": dict(only[0].most_common(12)),
        "only spaCy": dict(only[1].most_common(12)),
    }


def _always(given: Any) -> Callable[..., Any]:
    return lambda language: given


def main() -> int:
    """Measure, print, keep. Returns 0; what is not reached stands in the table."""
    parser = argparse.ArgumentParser(description="Quality filters beside datatrove's.")
    parser.add_argument("--text", nargs="*", type=Path, default=[], help="more English, as text files")
    parser.add_argument("--megabytes", type=float, default=RESAMPLED, help="of the resampled corpus")
    parser.add_argument("--tiny", action="store_true", help="a little of both; keeps nothing")
    chosen = parser.parse_args()
    try:
        import datatrove  # noqa: F401
    except ImportError:
        print("datatrove is not here: the head of bench/curate.py says how to run this. Skipped.")
        return 0
    texts = clean(chosen.text)
    print(
        "corpus    filter             words   ours MB/s  peer   ratio     cpu     same  dropped  differences"
    )
    found = {
        "clean": compare("clean", texts[:: 20 if chosen.tiny else 1], 1 if chosen.tiny else 3, 60),
        "resampled": compare(
            "resampled", resampled(texts, TINY if chosen.tiny else chosen.megabytes, 0), 1, 900
        ),
    }
    for name, corpus in found.items():
        print(f"{name:<10}{corpus['megabytes']:.2f} MB; {corpus['words']}")
    if chosen.tiny:
        return 0
    save(
        "curate",
        {
            "what": "MB/s of UTF-8 text per core, ours by datatrove 0.10.1's; share of equal decisions",
            "how": "alternating in one process; median of rounds",
            "goal": {"ratio to the default splitter": GOAL, "equal decisions with ours": SAME},
            "corpora": found,
            "machine": machine(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
