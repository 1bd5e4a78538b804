"""Labels of languages: our model of letter runs against lingua alone, on paragraphs of one declaration.

The Universal Declaration of Human Rights in languages that both know. Ours learns from two of three of its
paragraphs and is asked the others, so it meets the kind of text that it has learnt; lingua has learnt
elsewhere, and is told to choose among the same languages. It has two accuracies, low and high.

    peers/bin/pip install lingua-language-detector safetensors
    PYTHONPATH=. peers/bin/python -m bench.languages path/to/udhr2.zip      # keeps the result
    PYTHONPATH=. peers/bin/python -m bench.languages path/to/udhr2.zip 5    # so many languages; keeps nothing
"""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from bench.measure import _version, machine, save
from shunter.data.curation.language import LanguageModel

UNKNOWN = ("bos_cyrl.txt",)  # lingua's Bosnian is in Latin letters
LEAST = 40  # characters of a paragraph that is asked


def paragraphs(path: str, wanted: Sequence[str]) -> dict[str, list[str]]:
    """Code -> paragraphs, of files called CODE.txt or CODE_Script.txt."""
    found: dict[str, list[str]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            code = name.rsplit("/", 1)[-1].removesuffix(".txt").split("_")[0]
            unknown = name.endswith(UNKNOWN)
            if name.endswith(".txt") and code in wanted and code not in found and not unknown:
                text = archive.read(name).decode("utf-8", "replace")
                parts = [part.strip() for part in text.split("\n")]
                found[code] = [part for part in dict.fromkeys(parts) if len(part) >= LEAST]
    return {code: parts for code, parts in found.items() if len(parts) >= 20}


def main() -> int:
    """Measure and print."""
    try:
        from lingua import Language, LanguageDetectorBuilder
    except ImportError:
        print("lingua is not here: the head of bench/languages.py says how to run this. Skipped.")
        return 0
    if len(sys.argv) < 2:
        print("needs the path of udhr2.zip. Skipped.")
        return 0
    codes = {language.iso_code_639_3.name.lower(): language for language in Language.all()}
    few = int(sys.argv[2]) if len(sys.argv) > 2 else None
    found = dict(list(paragraphs(sys.argv[1], list(codes)).items())[:few])
    taught = [(t, c) for c, parts in found.items() for n, t in enumerate(parts) if n % 3]
    asked = [(t, c) for c, parts in found.items() for n, t in enumerate(parts) if n % 3 == 0]
    texts, labels = [t for t, _ in asked], [c for _, c in asked]
    size = sum(len(text.encode()) for text in texts) / 1e6
    model = LanguageModel.train([t for t, _ in taught], [c for _, c in taught])
    ways: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: [model.labels[i] for i in model.confidences(texts).argmax(axis=1).tolist()]
    }
    ours = [codes[code] for code in found]
    for name, builder in (
        ("lingua, high", LanguageDetectorBuilder.from_languages(*ours)),
        ("lingua, low", LanguageDetectorBuilder.from_languages(*ours).with_low_accuracy_mode()),
    ):
        detector = builder.build()

        def ask(detector: object = detector) -> list[str]:
            labels = [detector.detect_language_of(text) for text in texts]  # type: ignore[attr-defined]
            return [label.iso_code_639_3.name.lower() if label else "" for label in labels]

        ways[name] = ask
    print(f"{len(found)} languages, {len(taught)} paragraphs taught, {len(asked)} asked, {size:.2f} MB")
    cases: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        way()  # lingua loads its models when asked
        begin = time.process_time()
        answers = way()
        seconds = time.process_time() - begin
        right = np.mean([a == b for a, b in zip(answers, labels, strict=True)])
        cases[name] = {"right": float(right), "mb_by_cpu_second": size / seconds}
        print(f"{name:<14}{right:>8.2%} right {size / seconds:>8.2f} MB by CPU second", flush=True)
    if few is None:
        told = machine()
        told["versions"]["lingua"] = _version("lingua-language-detector")
        facts = {"languages": len(found), "taught": len(taught), "asked": len(asked), "megabytes": size}
        what = (
            "paragraphs labelled rightly, MB of UTF-8 by CPU second; lingua chooses among the same languages"
        )
        save("languages", {"what": what, **facts, "cases": cases, "machine": told})
    return 0


if __name__ == "__main__":
    sys.exit(main())
