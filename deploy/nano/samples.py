"""Makes the sample texts that ship with Sterna: four kinds of English the nano base has never seen.

Usage::

    python deploy/nano/samples.py --cache /tmp/nano/cache --out node/sterna/data/samples

Each file is plain text, about 400,000 characters, paragraphs separated by blank lines. Sources and licences
are in the README beside the files.
"""

from __future__ import annotations

import argparse
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from texts import fetch_debian

APT_PACKAGES = ("sword-text-web", "jargon-text", "dict-devil")
TARGET_CHARACTERS = 400_000  # enough for a few rounds of training, small enough for a wheel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    fetch_debian(options.cache, APT_PACKAGES)
    texts = {
        "scripture": scripture(options.cache),
        "slang": slang(options.cache),
        "python": python_reference(),
        "satire": satire(options.cache),
    }
    for name, paragraphs in texts.items():
        size, kept = 0, []
        for paragraph in paragraphs:
            if size >= TARGET_CHARACTERS:
                break
            kept.append(paragraph)
            size += len(paragraph) + 2
        (options.out / f"{name}.txt").write_text("\n\n".join(kept) + "\n")
        print(f"{name}: {size:,} characters, {len(kept):,} paragraphs")


def scripture(cache: Path) -> Iterator[str]:
    """Chapters' paragraphs, from zText: blocks of zlib data listed as offset, size, unpacked size."""
    [folder] = (cache / "sword-text-web/usr/share/sword/modules/texts/ztext").iterdir()
    index, data = (folder / "nt.bzs").read_bytes(), (folder / "nt.bzz").read_bytes()
    for offset, size, _ in struct.iter_unpack("<III", index):
        block = zlib.decompress(data[offset : offset + size]).decode("utf-8", "replace")
        block = re.sub(r"<note.*?</note>|<title.*?</title>", "", block, flags=re.DOTALL)
        block = re.sub(r'<(?:div[^>]*type="(?:x-p|paragraph)"|lg|/lg|chapter)[^>]*>', "\n\n", block)
        block = re.sub(r"<[^>]+>", " ", block)
        for paragraph in re.split(r"\n\s*\n", block):
            text = re.sub(r"\s+([,.;:!?’”])|(?<=[“‘])\s+", r"\1", re.sub(r"\s+", " ", paragraph)).strip()
            if len(text) > 40:  # the rest are markers and headings
                yield text


def slang(cache: Path) -> Iterator[str]:
    """Every third entry of the lexicon: its headword, then its paragraphs."""
    text = _unzipped(cache / "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz")
    lexicon = text[text.index("\n   :abbrev:") :]
    entries = re.split(r"\n(?=   :[^\n]+?: )", lexicon)
    for entry in entries[::3]:
        for paragraph in re.split(r"\n\s*\n", entry):
            joined = re.sub(r"\s+", " ", paragraph.split("_____")[0]).strip()
            if len(joined) > 20:
                yield joined


def python_reference() -> Iterator[str]:
    """Chapters of the language reference, as ``help()`` shows them."""
    for name in sorted(topics.topics):
        for paragraph in re.split(r"\n\s*\n", topics.topics[name]):
            text = paragraph.strip("\n").rstrip()
            if text and not set(text) <= set("*=- "):
                yield re.sub(r"\n[*=\-^~]{4,}$", "", text)


def satire(cache: Path) -> Iterator[str]:
    """The dictionary's entries, its verse with its line breaks."""
    text = _unzipped(cache / "dict-devil/usr/share/dictd/devil.dict.dz")
    for paragraph in re.split(r"\n\s*\n", text[text.index("ABDOMEN, n.") :]):
        # Words of 1911 that nobody needs to learn, and the dictionary format's own trailer.
        if re.search(r"(?i)\bnegro|nigger|abcdefghij", paragraph):
            continue
        lines = [line.rstrip() for line in paragraph.split("\n")]
        if all(line.startswith("  ") for line in lines):
            yield "\n".join(re.sub(r"^ {10,}", "    ", line) for line in lines)
        else:
            yield " ".join(line.strip() for line in lines)


def _unzipped(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


if __name__ == "__main__":
    main()
