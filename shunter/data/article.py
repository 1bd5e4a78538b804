"""The main text of a web page, found in one walk over its tree.

The walk cuts the page into blocks (paragraphs, headings, items) and remembers for each element that holds
blocks which of them are its own. What menus, comments and advertisements call themselves is stepped over.
The main text's element is then looked for from the body down: a child takes its parent's place while it
holds nearly all of the prose. Of its blocks, those made of links and those before and after the prose go.

Costs about an eighth of what trafilatura does. `Found.sure` says when the page had one clear main text; where
it had none, others are asked (`extraction.extract`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SHARE = 0.75  # of the prose that a child must hold to take its parent's place
HINTED = 0.5  # the same for a child whose name says that it is the article
PROSE = 80  # characters from which a block counts as prose, if it is not of links
LINKED = 0.5  # of a block's characters inside links: above this it is a list of links
MUCH = 0.4  # of a page's paragraphs: what holds them is not left out for a name that is no text's
NEARLY = 0.9  # the same for what calls itself comments or consent
DEEP = 40  # levels down to which names are doubted
LEAST = 250  # characters of a text that is trusted

_BREAK = "\u2028"  # stands for <br> until a block is whole
_SPACES = re.compile(r"\s+")


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_GONE = _names(
    "script style noscript template svg math iframe object embed applet canvas audio video picture img map "
    "button input select textarea option datalist nav footer aside figure figcaption menu dialog head link "
    "meta title h1 frame frameset area label legend progress meter time"
)
_INLINE = _names(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd mark q rp rt ruby s samp small "
    "span strike strong sub sup tt u var wbr nobr o:p"
)
_PLAIN = _names("p li")
_LEAVES = _names("p li h2 h3 h4 h5 h6 blockquote pre dd dt caption th summary address")  # no main text is one
_HEADINGS = _names("h2 h3 h4 h5 h6")
# What parts of a page that are not its text call themselves, in classes, ids and roles.
_OTHER = re.compile(
    r"(?<![a-z])(?:nav(?:bar|igation)?|menu|sub-?nav|bread-?crumbs?|footer|sidebar|side-?bar|masthead|"
    r"share|shar(?:e|ing)[-_]?\w*|social\w*|sociable|addthis\w*|newsletter\w*|subscri\w+|sign-?up|signin|log-?in|"
    r"cookie\w*|consent|gdpr|modal|popup|pop-up|overlay|banner|promo\w*|advert\w*|ads?|ad-\w+|dfp\w*|"
    r"sponsor\w*|taboola|outbrain|recommend\w*|related\w*|more-(?:on|from|stories)|read-?more|most-popular|popular|"
    r"trending|comments?|comment-?list|disqus\w*|respond|replies|reply|tags?|tag-?list|tags-links|"
    r"author\w*|by-?line\w*|bio|post-?meta|entry-?meta|meta|metadata|timestamp|date(?:line)?|published|"
    r"caption\w*|wp-caption\w*|credit\w*|gallery|carousel|slideshow|slider|widget\w*|toolbar|pagination|pager|"
    r"print(?:-only|-friendly)?|hidden|visually-hidden|sr-only|screen-reader-text|noprint|"
    r"contentinfo|complementary|search|jp-\w+|infobox|toc|editsection|hatnote|skip-link)(?![a-z])",
    re.IGNORECASE,
)
# What the main text calls itself: stronger than the words above.
_MAIN = re.compile(
    r"article-?_?_?-?(?:body|content|text|main)|(?:entry|post|story|page|blog|body|main|single|news|theme)[-_]{0,2}"
    r"(?:content|body|text|copy)|articlebody|storybody|content-?(?:body|main|article)|post-?entry|body-?text|"
    r"field-name-body|hentry|rich-?text|mw-parser-output",
    re.IGNORECASE,
)
# Of these only nearly all of a page's paragraphs are the main text.
_NEVER = re.compile(
    r"(?<![a-z])(?:comments?(?:-?(?:list|area|section|s))?|disqus\w*|respond|cookie\w*|consent|gdpr)(?![a-z])",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"display:\s*none|visibility:\s*hidden", re.IGNORECASE)
_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")  # a letter that tells as much as three
_ENDS = re.compile("[.!?\u2026:;\u3002\uff01\uff1f\u0964][\"'\u201d\u2019\u00bb)\\]]*$")


@dataclass
class Block:
    """text: without runs of spaces. linked: its characters inside links. tag: of the element it stands in."""

    text: str
    linked: int
    tag: str

    @property
    def share(self) -> float:
        """Of its characters inside links."""
        return self.linked / max(len(self.text), 1)

    @property
    def prose(self) -> int:
        """Characters, if it reads like a paragraph; else 0."""
        text = self.text
        size = len(text) if text.isascii() else len(text) + 2 * len(_WIDE.findall(text))
        if self.tag in _HEADINGS or self.share > LINKED:
            return 0
        if size >= PROSE or (size >= PROSE / 2 and _ENDS.search(text)):
            return size - self.linked
        return 0


@dataclass
class Element:
    """An element that holds blocks: [first, last) of them."""

    parent: int
    depth: int
    named: bool  # its name says that it is the main text
    leaf: bool  # it is a paragraph or the like
    first: int
    last: int = 0


@dataclass(frozen=True)
class Found:
    """text: paragraphs, a line each. sure: one element held nearly all of the page's prose."""

    text: str
    sure: bool


