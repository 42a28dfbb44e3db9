"""The table on disk: any damage is named, the older file stands in, and nothing raises."""

import hashlib

import msgspec
import pytest
from configkit import record, replica_row

from router.config import checkpoint
from router.config.checkpoint import FORMAT, MAGIC, Header, blocks_of, previous, read, write
from router.config.reduce import RowBook
from router.config.schema import STREAMED_VERSION

DATABASE = "projects/p/instances/i/databases/d"


def header(**changes):
    values = {
        "format": FORMAT, "schema": STREAMED_VERSION, "database": DATABASE, "identity": "x", "watermark_us": 9,
        "positions": {"a": 7},
    } | changes  # fmt: skip
    return Header(**values)


def book_of(count=3):
    book = RowBook()
    book.take([record("Replicas", *((("e", f"r{i}"), replica_row()) for i in range(count)), at=5)])
    book.take([record("Endpoints", (("e",), ("main", None, '{"retries": 1}', "ACTIVE")), at=6)])
    book.take([record("AuthTokens", (("aGFzaA==",), ("s", "main", ["a", "b"], None, None, None)), at=6)])
    book.take([record("Replicas", (("e", "r0"), None), at=8)])
    return book


def save(path, book=None, **changes):
    write(path, header(**changes), list(blocks_of(book or book_of())))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "embedded-x.checkpoint"


def framed(*pieces):
    body = MAGIC + b"".join(len(piece).to_bytes(4, "big") + piece for piece in pieces)
    return body + hashlib.sha256(body).digest()


def test_rows_and_tombstones_come_back(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "BLOCK_ROWS", 2)
    book = book_of(25)
    save(path, book)
    found, complaints = read(path, DATABASE)
    assert complaints == []
    assert found.header == header()
    again = RowBook()
    found.restore(again)
    assert again.tables == book.tables
    assert list(again._tombstones) == [(8, "Replicas", ("e", "r0"))]
    assert again.take([record("Replicas", (("e", "r0"), replica_row()), at=7)]) == []


def test_the_file_is_for_its_owner_alone(path):
    save(path)
    save(path)
    assert {file.stat().st_mode & 0o777 for file in (path, previous(path))} == {0o600}
    assert sorted(file.name for file in path.parent.iterdir()) == sorted((path.name, previous(path).name))


def test_the_one_before_is_kept(path):
    save(path, watermark_us=1)
    save(path, watermark_us=2)
    save(path, watermark_us=3)
    path.unlink()
    found, complaints = read(path, DATABASE)
    assert found.header.watermark_us == 2
    assert complaints == []


def test_there_may_be_none(path):
    assert read(path, DATABASE) == (None, [])


def test_truncation_at_every_length_falls_back_to_the_older(path):
    save(path, watermark_us=1)
    save(path, watermark_us=2)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found, complaints = read(path, DATABASE)
        assert found is not None, size
        assert found.header.watermark_us == 1
        assert len(complaints) == 1
        assert str(path) in complaints[0]
    path.write_bytes(whole + b"\0")
    assert read(path, DATABASE)[0].header.watermark_us == 1


def test_each_flipped_bit_is_noticed(path):
    save(path, watermark_us=1)
    save(path, watermark_us=2)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        found, complaints = read(path, DATABASE)
        assert (found.header.watermark_us, len(complaints)) == (1, 1), at


GOOD = msgspec.msgpack.encode(header())
DAMAGED = {
    "empty": b"",
    "magic alone": MAGIC,
    "another magic": framed(GOOD).replace(b"router", b"rooter"),
    "no header": framed(),
    "an empty header": framed(b""),
    "a header that is none": framed(b"\xc1"),
    "a header of another kind": framed(msgspec.msgpack.encode([1, 2])),
    "a header without a field": framed(msgspec.msgpack.encode({"format": FORMAT})),
    "another format": framed(msgspec.msgpack.encode(header(format=FORMAT + 1))),
    "another schema": framed(msgspec.msgpack.encode(header(schema=STREAMED_VERSION + 1))),
    "another database": framed(msgspec.msgpack.encode(header(database="projects/p/instances/i/databases/other"))),
    "a block that is none": framed(GOOD, b"\x93"),
    "a block of another kind": framed(GOOD, msgspec.msgpack.encode(("Replicas", [("e", 1, None)]))),
    "a timestamp that is a text": framed(GOOD, msgspec.msgpack.encode(("Endpoints", [(["e"], "1", None)]))),
    "a row of another width": framed(GOOD, msgspec.msgpack.encode(("Endpoints", [(["e"], 1, ["main"])]))),
    "a table that is none of ours": framed(GOOD, msgspec.msgpack.encode(("Later", [(["k"], 1, ["v"])]))),
    "a key of another width": framed(GOOD, msgspec.msgpack.encode(("Endpoints", [(["e", "f"], 1, None)]))),
}


def with_length(length):
    body = MAGIC + length.to_bytes(4, "big") + GOOD
    return body + hashlib.sha256(body).digest()


DAMAGED["a huge length"] = with_length(2**32 - 1)
DAMAGED["a length one too long"] = with_length(len(GOOD) + 1)
DAMAGED["a length one too short"] = with_length(len(GOOD) - 1)
DAMAGED["a length of nothing"] = with_length(0)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("has_older", [True, False])
def test_what_is_not_ours_is_named_and_the_older_one_used(path, name, has_older):
    path.parent.mkdir()
    if has_older:
        save(path, watermark_us=1)
        path.replace(previous(path))
    path.write_bytes(DAMAGED[name])
    found, complaints = read(path, DATABASE)
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{path}: ")
    assert (found.header.watermark_us if has_older else found) == (1 if has_older else None)


def test_two_that_are_damaged_are_two_complaints(path):
    path.parent.mkdir()
    path.write_bytes(b"x")
    previous(path).write_bytes(b"y")
    found, complaints = read(path, DATABASE)
    assert found is None
    assert len(complaints) == 2


def test_a_directory_in_its_place_is_a_complaint(path):
    path.mkdir(parents=True)
    found, complaints = read(path, DATABASE)
    assert found is None
    assert len(complaints) == 1


def test_a_file_larger_than_any_of_ours_is_not_read(path, monkeypatch):
    save(path)
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 10)
    found, complaints = read(path, DATABASE)
    assert found is None
    assert "larger" in complaints[0]


def test_where_nothing_can_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "x.checkpoint")


def test_a_write_that_fails_leaves_the_last_one(path, monkeypatch):
    save(path, watermark_us=1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, watermark_us=2)
    monkeypatch.undo()
    assert read(path, DATABASE)[0].header.watermark_us == 1
    save(path, watermark_us=3)  # what was left of the attempt is no obstacle
    assert read(path, DATABASE)[0].header.watermark_us == 3


def test_rows_may_change_between_two_blocks(monkeypatch):
    monkeypatch.setattr(checkpoint, "BLOCK_ROWS", 1)
    book = book_of(5)
    blocks = []
    for block in blocks_of(book):
        blocks.append(block)
        book.take([record("Replicas", (("e", f"new{len(blocks)}"), replica_row()), at=20 + len(blocks))])
    assert len(blocks) >= 7
