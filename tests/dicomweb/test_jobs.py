"""prepare and explain with an archive in a PACS: the rows of a folder, nobody's name, and nothing lost when it fails."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from dicomweb_server import DicomwebServer

from pneumo_ray.data.prepare import PrepareConfig, prepare
from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.records import Row
from pneumo_ray.score.config import ExplainConfig
from pneumo_ray.score.job import explain_archive
from pneumo_ray.score.silent import score_new
from pneumo_ray.score.silent_config import SilentConfig

ELSEWHERE = {"image_id", "uri", "member", "member_span"}
"""Columns that say where an image is, and differ."""


def scores_of(folder: Path) -> dict[str, Row]:
    rows = [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def without(row: Row, columns: set[str]) -> Row:
    return {name: repr(value) for name, value in row.items() if name not in columns}


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Collect the command lines of all processes of this machine while the block runs."""
    found: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    found.add(path.read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield found
    ended.set()
    thread.join()


def test_pacs_rows_equal_folder_rows_and_name_nobody(
    ray_cluster, orthanc, model, make_radiograph, folder_of, private_words, tmp_path, capfd
):
    files = [make_radiograph(number) for number in range(10)]
    files += [make_radiograph(10, BitsStored=40), make_radiograph(11, PatientAge="006Y", PatientSex="F")]
    orthanc.store(files)
    folder = str(folder_of(files))
    uids = tmp_path / "uids.txt"
    uids.write_text("\n".join(study["MainDicomTags"]["StudyInstanceUID"] for study in orthanc.rest("/studies?expand")))
    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    with command_lines() as lines:
        prepare(PrepareConfig(archive=(f"{orthanc.address}?Modality=CR",), out=there))
        shutil.copytree(
            there, here, ignore=lambda *_: ["manifest.parquet"]
        )  # one salt, so that patients are called alike
        prepare(PrepareConfig(archive=(folder,), out=here))
        for name, archive in (("there", orthanc.address), ("here", folder)):
            (tmp_path / f"scores-{name}").mkdir()
            shutil.copy(f"{there}/.salt", tmp_path / f"scores-{name}" / ".salt")
            explain_archive(
                ExplainConfig(
                    model=str(model),
                    archive=(archive,),
                    out=str(tmp_path / f"scores-{name}"),
                    uids=str(uids) if name == "there" else None,
                    amp="off",
                )
            )

    tables = {name: pq.read_table(f"{name}/manifest.parquet").to_pylist() for name in (there, here)}
    by_content = {name: {row["content_sha256"]: row for row in rows} for name, rows in tables.items()}
    assert len(by_content[there]) == len(files)
    assert sum(row["status"] == "failed" for row in tables[there]) == 1
    assert len({row["patient_id"] for row in tables[there]} - {None}) == 6
    for sha, row in by_content[there].items():
        assert without(row, ELSEWHERE) == without(by_content[here][sha], ELSEWHERE)

    scored_there, scored_here = scores_of(tmp_path / "scores-there"), scores_of(tmp_path / "scores-here")
    for sha, row in by_content[there].items():
        file = by_content[here][sha]["image_id"]
        assert without(scored_there[row["image_id"]], ELSEWHERE) == without(scored_here[file], ELSEWHERE)

    said = capfd.readouterr()
    logs = Path(ray_cluster._private.worker._global_node.get_session_dir_path()) / "logs"
    written = [path for root in (Path(there), tmp_path / "scores-there", logs) for path in root.rglob("*")]
    texts = {str(path): path.read_bytes() for path in written if path.is_file() and path.suffix != ".pacs"}
    texts |= {"file names": repr(written).encode(), "stdout": said.out.encode(), "stderr": said.err.encode()}
    texts |= {"command lines": b"\n".join(lines)}
    for place, text in texts.items():
        if place.endswith(".parquet"):  # compressed
            text = repr(pq.read_table(place).to_pylist()).encode()
        for word in private_words:
            assert word.encode() not in text, f"{word!r} in {place}"
    indexes = [path for path in written if path.suffix == ".pacs"]
    assert len(indexes) == 2
    for path in indexes:
        assert not any(word.encode() in path.read_bytes() for word in private_words[:-1]), "UIDs, and nothing else"


@pytest.fixture
def many(make_radiograph) -> Iterator[DicomwebServer]:
    with DicomwebServer(map(make_radiograph, range(40))) as server:
        server.spoils = lambda path: "/studies/" in path
        yield server


def test_explain_continues_where_the_pacs_left_it(ray_cluster, many, model, tmp_path):
    config = ExplainConfig(model=str(model), archive=(many.address,), out=str(tmp_path), amp="off")
    many.faults = [None] * 25 + [401] * 999
    with pytest.raises(StorageError, match="asks for credentials"):
        explain_archive(config)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.parquet")}
    assert len(before) < 3
    many.faults = []
    listings = sum("/instances?" in path for path in many.seen)
    explain_archive(config)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert sum("/instances?" in path for path in many.seen) == listings, "the list is that of the first run"
    rows = scores_of(tmp_path).values()
    assert len(rows) == 40
    assert {row["status"] for row in rows} == {"ok"}
    (tmp_path / "uids.txt").write_text("1.2.3\n")
    with pytest.raises(ConfigError, match="another archive or manifest"):
        explain_archive(
            ExplainConfig(model=config.model, archive=config.archive, out=config.out, uids=str(tmp_path / "uids.txt"))
        )


def test_explain_retrieves_each_instance_once(ray_cluster, make_radiograph, model, tmp_path):
    """Lungs, pixels and facts of an image, and all frames of an instance, come from one retrieval."""
    frames = np.random.default_rng(0).integers(0, 4096, (3, 60, 50), np.uint16)
    files = [make_radiograph(number) for number in range(8)]
    files.append(make_radiograph(8, pixels=frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.3"))
    with DicomwebServer(files) as server:
        explain_archive(
            ExplainConfig(model=str(model), archive=(server.address,), out=str(tmp_path), amp="off", zones="lungs")
        )
        retrieved = [path for path in server.seen if "/instances/" in path and not path.endswith("/metadata")]
    assert len(scores_of(tmp_path)) == 11
    assert len(retrieved) == len({*retrieved}) == 9


def test_a_silent_trial_scores_only_new_images(
    ray_cluster, orthanc, make_radiograph, model, private_words, tmp_path, capfd
):
    """The second run scores the two images that came since; the PACS has what it had; nobody is named."""
    config = SilentConfig(archive=(f"{orthanc.address}?Modality=CR",), model=str(model), out=str(tmp_path))
    orthanc.store(make_radiograph(number) for number in range(4))
    assert score_new(config) == 4
    orthanc.store(make_radiograph(number) for number in (4, 5))
    changes = orthanc.rest("/changes?last")["Last"]
    assert score_new(config) == 2
    assert score_new(config) == 0
    assert orthanc.rest("/changes?last")["Last"] == changes, "nothing was stored, changed or removed"
    assert orthanc.rest("/statistics")["CountInstances"] == 6

    batches = sorted((tmp_path / "batches").iterdir())
    scored = [scores_of(batch / "scores") for batch in batches]
    assert [len(rows) for rows in scored] == [4, 2]
    assert not {*scored[0]} & {*scored[1]}
    assert {row["status"] for rows in scored for row in rows.values()} == {"ok"}
    said = capfd.readouterr()
    texts = {"stdout": said.out, "stderr": said.err, "names": repr(list(tmp_path.rglob("*")))}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".pacs":
            content = path.read_bytes()
            texts[str(path)] = repr(pq.read_table(path).to_pylist() if path.suffix == ".parquet" else content)
    for place, text in texts.items():
        for word in private_words:
            assert word not in text, f"{word!r} in {place}"


def test_pacs_failure_stops_prepare_without_a_manifest(ray_cluster, many, tmp_path):
    many.faults = [None] * 10 + [401] * 999
    with pytest.raises(StorageError, match="asks for credentials"):
        prepare(PrepareConfig(archive=(many.address,), out=str(tmp_path), lungs="none"))
    assert not (tmp_path / "manifest.parquet").exists()
