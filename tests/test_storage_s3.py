"""Storage on a real S3 server (moto, on loopback), and on one that fails first."""

import io
import os
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from pneumo_ray import storage
from pneumo_ray.data.archive import list_archives
from pneumo_ray.data.containers import REMOTE_BUFFER
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.label_table import read_labels
from pneumo_ray.errors import ArchiveError, StorageError


class Flaky(ThreadingHTTPServer):
    """A proxy that forwards `passing` requests, spoils the next `failures`, by 503 or by hanging up, and forwards the rest."""

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        self.behind, self.passing, self.failures, self.hangs_up, self.seen = behind, 0, 0, False, 0
        super().__init__(("127.0.0.1", 0), _Forward)


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flaky

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def answer(self) -> None:
        self.server.seen += 1
        body = self._body()
        if self.server.passing > 0:
            self.server.passing -= 1
        elif self.server.failures > 0:
            self.server.failures -= 1
            self.close_connection = True
            if not self.server.hangs_up:
                self._send(503, {}, b"")
            return
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.server.behind}{self.path}", body, dict(self.headers), method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                self._send(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            self._send(error.code, dict(error.headers), error.read())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def _body(self) -> bytes | None:
        if self.headers.get("Expect"):
            del self.headers["Expect"]
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        del self.headers["Transfer-Encoding"]
        parts = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return parts

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky(s3_port: int, monkeypatch) -> Iterator[Flaky]:
    """The proxy; waits are short, and pyarrow's own 6 seconds of tries are one, so that ours are seen."""
    monkeypatch.setattr(storage.remote, "FIRST_WAIT", 0.01)
    with Flaky(s3_port) as proxy:
        once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
        client = pafs.S3FileSystem(
            scheme="http",
            endpoint_override=f"127.0.0.1:{proxy.server_address[1]}",
            region="us-east-1",
            retry_strategy=once,
        )
        for module in (storage, storage.files, storage.tables):
            monkeypatch.setattr(
                module, "filesystem", lambda uri: (client, uri.partition("?")[0].removeprefix("s3://").rstrip("/"))
            )
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def test_s3_returns_what_was_written_and_nothing_else(bucket):
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    file, rows = storage.join(bucket, "a b"), storage.join(bucket, "rows.parquet")
    storage.require_writable(bucket)
    assert storage.list_files(bucket) == []
    assert not storage.exists(file)
    storage.write_bytes(file, b"12345")
    storage.write_table(table, rows)
    assert storage.exists(file)
    assert (storage.read_bytes(file), storage.read_bytes(file, 2)) == (b"12345", b"12")
    assert storage.read_table(rows).equals(table)
    assert storage.read_table(rows, ["b"]).column_names == ["b"]
    assert storage.list_files(bucket, lambda name: name.endswith("parquet")) == ["rows.parquet"]
    assert len(storage.list_files(bucket)) == 2
    storage.remove(file)
    storage.remove(file)
    assert storage.list_files(bucket) == ["rows.parquet"]


@pytest.mark.parametrize("hangs_up", [False, True], ids=["503", "hangs up"])
def test_errors_that_pass_are_survived(bucket, flaky, capsys, hangs_up):
    flaky.hangs_up = hangs_up
    file = storage.join(bucket, "f")
    rows = storage.join(bucket, "rows.parquet")
    table = pa.table({"a": [1]})
    actions = {
        "write": lambda: storage.write_bytes(file, b"1"),
        "read": lambda: storage.read_bytes(file) == b"1",
        "write ": lambda: storage.write_table(table, rows),
        "read ": lambda: storage.read_table(rows).equals(table),
        "list": lambda: storage.list_files(bucket) == ["f", "rows.parquet"],
        "look for": lambda: storage.exists(file),
        "remove": lambda: storage.remove(file),
    }
    for verb, action in actions.items():
        flaky.failures = storage.TRIES - 1
        assert action() in (None, True), verb
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
        least = 1 if hangs_up else storage.TRIES - 1  # curl itself repeats a request on a connection it had kept open
        assert least <= len(lines) < storage.TRIES, lines
        assert flaky.failures == 0
        assert all(f"cannot {verb.strip()} s3://" in line and "endpoint_override" not in line for line in lines)
    assert storage.list_files(bucket) == ["rows.parquet"]


def test_a_write_survives_the_failure_of_any_request(bucket, flaky):
    file = storage.join(bucket, "f")
    flaky.seen = 0
    storage.write_bytes(file, b"first")
    requests = flaky.seen
    assert requests >= 4, "an upload, a copy and a removal"
    for passed in range(requests):
        flaky.passing, flaky.failures = passed, 1
        storage.write_bytes(file, b"%d" % passed)
        assert flaky.failures == 0
        assert storage.read_bytes(file) == b"%d" % passed
        assert storage.list_files(bucket) == ["f"]


def test_after_the_last_try_one_sentence_says_so(bucket, flaky):
    file = storage.join(bucket, "f")
    storage.write_bytes(file, b"old")
    for verb, action in {"read": storage.read_bytes, "write": lambda uri: storage.write_bytes(uri, b"new")}.items():
        flaky.failures, flaky.seen = 1000, 0
        with pytest.raises(StorageError, match=rf"^cannot {verb} s3://[\w-]+/run/f after 5 tries: .*503") as raised:
            action(file)
        assert isinstance(raised.value, OSError)
        assert flaky.seen in (5, 6), "a try is one request here, and the temporary file is removed in one more"
    flaky.failures = 0
    assert storage.read_bytes(file) == b"old"
    assert storage.list_files(bucket) == ["f"]


