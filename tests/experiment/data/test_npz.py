import io
import resource
import zipfile

import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.data.load import load_dataset

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (40, 5, 6, 3), np.uint8)
GREY = rng.integers(0, 17, (40, 5, 6), np.uint8)
VECTORS = rng.normal(size=(40, 7))
LABELS = np.arange(40) % 4


def save(tmp_path, **arrays):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return str(path)


def rows(*arrays):
    return sorted(x.tobytes() for a in arrays for x in a)


def test_images_with_labels_are_split_once_and_for_all(tmp_path):
    dataset = load_dataset("", save(tmp_path, x=IMAGES, labels=LABELS))
    assert (len(dataset.train), len(dataset.test), dataset.levels, dataset.num_classes) == (36, 4, 256, 4)
    assert rows(dataset.train.x, dataset.test.x) == rows(IMAGES)
    of = {x.tobytes(): y for x, y in zip(IMAGES, LABELS, strict=True)}
    for split in (dataset.train, dataset.test):
        assert [of[x.tobytes()] for x in split.x] == list(split.labels) and split.labels.dtype == np.int32
    again = load_dataset("", save(tmp_path, arr_0=IMAGES, arr_1=LABELS))
    np.testing.assert_array_equal(again.test.x, dataset.test.x)


def test_greyscale_gets_its_channel_and_its_levels(tmp_path):
    dataset = load_dataset("", save(tmp_path, images=GREY, levels=17))
    assert dataset.shape == (5, 6, 1) and dataset.levels == 17 and dataset.train.labels is None
    assert rows(dataset.train.x, dataset.test.x) == rows(GREY)


def test_vectors_become_float32(tmp_path):
    dataset = load_dataset("", save(tmp_path, x=VECTORS))
    assert dataset.levels is None and dataset.shape == (7,)
    assert rows(dataset.train.x, dataset.test.x) == rows(VECTORS.astype(np.float32))


def test_splits_of_the_file_are_kept(tmp_path):
    arrays = {"x_train": IMAGES[:30], "y_train": LABELS[:30], "x_test": IMAGES[30:], "y_test": LABELS[30:]}
    dataset = load_dataset("", save(tmp_path, **arrays))
    np.testing.assert_array_equal(dataset.train.x, IMAGES[:30])
    np.testing.assert_array_equal(dataset.test.labels, LABELS[30:])


