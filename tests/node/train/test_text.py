"""A file is read whole or refused with file, line and what to change."""

import json
from pathlib import Path

import pytest

from sterna.errors import DataError
from sterna.train import text as module
from sterna.train.text import Turn, read_documents, read_split, split_documents


def written(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


GOOD = {"text": "one"}

REFUSED = [
    ("data.jsonl", b"", "data.jsonl: is empty; put text into it"),
    ("data.txt", b"\n  \n", "data.txt: is empty; put text into it"),
    ("data.jsonl", b"\xef\xbb\xbf\n\n", "data.jsonl: holds only blank lines; put text into it"),
    ("data.csv", b"a,b\n", "data.csv: ends in '.csv'; give a .jsonl or a .txt file"),
    ("data", b"a", "data: ends in 'nothing'; give a .jsonl or a .txt file"),
    ("data.txt", b"a\nb\0c", "data.txt:2: holds a zero byte, so it is not text; export it as UTF-8 text"),
    ("data.txt", b"one\ntwo\ncaf\xe9\n", "data.txt:3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    (
        "data.txt",
        b"\xef\xbb\xbfone\ntwo\ncaf\xe9\n",
        "data.txt:3: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    (
        "data.jsonl",
        lines(GOOD, '{"text": "two"'),
        "data.jsonl:2: is not JSON at column 15 (Expecting ',' delimiter); put one object on each line",
    ),
    (
        "data.jsonl",
        lines(GOOD, "[" * 100_000),
        "data.jsonl:2: is nested too deeply; keep a flat object on each line",
    ),
    ("data.jsonl", lines(["a"]), 'data.jsonl:1: is a JSON a list; put an object like {"text": ...} there'),
    (
        "data.jsonl",
        lines(GOOD, "", {"body": "x", "title": "y"}),
        "data.jsonl:3: has 'body', 'title'; it needs 'text', or 'prompt' and 'completion', or 'messages'",
    ),
    ("data.jsonl", lines({"text": 5}), "data.jsonl:1: 'text' is a number; give a string"),
    ("data.jsonl", lines({"text": " "}), "data.jsonl:1: 'text' is empty; fill it or take the line out"),
    ("data.jsonl", lines({"prompt": "a"}), "data.jsonl:1: 'completion' is missing beside 'prompt'; add it"),
    (
        "data.jsonl",
        lines({"completion": "a"}),
        "data.jsonl:1: 'prompt' is missing beside 'completion'; add it",
    ),
    (
        "data.jsonl",
        lines({"messages": []}),
        "data.jsonl:1: 'messages' is a list; give a list of objects with 'role' and 'content'",
    ),
    (
        "data.jsonl",
        lines({"messages": ["hi"]}),
        "data.jsonl:1: message 1 is a string; give an object with 'role' and 'content'",
    ),
    (
        "data.jsonl",
        lines({"messages": [{"role": "bot", "content": "hi"}]}),
        'data.jsonl:1: message 1 has the role "bot"; use one of system, user, assistant',
    ),
    (
        "data.jsonl",
        lines({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}),
        "data.jsonl:1: message 2: 'content' is missing; add it",
    ),
    (
        "data.jsonl",
        lines({"messages": [{"role": "user", "content": "hi"}]}),
        "data.jsonl:1: 'messages' has no assistant turn, so there is nothing to learn; add one",
    ),
    (
        "data.jsonl",
        '{"text": "\\ud800"}\n',
        "data.jsonl:1: 'text' holds \\ud800, half of a character; take it out",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_a_bad_file_is_refused_with_its_place(tmp_path, name, content, message):
    with pytest.raises(DataError) as refusal:
        read_documents(written(tmp_path, content, name))
    assert str(refusal.value).replace(f"{tmp_path}/", "") == message


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path / "folder.txt", tmp_path / "none", tmp_path):
        (tmp_path / "folder.txt").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="cannot be read"):
            read_documents(path)


def test_a_file_over_the_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 3)
    with pytest.raises(DataError, match="4 bytes, the limit is 3; split the file"):
        read_documents(written(tmp_path, "abcd", "data.txt"))


def test_the_three_kinds_of_rows_are_read_with_their_lines(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]
    rows = lines({"text": "plain"}, "", {"prompt": "p", "completion": "c"}, {"messages": messages})
    plain, pair, talk = read_documents(written(tmp_path, rows))
    assert (plain.text, plain.turns, plain.line) == ("plain", (), 1)
    assert pair.turns == (Turn("user", "p"), Turn("assistant", "c"))
    assert pair.line == 3
    assert talk.turns == (Turn("system", "s"), Turn("assistant", "a"))
    assert talk.line == 4


def test_a_line_separator_inside_a_string_does_not_end_the_row(tmp_path):
    rows = json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n"
    assert read_documents(written(tmp_path, rows))[0].text == "a\u2028b\x85c"


def test_prose_is_cut_at_blank_lines_into_passages_that_hold_all_words(tmp_path):
    paragraphs = [f"Paragraph {number} " + "says a little. " * 12 for number in range(60)]
    documents = read_documents(written(tmp_path, "\r\n\r\n".join(paragraphs), "data.txt"))
    assert 15 <= len(documents) <= 25
    together = " ".join(document.text for document in documents)
    assert together.split() == " ".join(paragraphs).split()
    assert [document.line for document in documents] == sorted(document.line for document in documents)
    source = "\n\n".join(paragraphs).split("\n")
    for document in documents:
        assert document.text.startswith(source[document.line - 1][:20])


def test_one_endless_paragraph_is_cut_at_ends_of_sentences(tmp_path):
    prose = "The tern flies north. It comes back. " * 500
    documents = read_documents(written(tmp_path, prose, "data.txt"))
    assert len(documents) > 5
    assert all(document.text.endswith(".") for document in documents)
    assert max(len(document.text) for document in documents) <= 2 * module.PASSAGE_CHARACTERS
    unbroken = read_documents(written(tmp_path, "x" * 50_000, "data.txt"))
    assert "".join(document.text for document in unbroken) == "x" * 50_000


def numbered(folder: Path, count: int) -> Path:
    return written(folder, lines(*({"text": f"document {number}"} for number in range(count))))


def test_about_a_tenth_is_held_out_and_nothing_is_on_both_sides(tmp_path):
    split = read_split(numbered(tmp_path, 2000))
    assert 160 <= len(split.held_out) <= 240
    assert len(split.train) + len(split.held_out) == 2000
    assert not {d.digest for d in split.train} & {d.digest for d in split.held_out}
    assert split == read_split(numbered(tmp_path, 2000))


@pytest.mark.parametrize("count", range(2, 30))
def test_each_side_has_a_document(tmp_path, count):
    split = read_split(numbered(tmp_path, count))
    assert split.train
    assert split.held_out


def test_a_document_keeps_its_side_while_the_file_grows(tmp_path):
    before, after = read_split(numbered(tmp_path, 500)), read_split(numbered(tmp_path, 900))
    assert {d.digest for d in before.held_out} <= {d.digest for d in after.held_out}


def test_copies_stand_on_one_side_wherever_they_are(tmp_path):
    path = written(tmp_path, lines(*({"text": f"document {number % 40}"} for number in range(400))))
    split = read_split(path)
    assert not {d.text for d in split.train} & {d.text for d in split.held_out}
    assert len(split.held_out) % 10 == 0


def test_copies_of_a_single_document_cannot_be_split(tmp_path):
    path = written(tmp_path, lines(GOOD, GOOD))
    with pytest.raises(DataError, match="holds one document only; one is held out, so give at least two"):
        split_documents(read_documents(path), path)
