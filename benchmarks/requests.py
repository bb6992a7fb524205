"""Requests of each step to object storage, counted in the log of an S3 server on this machine (moto, of the extra `dev`).

Requests do not depend on the machine, so they are counted and not timed.
"""

import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa

from pneumo_ray import storage
from pneumo_ray.data import cache, containers
from pneumo_ray.data.archive import Entry, list_archives
from pneumo_ray.data.cache import read_cached, scan_cache, write_shard
from pneumo_ray.data.image_bytes import read_image
from pneumo_ray.data.spans import Span
from pneumo_ray.score.image_list import SCHEMA, write_list

_LINE = re.compile(r'"(?:\x1b\[\d+m)*(GET|PUT|POST|DELETE|HEAD) (\S*)')
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def bench_requests(shared: Path) -> Iterator[str]:
    """Yield a Markdown table of the requests of each step, line by line."""
    yield "| step | requests | of these |"
    yield "| --- | --- | --- |"
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, _KEYS),
        open(f"{folder}/log", "wb") as log,
    ):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/")
            query = f"?scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
            storage.filesystem(f"s3://bucket{query}&allow_bucket_creation=true")[0].create_dir("bucket")
            for what, work in _steps(f"s3://bucket/run{query}"):
                before = os.path.getsize(log.name)
                work()
                time.sleep(0.2)
                found = Counter(_LINE.findall(Path(log.name).read_bytes()[before:].decode("utf-8", "replace")))
                kinds: Counter[str] = Counter()
                for (verb, target), count in found.items():
                    kinds["LIST" if "list-type" in target else verb] += count
                each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
                yield f"| {what} | {kinds.total()} | {each} |"
        finally:
            server.terminate()
            server.wait()


def _wait(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _steps(root: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the steps to count; the files that a step needs are made before it is yielded."""
    small, large = os.urandom(8_000), os.urandom(500_000)

    def uri(*names: str) -> str:
        return storage.join(root, *names)

    for i in range(30):
        _put(uri("pictures", f"{i:04d}.jpeg"), small)
    _put(uri("large.jpeg"), large)
    yield "list a folder of 30 images", partial(_listed, uri("pictures"))
    yield "read an image of 8 kB", lambda: read_image(uri("pictures", "0000.jpeg"), None)
    yield "read an image of 500 kB", lambda: read_image(uri("large.jpeg"), None)
    for kind, image, count in (("8 kB", small, 1000), ("500 kB", large, 40)):
        name = uri(f"{len(image)}.tar")
        _put(name, _tar(image, count))
        yield f"list a tar file of {count:,} images of {kind}", partial(_listed, name)
        yield f"read 10 of them in order, its members known ({kind})", partial(_read_ten, name)
        containers._index.cache_clear()
        yield f"find and read one of them in a new process ({kind})", partial(read_image, name, "0000.jpeg")
        first = next(list_archives([name]))
        containers._opened.cache_clear()
        yield f"read one of them where the job's list has it ({kind})", partial(read_image, *_place(first))
    n = 20_000
    names = pa.array([f"{i:08d}.jpeg" for i in range(n)])
    columns = {"image_id": names, "uri": names}
    listed = pa.table([columns.get(f.name, pa.nulls(n, f.type)) for f in SCHEMA], schema=SCHEMA)
    source = write_list(listed, uri("list.parquet"), 224)
    yield f"explain: read the rows of the first shard of {n:,} images", lambda: source.read(0)
    yield "explain: read the rows of the next shard", lambda: source.read(1)
    part = pa.table({"x": np.random.default_rng(0).random(50_000)})
    yield "write a part file of 400 kB", lambda: storage.write_table(part, uri("scores", "part-000000.parquet"))
    yield "read two columns of a part file", lambda: storage.read_table(uri("scores", "part-000000.parquet"), ["x"])
    yield "list the folder of the scores", lambda: storage.list_files(uri("scores"))
    images = [((f"{i:064x}", 0), np.zeros((256, 256), np.uint8)) for i in range(256)]
    shard = write_shard(uri("cache"), 256, images)
    yield "prepare --cache: write a shard of 256 images (17 MB)", lambda: write_shard(uri("cache"), 256, images)
    yield "list the keys of a shard of the cache", lambda: scan_cache(uri("cache"), 256)
    yield (
        "train: read 64 cached images of one shard",
        lambda: read_cached(uri("cache"), 256, [shard] * 64, [*range(64)]),
    )
    cache._open_shard.cache_clear()
    yield "train: read one of a shard that is not open", lambda: read_cached(uri("cache"), 256, [shard], [0])


def _place(entry: Entry) -> tuple[str, str | None, Span | None]:
    return entry.uri, entry.member, entry.span


def _listed(uri: str) -> int:
    return sum(1 for _ in list_archives([uri]))


def _read_ten(tar: str) -> list[bytes]:
    return [read_image(tar, f"{i:04d}.jpeg") for i in range(10)]


def _put(uri: str, data: bytes) -> None:
    fs, path = storage.filesystem(uri)
    with fs.open_output_stream(path) as stream:
        stream.write(data)


def _tar(image: bytes, count: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{i:04d}.jpeg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return stream.getvalue()