WITH_NAN = np.where(np.arange(40)[:, None] == 3, np.nan, VECTORS)
MISTAKES = {
    "nan": ({"x": WITH_NAN}, "x has NaN or infinity in 1 row(s), first in row 3; drop them"),
    "beyond what has a variance": (
        {"x": VECTORS * 1e300},
        "values beyond 1e+150, whose squares are infinity: save them in",
    ),
    "nan in a volume": (
        {"x": np.where(np.arange(8) == 7, np.inf, np.ones((9, 8, 8, 4, 8)))},
        "x has NaN or infinity in 9 row(s), first in row 0; drop them",
    ),
    "complex": ({"x": VECTORS + 1j}, "x is complex128 of shape (40, 7); it must be uint8 images"),
    "one axis": ({"x": VECTORS[:, 0]}, "x is float64 of shape (40,)"),
    "six axes": ({"x": np.ones((9, 2, 2, 2, 2, 2))}, "x is float64 of shape (9, 2, 2, 2, 2, 2)"),
    "objects": ({"x": np.array([{}, None], object)}, "holds Python objects; save plain arrays with numpy.savez"),
    "int64 images": ({"x": IMAGES.astype(int)}, "from 0 to 255; save images as uint8, numbers as floats"),
    "channels first": (
        {"x": np.zeros((9, 3, 32, 32), np.uint8)},
        "x has shape (9, 3, 32, 32): channels come last, so save x.transpose(0, 2, 3, 1)",
    ),
    "channels of series first": ({"x": np.ones((9, 2, 64))}, "so save x.transpose(0, 2, 1)"),
    "channels of volumes first": ({"x": np.ones((9, 1, 8, 8, 8))}, "so save x.transpose(0, 2, 3, 4, 1)"),
    "empty": ({"x": np.zeros((0, 3))}, "save at least 2 examples"),
    "one example": ({"x": VECTORS[:1]}, "at least 2"),
    "no data": ({"weights": VECTORS}, "no data among weights; name them x, images or arr_0"),
    "labels of another length": (
        {"x": IMAGES, "y": LABELS[:5]},
        "y is int64 of shape (5,); labels must be 40 integers",
    ),
    "float labels": ({"x": IMAGES, "y": LABELS / 2}, "y is float64"),
    "labels beyond int32": ({"x": IMAGES, "y": LABELS + 2**31 - 4}, "to 2147483647; labels count from 0"),
    "negative labels": ({"x": IMAGES, "y": LABELS - 1}, "from -1 to 2; labels count from 0"),
    "beyond the levels": (
        {"x": np.full((9, 4, 4), 17, np.uint8), "levels": 17},
        "value 17, outside its levels 0..16; correct one of them",
    ),
    "impossible levels": ({"x": GREY, "levels": 1000}, "levels must be one integer from 2 to 256"),
    "splits that differ": ({"x_train": IMAGES, "x_test": GREY}, "save both alike"),
    "half labelled": (
        {"x_train": IMAGES, "x_test": IMAGES, "y_train": LABELS},
        "only one of x_train and x_test has labels; save y_train and y_test",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_gets_one_line_that_names_it(tmp_path, mistake):
    arrays, words = MISTAKES[mistake]
    path = save(tmp_path, **arrays)
    with pytest.raises(UserError) as error:
        load_dataset("", path)
    line = str(error.value)
    assert words in line and path in line and "\n" not in line


@pytest.mark.parametrize("content", [b"", b"no zip", "cut"])
def test_damaged_files_are_named(tmp_path, content):
    path = save(tmp_path, x=IMAGES)
    whole = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(UserError, match=r"cannot read .*set.npz.*damaged or no .npz file .*; save plain arrays"):
        load_dataset("", path)


def member(*arrays, name="x.npy", compression=zipfile.ZIP_STORED, header=None, tail=b""):
    """A zip with one member: `arrays` as they are written, or a header of one's own."""
    buffer, content = io.BytesIO(), io.BytesIO()
    if header is not None:
        np.lib.format.write_array_header_1_0(content, header)
    for array in arrays:
        np.save(content, array)
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content.getvalue() + tail)
    return buffer.getvalue()


def changed(content, old, new):
    assert old in content
    return content.replace(old, new)


def half(content):
    at = len(content) // 3
    return content[:at] + bytes(64) + content[at + 64 :]


def encrypted(content):
    local, central = content.index(b"PK\3\4"), content.index(b"PK\1\2")
    data = bytearray(content)
    data[local + 6] |= 1
    data[central + 8] |= 1
    return bytes(data)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


FLOATS = np.random.default_rng(1).normal(size=(500, 3)).astype("f4")
HUGE = {"shape": (2**36,), "fortran_order": False, "descr": "<f4"}
LIES = {
    "an .npy renamed": (npy(FLOATS), "an .npy under the name of an .npz"),
    "corrupt deflate": (half(member(FLOATS, compression=zipfile.ZIP_DEFLATED)), "damaged"),
    "corrupt lzma": (half(member(FLOATS, compression=zipfile.ZIP_LZMA)), "damaged"),
    "corrupt bzip2": (half(member(FLOATS, compression=zipfile.ZIP_BZIP2)), "damaged"),
    "a wrong checksum": (half(member(FLOATS)), "damaged"),
    "an unknown compression": (
        changed(member(FLOATS), b"PK\1\2\x14\3\x14\0\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x37\0"),
        "damaged",
    ),
    "encrypted": (encrypted(member(FLOATS)), "damaged"),
    "a header of 256 GiB": (member(header=HUGE), "says that it is float32"),
    "a header of 256 GiB over something": (member(header=HUGE, tail=bytes(1000)), "says that it is float32"),
    "a negative shape": (member(header={**HUGE, "shape": (-1, -4)}, tail=bytes(16)), "says that it is"),
    "more than it says": (member(FLOATS, tail=b"more"), "has more"),
    "a header that is no header": (changed(member(FLOATS), b"fortran_order", b"fortran_odder"), "damaged"),
    "a header of brackets": (
        changed(member(FLOATS), b"{'descr': '<f4', 'fortran_order': False", b"{" + b"(" * 38),
        "damaged",
    ),
    "no array": (member(name="notes.txt", tail=b"hello"), "damaged"),
    "objects": (member(np.array([{}, 1], object)), "holds Python objects"),
    "strings": (member(np.array(["a", "b"])), "x is <U1"),
    "records": (member(np.zeros(3, [("名", "f4")])), "records"),
    "times": (member(np.zeros(3, "M8[s]")), "x is datetime64[s]"),
    "complex numbers": (member(np.zeros((3, 2), complex)), "x is complex128"),
    "a name of 10,000 letters": (member(FLOATS, name="y" * 10_000), "yyy"),
    "a wild name": (member(FLOATS, name="a\x1b[2J.npy"), r"a\x1b[2J"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies_is_one_line(tmp_path, case):
    content, said = LIES[case]
    (tmp_path / "set.npz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        load_dataset("", str(tmp_path / "set.npz"))
    line = str(error.value)
    assert said in line and str(tmp_path) in line and line.isprintable() and len(line) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB


def test_more_than_the_machine_s_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    path = save(tmp_path, x=IMAGES)
    monkeypatch.setattr("experiment.data.npz.available", lambda: 1000)
    with pytest.raises(UserError, match="does not fit into this machine's memory"):
        load_dataset("", path)


@pytest.mark.parametrize(
    "labels, said",
    [([0, 10**6], "2 classes, and labels up to 1000000"), ([980, 999], "up to 999"), ([2**31 - 2, 0], "labels up to")],
)
def test_labels_that_skip_most_classes_are_refused(tmp_path, labels, said):
    path = save(tmp_path, x=IMAGES, labels=np.resize(labels, len(IMAGES)))
    with pytest.raises(UserError, match=said) as error:
        load_dataset("", path)
    assert "number them from 0" in str(error.value)


@pytest.mark.parametrize("labels", [np.arange(40), np.arange(40) // 1.9, np.random.default_rng(0).integers(0, 200, 40)])
def test_numbers_of_which_nearly_all_differ_are_no_classes(tmp_path, labels):
    labels = labels.astype(int)
    with pytest.raises(UserError, match=r"different labels for 40 examples, which are no classes: leave them out"):
        load_dataset("", save(tmp_path, x=IMAGES, labels=labels))
    with pytest.raises(UserError, match="different labels for 40 examples"):
        parts = {"x_train": IMAGES[:30], "y_train": labels[:30], "x_test": IMAGES[30:], "y_test": labels[30:]}
        load_dataset("", save(tmp_path, **parts))


def test_pairs_are_classes_and_so_are_few_examples(tmp_path):
    assert load_dataset("", save(tmp_path, x=IMAGES, labels=np.arange(40) // 2)).num_classes == 20
    assert load_dataset("", save(tmp_path, x=IMAGES[:19], labels=np.arange(19))).num_classes == 19


def test_some_classes_may_be_missing(tmp_path):
    dataset = load_dataset("", save(tmp_path, x=IMAGES, labels=np.resize([0, 5, 9], len(IMAGES))))
    assert dataset.num_classes == 10


CAPTIONS = np.array([f"a picture of {i}" for i in range(40)])
EMBEDDED = {
    "embeddings": np.random.default_rng(2).normal(size=(40, 3, 2)),
    "mask": np.arange(120).reshape(40, 3) % 4 > 0,
}


def test_what_is_told_of_each_example_stays_with_it(tmp_path):
    cond = VECTORS[:, :2] * 10 + 3
    dataset = load_dataset("", save(tmp_path, x=VECTORS, cond=cond, captions=CAPTIONS, labels=LABELS, **EMBEDDED))
    of = {x.tobytes(): i for i, x in enumerate(VECTORS.astype(np.float32))}
    for split in (dataset.train, dataset.test):
        index = [of[x.tobytes()] for x in split.x]
        np.testing.assert_array_equal(split.vectors, cond[index])
        np.testing.assert_array_equal(split.captions, CAPTIONS[index])
        np.testing.assert_array_equal(split.labels, LABELS[index])
        np.testing.assert_array_equal(split.embeddings["mask"], EMBEDDED["mask"][index])
        wanted = np.where(EMBEDDED["mask"][index][..., None], EMBEDDED["embeddings"][index], 0)
        np.testing.assert_allclose(split.embeddings["embeddings"], wanted, rtol=1e-6)
    np.testing.assert_allclose(dataset.cond_units.to_model(dataset.train.vectors).std(axis=0), 1, rtol=1e-5)
    assert (dataset.vector_size, dataset.captioned, dataset.embedding_shape) == (2, True, (3, 2))
    labelled = load_dataset("", save(tmp_path, x=VECTORS, cond=LABELS))
    assert labelled.num_classes == 4 and labelled.train.vectors is None and labelled.vector_size == 0


def test_splits_have_conditions_of_their_own(tmp_path):
    parts = {"train": slice(0, 30), "test": slice(30, 40)}
    arrays = {"x": VECTORS, "cond": VECTORS[:, :1], "captions": CAPTIONS, **EMBEDDED}
    named = {f"{name}_{part}": rows[of] for part, of in parts.items() for name, rows in arrays.items()}
    dataset = load_dataset("", save(tmp_path, **named))
    for part, of in parts.items():
        split = getattr(dataset, part)
        np.testing.assert_array_equal(split.vectors, VECTORS[of, :1])
        np.testing.assert_array_equal(split.captions, CAPTIONS[of])
        np.testing.assert_array_equal(split.embeddings["mask"], EMBEDDED["mask"][of])
    del named["cond_test"]
    with pytest.raises(UserError, match="only one of x_train and x_test has vectors; save cond_train and cond_test"):
        load_dataset("", save(tmp_path, **named))
    with pytest.raises(UserError, match=r"vectors are \(30, 1\) and \(10, 2\); save both"):
        load_dataset("", save(tmp_path, **named, cond_test=VECTORS[30:, :2]))


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"cond": VECTORS[:39]}, r"cond is float64 of shape \(39, 7\); save a row for each of the 40 examples"),
        ({"cond": VECTORS[:, 0]}, r"cond is float64 of shape \(40,\); save a row"),
        ({"cond": LABELS[:39]}, r"cond is int64 of shape \(39,\); labels must be 40 integers"),
        ({"cond": WITH_NAN}, r"cond has NaN or infinity in 1 row\(s\), first in row 3; drop"),
        ({"cond": LABELS, "labels": LABELS}, r"cond and labels are both labels: leave one"),
        ({"captions": CAPTIONS[:39]}, r"captions must be 40 strings"),
        ({"captions": LABELS}, r"captions must be 40 strings"),
        ({"embeddings": EMBEDDED["embeddings"]}, r"embeddings has no mask: save mask beside it"),
        ({**EMBEDDED, "mask": EMBEDDED["mask"] * 1.0}, r"mask is float64 .*; it must be bool \(40, 3\)"),
        (
            {**EMBEDDED, "embeddings": EMBEDDED["embeddings"] * np.inf},
            r"embeddings has NaN or infinity where mask is true",
        ),
        ({**EMBEDDED, "embeddings": VECTORS}, r"embeddings must be floats \(40, l, d\)"),
    ],
)
def test_a_condition_of_another_kind_is_one_line(tmp_path, arrays, said):
    with pytest.raises(UserError, match=said):
        load_dataset("", save(tmp_path, x=VECTORS, **arrays))
