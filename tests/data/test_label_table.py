"""Tables of labels as people have them; what a table means is known because each is written for the test."""

import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pneumo_ray.data.label_merge import apply_labels
from pneumo_ray.data.label_table import read_labels
from pneumo_ray.data.lungs import shapes
from pneumo_ray.data.manifest import SCHEMA, crossing
from pneumo_ray.data.split import assign_splits
from pneumo_ray.errors import ManifestError
from pneumo_ray.images.framing import Shape

REPORT = "FINDINGS: Jane Doe has bilateral opacities"


def archive(ids=("a/0.jpg", "a/1.jpg", "a/2.jpg"), **columns) -> pa.Table:
    rows = [{"image_id": name, "status": "ok", **{c: v[k] for c, v in columns.items()}} for k, name in enumerate(ids)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def labelled(rows: pa.Table, folder, text: str | bytes) -> pa.Table:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return apply_labels(rows, read_labels(str(path)), str(path))


def test_tables_name_ids_or_unique_files(tmp_path):
    text = "image_id,label,patient_id,age\na/0.jpg,normal,p1,3\n2.jpg,1,p2,\n"
    merged = labelled(archive(label=[1, 1, None]), tmp_path, text)
    assert merged["label"].to_pylist() == [0, 1, 1]
    assert merged["patient_id"].to_pylist() == ["p1", None, "p2"]
    assert merged["age"].to_pylist() == [3, None, None]


@pytest.mark.parametrize("header", ["label", "Label", "LABEL", " label", "label ", "class", "Target", "finding", "is_pneumonia", "labels"])  # fmt: skip
def test_a_label_column_is_found_by_its_meaning(tmp_path, header):
    merged = labelled(archive(label=[0, 1, 1]), tmp_path, f"image_id,{header}\n0.jpg,1\n1.jpg,normal\n")
    assert merged["label"].to_pylist() == [1, 0, 1]
    assert merged.column_names == SCHEMA.names


@pytest.mark.parametrize("image", ["image_id", "Image ID", "image", "filename", "File Name", "Image Index", "path"])
@pytest.mark.parametrize(
    ("patient", "split"), [("patientId", "Split"), ("Patient ID", "subset"), ("subject_id", " SPLIT ")]
)
def test_other_columns_are_found_by_their_meaning(tmp_path, image, patient, split):
    merged = labelled(archive(), tmp_path, f"{image},{patient},{split}\n0.jpg,00012,Test\n")
    assert merged.to_pylist()[0]["patient_id"] == "00012"
    assert merged.to_pylist()[0]["split"] == "test"
    assert merged.column_names == SCHEMA.names


@pytest.mark.parametrize("header", ["lable", "labell", "splitt", "patiend_id", "sub_typ", "label_1"])
def test_a_misspelled_column_names_the_nearest(tmp_path, header):
    wanted = {"s": "split" if header == "splitt" else "subtype", "p": "patient_id", "l": "label"}[header[0]]
    with pytest.raises(ManifestError, match=rf"{wanted}"):
        labelled(archive(), tmp_path, f"image_id,{header}\n0.jpg,x\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,label\nzz.jpg,1\n", "names 1 image.*'zz.jpg'"),
        ("image_id,label\na/0.jpg,1\n0.jpg,0\n", "more than once, with different values in its column 'label'"),
        ("image_id,label\na/0.jpg,perhaps\n", "label in row 2"),
        (
            "image_id,finding\na/0.jpg,0\na/1.jpg,perhaps\n",
            "'finding' could be meant but holds something else in row 3",
        ),
        ("image_id,class,Target\na/0.jpg,0,1\n", "'Target' and 'class', which could both be label"),
        ("image_id,Label,label\na/0.jpg,0,1\n", "'Label' and 'label', which could both be label"),
        ("image_id,label,label\na/0.jpg,0,1\n", "2 columns of the name 'label'"),
        ("image_id,age,age\na/0.jpg,0,1\n", "2 columns of the name 'age'"),
        ("image_id,image_id\na/0.jpg,0\n", "2 columns of the name 'image_id'"),
        ("age,label\n3,1\n", "no column image_id; its columns are 'age', 'label'"),
        ("image_id,split\na/0.jpg,dev\n", "split in row 2"),
        ("image_id,label\n,1\n", "names no image in row 2"),
        ("image_id,,label\na/0.jpg,x,1\n", "column 2, which has no name"),
        ("image_id,label\na/0.jpg,1,x\n", "3 cells in row 2 and 2 in its header"),
        ('image_id,label,r\na/0.jpg,1,"x\n', "quotation mark"),
        ("image_id,label\n", "no rows"),
        ("", "is empty"),
        (b"PK\x03\x04" + bytes(99), "workbook"),
        (b"image_id,label\n\x00\x01\x02", "neither a CSV nor a Parquet"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        labelled(archive(), tmp_path, text)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        read_labels(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    "text",
    [
        f"image_id,label\na/0.jpg,{REPORT}\n",
        f"image_id,finding\na/0.jpg,{REPORT}\n",
        f"image_id,label,report\na/0.jpg,1,{REPORT}, {REPORT}\n",
        f"image_id,label,report\na/0.jpg,1,{REPORT}\n0.jpg,1,other\n",
        f"image_id,label\n{REPORT},1\n",
        f"image_id,split\na/0.jpg,{REPORT}\n",
        f"a/0.jpg,1,{REPORT}\na/1.jpg,0,{REPORT}\n",
        f'image_id,label,report\na/0.jpg,1,"{REPORT}\n',
        f"image_id,,label\na/0.jpg,{REPORT},1\n",
        f"image_id,label\n,{REPORT}\n",
    ],
)
def test_no_word_of_a_report_is_repeated(tmp_path, capsys, text):
    with pytest.raises(ManifestError) as raised:
        labelled(archive(), tmp_path, text)
    said = str(raised.value) + capsys.readouterr().out
    assert not {"Jane", "Doe", "opacities", "FINDINGS", "bilateral"} & set(
        said.replace("'", " ").replace(":", " ").split()
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_encoding_separator_and_line_end_is_read(tmp_path, encoding, delimiter, line_end):
    lines = ["image_id,label,größe,ward", "0.jpg,1,3,Zürich", "1.jpg,0,4,Bern"]
    text = (line_end.join(lines) + line_end).replace(",", delimiter)
    merged = labelled(archive(), tmp_path, text.encode(encoding))
    assert merged["label"].to_pylist() == [1, 0, None]
    assert merged["größe"].to_pylist() == [3, 4, None]
    assert merged["ward"].to_pylist() == ["Zürich", "Bern", None]


def test_excels_line_for_the_separator_is_no_header(tmp_path):
    assert labelled(archive(), tmp_path, "sep=|\nimage_id|label\n0.jpg|1\n")["label"].to_pylist() == [1, None, None]


@pytest.mark.parametrize("n", [10, 20_000])
def test_cells_may_have_line_breaks(tmp_path, n):
    """Arrow's reader parts a file into blocks of 1 MB, at line ends."""
    cells = [f'FINDINGS: of "{k}".\nIMPRESSION: {"x" * 100}' for k in range(n)]
    rows = "".join(f'p/{k}.png,{k % 2},"{cell.replace(chr(34), chr(34) * 2)}"\n' for k, cell in enumerate(cells))
    merged = labelled(archive([f"p/{k}.png" for k in range(n)]), tmp_path, "image_id,label,report\n" + rows)
    assert merged["label"].to_pylist() == [k % 2 for k in range(n)]
    assert merged["report"].to_pylist() == cells


def test_one_late_word_makes_words(tmp_path):
    """Arrow guesses from the first block and fails with the cell in its message."""
    n = 200_000
    rows = "".join(f"{k}.png,1,{k if k < n - 1 else 'old'}\n" for k in range(n))
    merged = labelled(archive([f"{k}.png" for k in range(n)]), tmp_path, "image_id,label,age\n" + rows)
    assert merged["age"].to_pylist()[-2:] == [str(n - 2), "old"]


def test_empty_rows_and_columns_count_for_nothing(tmp_path, capsys):
    merged = labelled(archive(), tmp_path, "image_id,label,,\n0.jpg,1,,\n1.jpg,0\n,,,\n,,,\n\n")
    assert merged["label"].to_pylist() == [1, 0, None]
    assert merged.column_names == SCHEMA.names
    assert "3 empty rows" in capsys.readouterr().out


def test_the_index_that_pandas_writes_is_no_column(tmp_path):
    merged = labelled(archive(), tmp_path, ",image_id,label\n0,0.jpg,1\n1,1.jpg,0\n")
    assert merged.column_names == SCHEMA.names


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "  "])
def test_blanks_around_cells_do_not_count(tmp_path, blank):
    cells = ["0.jpg", "1", "p1", "test", "F"]
    text = "image_id;label;patient_id;split;sex\n" + ";".join(f"{blank}{cell}{blank}" for cell in cells)
    row = labelled(archive(), tmp_path, text).to_pylist()[0]
    assert [row[name] for name in ("label", "patient_id", "split", "sex")] == [1, "p1", "test", "F"]


def test_true_shapes_are_numbers_beside_empty_cells(tmp_path):
    """A word for nothing must not turn the column into text, which training would pass over."""
    text = "image_id,shape_width,shape_height\n0.jpg,640,480.5\n1.jpg,n/a,\n"
    merged = labelled(archive(width=[9, 9, 9], height=[3, 3, 3]), tmp_path, text)
    assert merged.schema.field("shape_width").type == pa.float32()
    assert shapes(merged) == [Shape(640, 480.5), Shape(9, 3), Shape(9, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,shape_width,shape_height\n0.jpg,640,480\n1.jpg,Jane,480\n", "no positive number in row 3 of its column shape_width"),
        ("image_id,shape_width,shape_height\n0.jpg,640,0\n", "no positive number in row 2 of its column shape_height"),
        ("image_id,shape_width,shape_height\n0.jpg,inf,1\n", "no positive number in row 2 of its column shape_width"),
        ("image_id,shape_height\n0.jpg,480\n", "a column shape_height and no column shape_width"),
    ],
)  # fmt: skip
def test_true_shapes_that_are_none_are_refused(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message) as raised:
        labelled(archive(), tmp_path, text)
    assert "Jane" not in str(raised.value)


def test_columns_of_the_manifest_are_renamed_aloud(tmp_path, capsys):
    text = "image_id,label,mode,status,error,width,folder\n0.jpg,1,AP,good,none seen,12,x\n"
    row = labelled(archive(), tmp_path, text).to_pylist()[0]
    assert [row[f"table_{c}"] for c in ("mode", "status", "error", "width", "folder")] == [
        "AP",
        "good",
        "none seen",
        12,
        "x",
    ]
    assert (row["status"], row["width"]) == ("ok", None)
    assert capsys.readouterr().out.count("becomes table_") == 5


def test_a_table_without_labels_is_noticed(tmp_path, capsys):
    merged = labelled(archive(label=[0, 1, 1]), tmp_path, "image_id,age,sex\n0.jpg,3,F\n")
    assert merged["label"].to_pylist() == [0, 1, 1]
    assert merged["age"].to_pylist() == [3, None, None]
    said = capsys.readouterr().out
    assert "carries along 'age', 'sex'; no column of it is a label, subtype, patient or split" in said
    assert "1 of 3 images are named" in said


# Names of images


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("train/x.png", 0),
        ("./train/x.png", 0),
        ("train\\x.png", 0),
        ("C:\\cxr\\train\\x.png", 0),
        ("/data/cxr/train/x.png", 0),
        ("test/x.png", 1),
        ("train/x.PNG", 0),
        ("train/x", 0),
        ("y", 2),
        ("y.DCM", 2),
        ("1.2.840.7", 3),
        ("z.dcm", 4),
        ("z", 4),
        (unicodedata.normalize("NFD", "ü.png"), 5),
    ],
)
def test_images_are_found_by_usual_names(tmp_path, name, row):
    ids = [
        "train/x.png",
        "test/x.png",
        "p/y.dcm",
        "p/1.2.840.7.dcm",
        "p/z.dcm.gz" if name == "z" else "p/z.dcm",
        "ü.png",
    ]
    assert labelled(archive(ids), tmp_path, f"image_id,label\n{name},1\n")["label"].to_pylist()[row] == 1


