import os
import threading
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from pneumo_ray import storage
from pneumo_ray.errors import StorageError


class SmallDisk:
    """A file on a disk that has room for some bytes."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "SmallDisk":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(data)


def test_addresses_escape_names_and_paths_do_not():
    assert storage.join("/a b", "c d#e") == "/a b/c d#e"
    assert storage.join("s3://bucket/a/", "c d#e") == "s3://bucket/a/c%20d%23e"
    assert storage.join("s3://bucket/a?region=x", "b", "c") == "s3://bucket/a/b/c?region=x"
    assert storage.base_name("s3://bucket/a?endpoint=h/p") == "a"
    assert storage.base_name("/x/what?.jpg") == "what?.jpg"


def test_a_file_address_is_the_path_behind_it(tmp_path):
    folder = tmp_path / "with space"
    address = "file://" + str(folder).replace(" ", "%20")
    assert storage.absolute(address) == str(folder)
    storage.write_bytes(storage.join(address, "x y"), b"1")
    assert (folder / "x y").read_bytes() == b"1"
    assert storage.read_bytes(storage.join(address, "x y")) == b"1"
    assert storage.list_files(address) == ["x y"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "f"
    storage.write_bytes(str(target), b"old")

    def fill_the_disk() -> None:
        with storage.atomic_file(str(target)) as temporary:
            with open(temporary, "wb") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space"):
        fill_the_disk()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_is_named_whatever_is_raised(tmp_path, monkeypatch):
    def write(sink: storage.Sink) -> None:
        sink.write(b"half")
        try:
            sink.write(b"the rest")
        except OSError:
            raise RuntimeError("unexpected position") from None  # as PyTorch's writer does

    opened = open

    def fills(name: str, mode: str = "r", **others: Any) -> Any:
        file = opened(name, mode, **others)
        return SmallDisk(file, 4) if mode == "wb" else file

    monkeypatch.setattr("builtins.open", fills)
    with pytest.raises(StorageError, match="No space left"):
        storage.write_with(str(tmp_path / "f"), write)
    assert os.listdir(tmp_path) == []


def test_a_writer_may_fail_without_the_disk(tmp_path):
    def write(sink: storage.Sink) -> None:
        raise ValueError("not a tensor")

    with pytest.raises(ValueError, match="not a tensor"):
        storage.write_with(str(tmp_path / "f"), write)
    assert os.listdir(tmp_path) == []


def test_some_tables_are_read_ahead_in_order(tmp_path, monkeypatch):
    """Nobody passes the barrier before `READ_AHEAD` readers have come to it: the waits of a remote place overlap."""
    number = 2 * storage.READ_AHEAD
    for i in range(number):
        storage.write_table(pa.table({"i": [i], "other": [0]}), str(tmp_path / f"{i}.parquet"))
    barrier, read, begun = threading.Barrier(storage.READ_AHEAD), storage.read_table, []

    def slow(uri: str, *columns: list[str]) -> pa.Table:
        begun.append(uri)
        barrier.wait(timeout=60)
        return read(uri, *columns)

    monkeypatch.setattr(storage.tables, "read_table", slow)
    tables = storage.read_tables((str(tmp_path / f"{i}.parquet") for i in range(number)), ["i"])
    assert next(tables).to_pydict() == {"i": [0]}
    assert len(begun) <= storage.READ_AHEAD + 1
    assert [table["i"][0].as_py() for table in tables] == list(range(1, number))


def test_a_missing_table_fails_in_its_turn(tmp_path):
    storage.write_table(pa.table({"i": [0]}), str(tmp_path / "0.parquet"))
    tables = storage.read_tables([str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet")])
    assert len(next(tables)) == 1
    with pytest.raises(FileNotFoundError):
        next(tables)


def test_a_newer_column_is_read_where_present(tmp_path):
    storage.write_table(pa.table({"i": [0], "note": ["x"], "other": [1]}), str(tmp_path / "0.parquet"))
    storage.write_table(pa.table({"i": [1], "other": [1]}), str(tmp_path / "1.parquet"))
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    found = [table.to_pydict() for table in storage.read_tables(files, ["i"], where_present=["note"])]
    assert found == [{"i": [0], "note": ["x"]}, {"i": [1]}]
    with pytest.raises(pa.ArrowException):
        list(storage.read_tables(files, ["i", "note"]))
