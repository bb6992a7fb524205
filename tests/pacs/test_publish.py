"""Publication into a folder: what is made, what is left out, and that a second time changes nothing."""

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_builders import radiograph, to_bytes

from pneumo_ray.errors import ConfigError, ManifestError, PneumoError, StorageError
from pneumo_ray.pacs.batch import Outcome
from pneumo_ray.pacs.config import PublishConfig
from pneumo_ray.pacs.ledger import MAP
from pneumo_ray.pacs.publish import publish

JOB = Path(__file__).parents[2] / "jobs" / "publish.py"
N = 4
PLANTED = ("WINTERBOTTOM", "MRN-5550173", "20190623", "ACC-8642097")


def run(scores: Path, model: Path, out: Path, **options: object) -> Outcome:
    return publish(PublishConfig(scores=str(scores), model=str(model), out=str(out), num_workers=1, **options))


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.dcm")}


@pytest.fixture
def radiographs(cr_file) -> dict[str, bytes]:
    return {f"{number}.dcm": cr_file(number) for number in range(N)}


def test_every_image_has_its_four_objects(scored, radiographs, model, tmp_path, capsys):
    outcome = run(scored(radiographs), model, tmp_path / "out")
    assert (outcome.images, outcome.made, outcome.present) == (N, 4 * N, 0)
    assert outcome.left_out == {"failed": 1}
    found = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("*.dcm")]
    of_source: dict[str, list[str]] = {}
    for made in found:
        assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID
        assert made.PatientID == "MRN-5550173"
        of_source.setdefault(made.StudyInstanceUID, []).append(made.Modality)
    assert {uid: sorted(modalities) for uid, modalities in of_source.items()} == {
        f"1.2.826.0.2.{study}": ["OT"] * 6 + ["SR"] * 2 for study in (1, 2)
    }
    said = capsys.readouterr().out
    assert f"published {4 * N} objects of {N} images" in said
    assert "1 failed" in said


def test_a_report_names_fused_maps(scored, radiographs, model, tmp_path):
    scores = scored(radiographs)
    recorded = (scores / "_run.json").read_text()
    for maps, named in (("last", False), ("fused", True)):
        (scores / "_run.json").write_text(recorded.replace('"passes"', f'"maps": "{maps}", "passes"'))
        run(scores, model, tmp_path / maps, kinds=("sr",))
        assert {b"maps = fused" in report for report in files_of(tmp_path / maps).values()} == {named}