@pytest.mark.parametrize(
    "name", ["x.png", "x", "val/x.png", "q/y.dcm", "y.png", "X.png", "ain/x.png", "C:\\\\cxr\\\\val\\\\y.dcm"]
)
def test_an_ambiguous_name_is_refused(tmp_path, name):
    with pytest.raises(ManifestError, match="names 1 image"):
        labelled(archive(["train/x.png", "test/x.png", "p/y.dcm"]), tmp_path, f"image_id,label\n{name},1\n")


def test_a_common_foreign_prefix_does_not_count(tmp_path):
    text = "image_id,label\nC:\\study\\x.png,1\nC:\\study\\y.png,0\n"
    assert labelled(archive(["NORMAL/x.png", "PNEUMONIA/y.png"]), tmp_path, text)["label"].to_pylist() == [1, 0]


# Rows that repeat


def test_identical_rows_count_once(tmp_path, capsys):
    merged = labelled(archive(), tmp_path, "image_id,label,age\n0.jpg,1,3\na/0.jpg,1,3\n0.jpg,1,\n1.jpg,0,4\n")
    assert merged["label"].to_pylist() == [1, 0, None]
    assert merged["age"].to_pylist() == [3, 4, None]
    assert "2 rows repeat" in capsys.readouterr().out


def test_rsnas_table_of_boxes_is_read(tmp_path):
    """Columns and rows as in stage_2_train_labels.csv: identifiers without .dcm, a row for each box."""
    text = "patientId,x,y,width,height,Target\nu0,,,,,0\nu1,264.0,152.0,213.0,379.0,1\nu1,562.0,152.0,256.0,453.0,1\n"
    merged = labelled(archive(["s/u0.dcm", "s/u1.dcm"]), tmp_path, text)
    assert merged["label"].to_pylist() == [0, 1]
    assert merged["patient_id"].to_pylist() == ["u0", "u1"]
    assert merged["num_boxes"].to_pylist() == [0, 2]
    assert merged["width"].null_count == 2