def main_text(html: str) -> Found:
    """The main text of a page; empty when there is none."""
    tree = parsed(html)
    if tree is None:
        return Found("", False)
    blocks, elements = walk(tree)
    if not blocks:
        return Found("", False)
    sums = [0]
    for block in blocks:
        sums.append(sums[-1] + block.prose)
    chosen = _chosen(elements, sums)
    element = elements[chosen]
    kept = _kept(blocks[element.first : element.last])
    text = "\n".join(block.text for block in kept)
    held = sums[element.last] - sums[element.first]
    sure = len(text) >= LEAST and held >= (HINTED if element.named else SHARE) * sums[-1]
    return Found(text, sure)


def parsed(html: str) -> Any:
    """The tree's body, or its root when it has none; None for what is no markup."""
    from lxml import etree

    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        root = etree.fromstring(html.replace("\0", "").encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    if root is None:
        return None
    body = root.find("body")
    return root if body is None else body


def walk(tree: Any) -> tuple[list[Block], list[Element]]:
    """The blocks of a tree and the elements that hold them; the first element is the tree itself."""
    from lxml import etree

    blocks: list[Block] = []
    elements = [Element(-1, 0, False, False, 0)]
    names: dict[tuple[str, ...], int] = {}
    pieces: list[str] = []
    open_ = [0]  # elements around the current place
    tags = ["body"]
    links = linked = 0
    paragraphs = sum(1 for _ in tree.iter("p"))

    def close() -> None:
        nonlocal linked
        if pieces:
            text = _SPACES.sub(_space, "".join(pieces)).strip()
            if text:
                blocks.append(Block(text, min(linked, len(text)), tags[-1]))
            pieces.clear()
        linked = 0

    def add(text: str | None) -> None:
        nonlocal linked
        if text:
            pieces.append(text)
            if links:
                linked += len(text.strip())

    if tree.text:
        add(tree.text)
    walker = etree.iterwalk(tree, events=("start", "end"))
    skipped = None
    for event, node in walker:
        if node is tree:
            continue
        tag = node.tag
        if event == "start":
            if tag in _GONE:
                skipped = node
                walker.skip_subtree()
                continue
            if tag in _INLINE:
                if tag == "a":
                    links += 1
                elif node.attrib and _verdict(node, names) < 0:
                    skipped = node
                    walker.skip_subtree()
                    continue
                add(node.text)
                continue
            if tag == "br":
                pieces.append(_BREAK)
                continue
            verdict = _verdict(node, names) if node.attrib else 0
            close()
            doubted = verdict < 0 and tag not in ("article", "main")
            if doubted and not _much(node, paragraphs, len(open_), MUCH if verdict == -1 else NEARLY):
                skipped = node
                walker.skip_subtree()
                continue
            named = verdict > 0 or tag in ("article", "main")
            elements.append(Element(open_[-1], len(open_), named, tag in _LEAVES, len(blocks)))
            open_.append(len(elements) - 1)
            tags.append(tag)
            add(node.text)
            continue
        if node is skipped:
            skipped = None
        elif tag in _INLINE:
            if tag == "a":
                links -= 1
        elif tag != "br":
            close()
            elements[open_.pop()].last = len(blocks)
            tags.pop()
        add(node.tail)
    close()
    elements[0].last = len(blocks)
    return blocks, elements


def _space(found: re.Match[str]) -> str:
    return "\n" if _BREAK in found[0] else " "


def _much(node: Any, paragraphs: int, depth: int, share: float) -> bool:
    """Whether so many of the page's paragraphs are in it that its name must mean something else."""
    if depth > DEEP:  # each level counts anew: a bound, for pages that were made to take long
        return False
    inside = sum(1 for _ in node.iter("p"))
    return inside >= 3 and inside > share * paragraphs


def _verdict(node: Any, names: dict[tuple[str, ...], int]) -> int:
    """-1: not the text, by its name; -2: surely not. 1: the main text, by its name. 0: nothing is said."""
    get = node.get
    style = get("style")
    if (style and _HIDDEN.search(style)) or get("hidden") is not None or get("aria-hidden") == "true":
        return -1
    key = (get("class") or "", get("id") or "", get("role") or "", get("itemprop") or "")
    if not any(key):
        return 0
    known = names.get(key)
    if known is None:
        joined = " ".join(key)[:500]
        known = (
            -2 if _NEVER.search(joined) else 1 if _MAIN.search(joined) else -1 if _OTHER.search(joined) else 0
        )
        names[key] = known
    return known


def _chosen(elements: list[Element], sums: list[int]) -> int:
    """The number of the element that holds the main text."""
    children: dict[int, list[int]] = {}
    for number, element in enumerate(elements):
        if not element.leaf:
            children.setdefault(element.parent, []).append(number)

    def prose(number: int) -> int:
        return sums[elements[number].last] - sums[elements[number].first]

    at = 0
    while True:
        held = prose(at)
        if not held:
            return at
        inside = children.get(at, [])
        best = max(inside, key=prose, default=None)
        if best is None:
            return at
        need = HINTED if elements[best].named else SHARE
        if prose(best) < need * held:
            return at
        at = best


def _kept(blocks: list[Block]) -> list[Block]:
    """The blocks from the first to the last of prose, without lists of links and headings of nothing."""
    prose = [number for number, block in enumerate(blocks) if block.prose]
    if not prose:
        return [block for block in blocks if block.share <= LINKED]
    first, last = prose[0], prose[-1] + 1
    while last < len(blocks) and blocks[last].tag in _PLAIN and not blocks[last].linked:
        last += 1
    while first and blocks[first - 1].tag in _PLAIN and not blocks[first - 1].linked:
        first -= 1
    inside = blocks[first:last]
    kept = [block for block in inside if block.share <= LINKED or len(block.text) > 2 * PROSE]
    while kept and kept[-1].tag in _HEADINGS:
        kept.pop()
    return kept