def test_a_second_publication_changes_nothing(scored, radiographs, model, tmp_path):
    scores, out = scored(radiographs), tmp_path / "out"
    run(scores, model, out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.dcm")}
    outcome = run(scores, model, out)
    assert (outcome.made, outcome.present) == (0, 4 * N)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.dcm")}


def test_missing_objects_are_remade_with_equal_bytes(scored, radiographs, model, tmp_path):
    scores, out = scored(radiographs), tmp_path / "out"
    run(scores, model, out)
    whole = files_of(out)
    for name in sorted(whole)[::3]:
        (out / name).unlink()
    run(scores, model, out)
    assert files_of(out) == whole


def test_two_processes_make_the_same_objects(scored, radiographs, cr_file, model, tmp_path):
    many = {f"{number}.dcm": cr_file(number, 40, 30) for number in range(40)}  # two batches
    scores = scored(many)
    run(scores, model, tmp_path / "one", kinds=("sr", "map"))
    config = PublishConfig(
        scores=str(scores), model=str(model), out=str(tmp_path / "two"), num_workers=2, kinds=("sr", "map")
    )
    assert publish(config).made == 120
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert (tmp_path / "one" / MAP).read_text() == (tmp_path / "two" / MAP).read_text()


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_doubtful_results_need_to_be_asked_for(scored, radiographs, model, tmp_path):
    views = np.array(["frontal", "doubtful", "frontal", "frontal"], object)
    scores = scored(radiographs, view=views, outside_support=np.array([None, None, "age", None], object))
    outcome = run(scores, model, tmp_path / "out", kinds=("sr",))
    assert (outcome.images, outcome.left_out["doubtful"]) == (2, 2)
    assert run(scores, model, tmp_path / "out", kinds=("sr",), include_doubtful=True).images == N


def test_a_dry_run_counts_and_writes_nothing(scored, radiographs, model, tmp_path, capsys):
    scores = scored(radiographs)
    before = sorted(path for path in tmp_path.rglob("*"))
    outcome = run(scores, model, tmp_path / "out", dry_run=True)
    assert (outcome.images, outcome.made) == (N, 4 * N)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert "would publish" in capsys.readouterr().out


def test_images_that_are_no_dicom_are_left_out(scored, radiographs, model, tmp_path):
    outcome = run(scored(radiographs | {"a.png": b"\x89PNG\r\n\x1a\n rest"}), model, tmp_path / "out", kinds=("sr",))
    assert outcome.left_out["no DICOM"] == 1
    with pytest.raises(ConfigError, match="no DICOM"):
        run(scored({"a.png": b"\x89PNG\r\n\x1a\n rest"}, "png"), model, tmp_path / "other")


def test_frames_of_one_file_have_separate_objects(scored, model, tmp_path):
    frames = np.random.default_rng(0).integers(0, 4096, (2, 60, 50), np.uint16)
    file = to_bytes(radiograph(frames, BitsStored=12, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4"))
    outcome = run(scored({"many.dcm#0": file, "many.dcm#1": file}, frames=True), model, tmp_path / "out")
    assert outcome.made == len(files_of(tmp_path / "out")) == 8


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_scores_of_another_model_are_refused(scored, radiographs, other_model, tmp_path):
    with pytest.raises(ConfigError, match="another model"):
        run(scored(radiographs), other_model, tmp_path / "out")


def test_results_of_another_config_are_refused(scored, radiographs, model, tmp_path):
    out = tmp_path / "out"
    run(scored(radiographs), model, out, kinds=("sr",))
    before = files_of(out)
    other = scored(radiographs, "other", config_hash="d" * 64)
    with pytest.raises(ConfigError, match="another config"):
        run(other, model, out, kinds=("sr",))
    assert files_of(out) == before
    run(other, model, out, kinds=("sr",), beside=True)
    assert len(files_of(out)) == 2 * len(before)


def test_unfinished_scores_are_refused(scored, radiographs, model, tmp_path):
    scores = scored(radiographs)
    (scores / "_run.json").unlink()
    with pytest.raises(ManifestError, match="not finished"):
        run(scores, model, tmp_path / "out")


def test_a_missing_source_is_counted_and_retried(scored, radiographs, model, tmp_path):
    scores, out = scored(radiographs), tmp_path / "out"
    lost = tmp_path / "archive" / "1.dcm"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(StorageError, match="1 source cannot be read"):
        run(scores, model, out, kinds=("sr",))
    assert len(files_of(out)) == N - 1
    lost.write_bytes(content)
    assert run(scores, model, out, kinds=("sr",)).made == 1


@pytest.mark.parametrize("changes", [{"StudyInstanceUID": ""}, {"SOPInstanceUID": ""}, {"SOPClassUID": "1.2.3.4"}])
def test_a_source_without_an_identity_is_refused(scored, cr_file, model, tmp_path, changes):
    with pytest.raises(StorageError, match="could not be published"):
        run(scored({"a.dcm": cr_file(1, **changes), "b.dcm": cr_file(2)}), model, tmp_path / "out", kinds=("sr",))
    assert len(files_of(tmp_path / "out")) == 1


def test_a_folder_that_cannot_be_written_is_named(scored, radiographs, model, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PneumoError, match="file"):
        run(scored(radiographs), model, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "words",
    [
        ["--out", "o", "--to", "dicomweb+http://h"],
        [],
        ["--out", "o", "--num-workers", "-1"],
        ["--out", "o", "--kinds", "sr", "sr"],
    ],
)
def test_options_that_cannot_work_end_with_one_sentence(words):
    done = subprocess.run(
        [sys.executable, JOB, "--scores", "s", "--model", "m", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


# ---- patients --------------------------------------------------------------------------------------------------------


def test_nobody_is_named_outside_the_objects(scored, radiographs, model, tmp_path, capfd):
    scores, out = scored(radiographs), tmp_path / "out"
    run(scores, model, out)
    said = capfd.readouterr()
    texts = {
        path.name: path.read_bytes()
        for path in [*out.rglob("*"), *scores.rglob("*")]
        if path.is_file() and path.suffix != ".dcm"
    }
    texts |= {
        "names": " ".join(path.name for path in tmp_path.rglob("*")).encode(),
        "out": said.out.encode(),
        "err": said.err.encode(),
    }
    for place, text in texts.items():
        for trace in (*PLANTED, "1.2.826.0.2."):  # the last begins every study
            assert trace.encode() not in text, f"{trace} in {place}"
    assert any(b"WINTERBOTTOM" in content for content in files_of(out).values())


def test_the_map_is_its_owners_alone(scored, radiographs, model, tmp_path):
    out = tmp_path / "out"
    run(scored(radiographs), model, out, kinds=("sr",))
    assert stat.S_IMODE((out / MAP).stat().st_mode) == 0o600
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    lines = (out / MAP).read_text().splitlines()
    assert lines[0] == "image_id,source_uid,object,object_uid"
    assert {line.split(",")[1] for line in lines[1:]} == {f"1.2.826.0.1.{number + 1}" for number in range(N)}
    assert {f"{line.split(',')[3]}.dcm" for line in lines[1:]} == set(files_of(out))