# Cells that are empty


@pytest.mark.parametrize("blank", ["", " ", "nan", "NA", "None"])
def test_an_empty_cell_changes_nothing(tmp_path, blank):
    before = archive(
        label=[0, 1, 1],
        subtype=["normal", "virus", "virus"],
        patient_id=["p", "q", "r"],
        split=["train", "test", "val"],
    )
    text = f"image_id,label,subtype,patient_id,split\n0.jpg,{blank},{blank},{blank},{blank}\n"
    assert labelled(before, tmp_path, text).equals(before)


def test_a_changed_label_takes_the_subtype_with_it(tmp_path):
    before = archive(label=[1, 1, 1], subtype=["virus"] * 3)
    merged = labelled(before, tmp_path, "image_id,label,subtype\n0.jpg,0,\n1.jpg,0,other\n2.jpg,1,\n")
    assert merged["subtype"].to_pylist() == [None, "other", "virus"]


@pytest.mark.parametrize("unnamed", [False, True], ids=["empty cell", "no row"])
def test_no_patient_crosses_whatever_the_table_left_out(tmp_path, unnamed, capsys):
    """60 children with three images each; the table has the number of a child in the first row only, as merged cells leave it."""
    ids = [f"{child:02d}_{k}.dcm" for child in range(60) for k in range(3)]
    before = archive(ids, patient_id=[f"h{name[:2]}" for name in ids], label=[int(name[:2]) % 2 for name in ids])
    rows = [f"{name},{'P' + name[:2] if name[3] == '0' else ''}" for name in ids if not unnamed or name[3] == "0"]
    merged = labelled(before, tmp_path, "image_id,patient_id\n" + "\n".join(rows))
    merged = merged.set_column(merged.column_names.index("content_sha256"), "content_sha256", merged["image_id"])
    divided = assign_splits(merged, "grouped", 0)
    truth = divided.set_column(divided.column_names.index("patient_id"), "patient_id", before["patient_id"])
    assert crossing(truth, "patient_id") == []
    assert set(divided["split"].to_pylist()) == {"train", "val", "test"}
    assert "120 keep that of the archive, 0 have none" in capsys.readouterr().out


