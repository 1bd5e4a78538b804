"""The operators that a recipe may name, and the chains that papers published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shunter.data.curation.badwords import BadWords
from shunter.data.curation.c4 import C4Quality
from shunter.data.curation.decontaminate import Decontaminate
from shunter.data.curation.edits import EditRules
from shunter.data.curation.extract import ExactDuplicates
from shunter.data.curation.fineweb import FineWebQuality
from shunter.data.curation.gopher import GopherQuality, GopherRepetition
from shunter.data.curation.language import ConfidenceCut, Language
from shunter.data.curation.licences import LicenceTiers
from shunter.data.curation.lines import JunkLines, SymbolLines
from shunter.data.curation.local import RepeatedBeginnings, RepeatedEdges, RepeatedSentences
from shunter.data.curation.minhash import NearDuplicates
from shunter.data.curation.operators import Operator
from shunter.data.curation.paragraphs import RepeatedParagraphs
from shunter.data.curation.personal import MaskPersonal
from shunter.data.curation.precision import PrecisionFilter
from shunter.data.curation.quality import Perplexity, Quality
from shunter.data.curation.refine import Refine
from shunter.data.curation.repair import RepairText
from shunter.data.curation.safety import KeywordSafety
from shunter.data.curation.script import Script
from shunter.data.curation.spans import RepeatedSpans
from shunter.data.curation.substrings import RepeatedStretches
from shunter.data.curation.urls import UrlRules

AnyOperator = Annotated[
    GopherQuality
    | GopherRepetition
    | C4Quality
    | BadWords
    | FineWebQuality
    | NearDuplicates
    | RepeatedParagraphs
    | ExactDuplicates
    | MaskPersonal
    | Language
    | ConfidenceCut
    | Script
    | PrecisionFilter
    | Decontaminate
    | EditRules
    | Refine
    | LicenceTiers
    | UrlRules
    | KeywordSafety
    | RepairText
    | SymbolLines
    | JunkLines
    | Perplexity
    | Quality
    | RepeatedStretches
    | RepeatedSpans
    | RepeatedBeginnings
    | RepeatedSentences
    | RepeatedEdges,
    Field(discriminator="kind"),
]
Preset = Literal["gopher", "c4", "fineweb", "fineweb2", "mixturevitae"]


def preset(name: Preset, labelled: bool = False, language: Language | None = None) -> list[Operator]:
    """The operators of a published chain, in its order.

    labelled: fineweb2 begins with labels of languages and their cut; by `language`, or the job's own model.

    gopher: arXiv 2112.11446, A.1. c4: the rules for pages of arXiv 1910.10683, 2.2; its bad words, its
    cut of the language and its deduplication are operators to add (docs/curate.md). fineweb: arXiv
    2406.17557, section 3, from extracted English on, with C4's rules but that of line ends. fineweb2:
    arXiv 2506.20920, section 3, from one language on, or with a language model from labelling on; with
    English limits, others come from a `limits` job. mixturevitae: arXiv 2509.25531, licences and
    deduplication inside sources; decontamination needs to be told against what, and safety needs lists.
    """
    if name == "gopher":
        return [GopherQuality(), GopherRepetition(), NearDuplicates()]
    if name == "mixturevitae":
        return [
            LicenceTiers(),
            RepeatedBeginnings(),
            RepeatedSentences(),
            *(RepeatedEdges() for _ in range(3)),
        ]
    if name == "c4":
        return [C4Quality()]
    if name == "fineweb":
        return [
            GopherRepetition(),
            GopherQuality(),
            C4Quality(end_marks=False),
            FineWebQuality(),
            NearDuplicates(),
            MaskPersonal(),
        ]
    return [
        *([language or Language(), ConfidenceCut()] if labelled else []),
        NearDuplicates(),
        GopherRepetition(max_paragraphs=None, max_paragraph_chars=None, max_line_chars=None),
        FineWebQuality(max_short=None, max_repeated=0.1),
        GopherQuality(),
        MaskPersonal(),
    ]
