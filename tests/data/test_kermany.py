import pytest

from pneumo_ray.data.kermany import PathFacts, read_path


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("kermany224/train/PNEUMONIA/person12_bacteria_46.jpeg", PathFacts(1, "bacteria", "person12", "train")),
        ("test/PNEUMONIA/person7_virus_11.jpeg", PathFacts(1, "virus", "person7", "test")),
        ("x/test/NORMAL/IM-0115-0001.jpeg", PathFacts(0, "normal", "IM-0115", "test")),
        ("val/NORMAL/NORMAL2-IM-0588-0001-0002.jpeg", PathFacts(0, "normal", "IM-0588", "val")),
        ("NORMAL/anything.png", PathFacts(0, "normal", None, None)),
        ("pneumonia/anything.png", PathFacts(1, None, None, None)),
        ("export/IM-0001-0001.dcm", PathFacts(None, None, None, None)),
        ("ward7/scan.dcm", PathFacts(None, None, None, None)),
        ("person3_virus_9.jpeg", PathFacts(1, "virus", "person3", None)),
        ("train/archive/test/NORMAL/a.png", PathFacts(0, "normal", None, "test")),
    ],
)
def test_what_a_path_says(path, facts):
    assert read_path(path) == facts