def test_a_divided_patient_needs_all_images_named(tmp_path):
    before = archive(label=[0, 1, 1], patient_id=["ANONYMOUS"] * 3)
    with pytest.raises(ManifestError, match=r"divides 1 patient.*1 image"):
        labelled(before, tmp_path, "image_id,patient_id\n0.jpg,A\n1.jpg,B\n")
    merged = labelled(before, tmp_path, "image_id,patient_id\n0.jpg,A\n1.jpg,B\n2.jpg,B\n")
    assert merged["patient_id"].to_pylist() == ["A", "B", "B"]


def test_readings_may_not_label_an_undecided_patient(tmp_path):
    """The third image has no label yet; a reader's would make it a patient of its own, apart from A and B."""
    before = archive(label=[0, 1, None], patient_id=["ANONYMOUS"] * 3)
    path = tmp_path / "labels.csv"
    path.write_text("image_id,patient_id\n0.jpg,A\n1.jpg,B\n")
    facts = read_labels(str(path))
    assert apply_labels(before, facts, "l")["patient_id"].to_pylist() == ["A", "B", "ANONYMOUS"]
    with pytest.raises(ManifestError, match=r"divides 1 patient.*1 image"):
        apply_labels(before, facts, "l", more_labels=True)


@pytest.mark.parametrize(
    ("label", "patient"),
    [
        (pa.array([1, 0]), pa.array([12.0, None])),
        (pa.array([1.0, 0.0]), pa.array([12, 13])),
        (pa.array([True, False]), pa.array([b"12", b"13"])),
        (pa.array(["1", "normal"]).dictionary_encode(), pa.array(["12", "13"]).dictionary_encode()),
    ],
)
def test_parquet_types_do_not_matter(tmp_path, label, patient):
    path = tmp_path / "labels.parquet"
    pq.write_table(
        pa.table({"image": ["0.jpg", "1.jpg"], "Label": label, "patientId": patient, "code": ["007", "1"]}), path
    )
    merged = apply_labels(archive(), read_labels(str(path)), str(path)).to_pylist()
    assert [row["label"] for row in merged] == [1, 0, None]
    assert merged[0]["patient_id"] == "12"
    assert merged[0]["code"] == "007"
