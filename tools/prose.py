"""Check everything that people read against CONTRIBUTING.md's rules: sentence length, paragraph length, and words to avoid.

`make check` runs it. It reads the Markdown pages, the docstrings, comments and messages of the
service, the descriptions of settings and metrics, and the comments of the charts' values.
"""

import ast
import re
import sys
from collections.abc import Iterator
from statistics import mean
from typing import NamedTuple

from generated import ROOT

LONGEST_MEAN = 20
"""Words in a sentence, on average over a text."""
LONGEST_PARAGRAPH = 5 * 120
"""Characters: five lines."""

AVOID = {
    r"anew|afresh": "again",
    r"thereof|whither|whence|likewise": "(drop it)",
    r"good-?bye": "deregisters, leaves",
    r"who(?:ever)? (?:bears|joins|comes)": "a participant that ...",
    r"(?:is|are|be|was|were) told": "receives, shows, reports",
    r"tells? (?:of|how|what|which|whether|who|more|the|that|why)": "reports, shows, describes",
    r"stood still|stands? still": "was suspended, stalled",
    r"fell silent|falls? silent": "timed out, missed its heartbeats",
    r"asked (?:back|for back)|taken back|given away": "revoked, reassigned",
    r"of (?:one's|its|your) own": "your own, custom",
    r"(?:is|are) in force": "effective settings",
    r"what is there": "existing",
    r"the house": "the process",
    r"at once": "immediately",
    r"nobody": "no participant, no operator",
    r"somebody|anybody|everybody": "a participant, an operator",
    r"(?<!\.)figures?": "metrics, values, numbers (code may name the protocol's field)",
    r"stranger'?s?": "unauthenticated client",
}
"""Patterns of words that hide a standard one, and what to write."""

_WORDS = {re.compile(rf"(?<!\w)(?:{pattern})\b", re.IGNORECASE): instead for pattern, instead in AVOID.items()}
_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,}).*?^\1\2`*\s*$", re.MULTILINE | re.DOTALL)
_END = re.compile(r"(?<=[.!?:;])[\"')*_]*\s+(?=[\"'(*_\[`]*[A-Z0-9`])")


class Text(NamedTuple):
    """A text that people read, and where it stands."""

    where: str
    paragraphs: list[str]


def plain(markdown: str) -> str:
    """Return Markdown without what is not prose: links' targets, code, emphasis."""
    text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\{[^}]*\})?", r"\1", markdown)
    text = re.sub(r"\{\w[\w:-]*\}(?=`)", "", text)
    return re.sub(r"\s+", " ", re.sub(r"``?[^`]+``?", "CODE", text)).strip()


def paragraphs(markdown: str) -> list[str]:
    """Return the paragraphs, list items and table cells of a page; code and headings are left out."""
    text = re.sub(r"<!--.*?-->|^---\n.*?^---\n", "", _FENCE.sub("", markdown), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |\||#|>|:))", text):
        block = block.strip()
        if block.startswith("|"):
            found += [cell for cell in re.split(r"(?<!\\)\|", block) if " " in cell.strip()]
        elif block and not block.startswith(("#", "<", ":", "%", "(")):
            found.append(re.sub(r"^(?:[-*>]|\d+\.) ", "", block))
    return [plain(paragraph) for paragraph in found]


def sentences(paragraph: str) -> Iterator[int]:
    """Return the number of words of each sentence."""
    for sentence in _END.split(paragraph):
        if words := len(re.findall(r"[\w'’/.-]*\w[\w'’/.-]*", sentence)):
            yield words


def pages() -> Iterator[Text]:
    """The Markdown pages, except the changelog's released parts."""
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")]):
        yield Text(str(path.relative_to(ROOT)), paragraphs(path.read_text()))


def sources() -> Iterator[Text]:
    """The docstrings, comments, log lines and error messages of each file."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        source = path.read_text()
        try:
            strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
        except SyntaxError:  # a template of `fedround new`
            continue
        found = [paragraph for text in strings if isinstance(text, str) and " " in text for paragraph in docstring(text)]
        blocks = re.findall(r"(?:^ *# (?!noqa|type:).*\n)+|  # (?!noqa|type:).*$", source, re.MULTILINE)
        comments = [paragraph for block in blocks for paragraph in paragraphs(re.sub(r"^ *# ", "", block, flags=re.MULTILINE))]
        yield Text(str(path.relative_to(ROOT)), found + comments)


def docstring(text: str) -> list[str]:
    """Return the paragraphs of a docstring: each entry of Args, Returns and Raises is one."""
    lines = [line for line in re.sub(r"^ +", "", text, flags=re.MULTILINE).split("\n") if not re.search("[├│└─▼►]", line)]
    return paragraphs(re.sub(r"\n(?=\**\w[\w`*, ]*:(?: |$))", "\n\n", "\n".join(lines)))


def described() -> Iterator[Text]:
    """The descriptions of settings and metrics, and the comments of charts' values."""
    from docs import SERVICES, kinds

    for cls in SERVICES:
        yield Text(f"settings of {cls.prefix}", [plain(row.description) for row in cls.rows()])
    for kind in kinds():
        yield Text(f"metrics of {kind.__name__}", [plain(family.documentation) for family in kind().registry.collect()])
    for path in sorted((ROOT / "helm").glob("*/values.yaml")):
        comments = re.sub(r"^ *(?:# (.*)|.*)$", r"\1", path.read_text(), flags=re.MULTILINE)
        yield Text(str(path.relative_to(ROOT)), paragraphs(comments))


def problems(text: Text) -> Iterator[str]:
    """What is wrong with a text."""
    lengths = [length for paragraph in text.paragraphs for length in sentences(paragraph)]
    if lengths and mean(lengths) > LONGEST_MEAN:
        yield f"{text.where}: sentences have {mean(lengths):.1f} words on average, more than {LONGEST_MEAN}: split them"
    for paragraph in text.paragraphs:
        if len(paragraph) > LONGEST_PARAGRAPH:
            yield f"{text.where}: a paragraph is longer than five lines: {paragraph[:60]} ..."
        for pattern, instead in _WORDS.items():
            for match in pattern.finditer(paragraph):
                near = paragraph[max(0, match.start() - 30) : match.end() + 30]
                yield f"{text.where}: write '{instead}' in place of '{match[0]}': ... {near} ..."


def main() -> int:
    """Print all problems; the exit code is 1 if there are any. Arguments: only texts whose place contains one of these."""
    texts = [text for read in (pages, sources, described) for text in read()]
    chosen = [text for text in texts if not sys.argv[1:] or any(part in text.where for part in sys.argv[1:])]
    found = [problem for text in chosen for problem in problems(text)]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