def test_final_answers_are_not_asked_for_twice(bucket, flaky, capsys):
    missing = "s3://no-such-bucket/run/f"
    for action, error in [
        (lambda: storage.read_bytes(storage.join(bucket, "none")), FileNotFoundError),
        (lambda: storage.read_table(storage.join(bucket, "none")), FileNotFoundError),
        (lambda: storage.read_bytes(missing), FileNotFoundError),
        (lambda: storage.write_bytes(missing, b""), StorageError),
    ]:
        with pytest.raises(error):
            action()
    assert "warning" not in capsys.readouterr().out


def test_a_move_with_a_lost_answer_counts(bucket, flaky):
    """The first try moves the file and hears an error; the second finds nothing left to move."""
    client, folder = storage.filesystem(bucket)

    class Loses:
        calls = 0

        def move(self, source: str, target: str) -> None:
            self.calls += 1
            client.move(source, target)
            raise OSError("AWS Error NETWORK_CONNECTION")

        def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
            return client.get_file_info(paths)

    storage.write_bytes(storage.join(bucket, "a"), b"1")
    fs = Loses()
    storage.files.move_written(fs, f"{folder}/a", f"{folder}/b")
    assert fs.calls == 1
    assert storage.list_files(bucket) == ["b"]


def test_a_key_in_the_address_is_not_printed(capsys, monkeypatch):
    monkeypatch.setattr(storage.remote, "FIRST_WAIT", 0.0)

    def fail() -> None:
        raise OSError("down")

    with pytest.raises(StorageError, match=r"^cannot read s3://bucket/a after 5 tries: down$"):
        storage.retried("read", "s3://key:secret@bucket/a?x=secret", fail)
    assert "secret" not in capsys.readouterr().out


def test_a_key_in_an_address_is_refused_unquoted():
    for action in (storage.read_bytes, storage.list_files, storage.require_writable):
        with pytest.raises(StorageError, match=r"s3://\.\.\.@bucket contains a key.*AWS_ACCESS_KEY_ID") as raised:
            action("s3://AKIA:sesame@bucket/run?region=us-east-1")
        assert "sesame" not in str(raised.value)


def test_one_request_reads_many_tar_members(bucket, flaky):
    """Each request is a journey to the server, so their number is the time that reading takes."""
    file, tar = storage.join(bucket, "f"), storage.join(bucket, "a.tar")
    content = os.urandom(3_000_000)
    storage.write_bytes(file, content)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(200):
            member = tarfile.TarInfo(f"{number}.jpeg")
            member.size = 3000
            archive.addfile(member, io.BytesIO(bytes([number]) * 3000))
    storage.write_bytes(tar, stream.getvalue())
    flaky.seen = 0
    assert storage.read_bytes(file) == content
    assert flaky.seen <= 2, "a question for the length, and the content"
    flaky.seen = 0
    entries = list(list_archives([storage.join(bucket)]))
    assert [read_image(entry.uri, entry.member)[0] for entry in entries[:-1]] == list(range(200))
    assert flaky.seen <= 10 + 4 * len(stream.getvalue()) / REMOTE_BUFFER


def test_a_tar_member_survives_a_short_outage(bucket, flaky):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("1.jpeg", "2.jpeg"):
            member = tarfile.TarInfo(name)
            member.size = 6 * REMOTE_BUFFER
            archive.addfile(member, io.BytesIO(name.encode() * REMOTE_BUFFER))
    storage.write_bytes(storage.join(bucket, "a.tar"), stream.getvalue())
    entries = list(list_archives([bucket]))
    for entry in entries:
        flaky.failures = storage.TRIES - 1
        assert read_image(entry.uri, entry.member).startswith(entry.member.encode())
        assert flaky.failures == 0


def test_addresses_with_a_query_can_overlap(bucket):
    storage.write_bytes(storage.join(bucket, "deep", "1.jpeg"), b"1")
    with pytest.raises(ArchiveError, match="overlap"):
        list(list_archives([bucket, storage.join(bucket, "deep")]))


def test_a_table_format_ignores_the_query(bucket):
    rows = pa.table({"image_id": ["a"], "label": ["normal"]})
    storage.write_table(rows, storage.join(bucket, "labels.parquet"))
    storage.write_bytes(storage.join(bucket, "labels.csv"), b"image_id,label\na,normal\n")
    for name in ("labels.parquet", "labels.csv"):
        assert read_labels(storage.join(bucket, name)).to_pylist() == [{"image_id": "a", "label": 0}]


def test_denied_access_is_a_sentence_about_credentials(bucket, monkeypatch):
    file = storage.join(bucket, "f")
    storage.write_bytes(file, b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage.remote.client.cache_clear()
    try:
        for action in (storage.read_bytes, storage.read_table):
            with pytest.raises(StorageError, match=r"^cannot read s3://.*/f: .*ACCESS_DENIED.*must have credentials"):
                action(file)
    finally:
        storage.remote.client.cache_clear()
