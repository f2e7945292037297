import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tinker import data
from tinker.numerics import UserError


def picture(index, height, width):
    """A gradient that tells its index and its orientation."""
    y, x = np.mgrid[:height, :width]
    return ((7 * index + 5 * y + x) % 256).astype(np.uint8)


def encode(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_set(root, name, splits, *, shape=(6, 5, 1), file_format="array_record"):
    """A TFDS set by hand: features, info, and one array_record of tf.train.Example per split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    kinds = tfds.features
    features = kinds.FeaturesDict(
        {
            "image": kinds.Image(shape=shape),
            "label": kinds.ClassLabel(names=["cat", "dog", "owl"]),
            "weight": kinds.Tensor(shape=(2,), dtype=np.float32),
            "id": kinds.Text(),
            "boxes": kinds.Sequence(kinds.Scalar(np.int64)),
        }
    )
    features.save_config(folder)
    infos = []
    for split, size in splits.items():
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i in range(size):
            height, width = (s or 6 + i % 3 for s in shape[:2])
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(encode(picture(i, height, width)))
            feature["label"].int64_list.value.append(i % 3)
            feature["weight"].float_list.value.extend([i, -i])
            feature["id"].bytes_list.value.append(b"%d" % i)
            feature["boxes"].int64_list.value.extend(range(i % 4))
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append(
            {
                "name": split,
                "shardLengths": [str(size)],
                "numBytes": "1",
                "filepathTemplate": template,
            }
        )
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_set(root, "mini", {"train": 40, "test": 7})
    write_set(root, "with_validation", {"train": 9, "validation": 4, "test": 2, "extra": 3})
    write_set(root, "ragged", {"train": 9}, shape=(None, None, 1))
    write_set(root, "old", {"train": 9}, file_format="tfrecord")
    write_set(root, "mnist", {"train": 5})  # a name that TFDS has code for
    return str(root)


def test_examples_arrive_as_the_batch_wants_them(root):
    test = data.load("tfds:mini", "test", data_dir=root)
    assert not data.in_memory(test) and data.length_of(test) == 7
    assert test.info["class_names"] == ["cat", "dog", "owl"] and test.info["classes"] == 3
    assert test.info["task"] == "classification" and test.info["version"] == "1.0.0"
    for i in range(7):
        example = test.source[i]
        assert set(example) == {"image", "label", "weight"}  # text and ragged ones stay out
        assert example["image"].dtype == np.float32 and example["label"].dtype == np.int32
        np.testing.assert_allclose(example["image"][..., 0], picture(i, 6, 5) / 255, rtol=1e-6)
        assert example["label"] == i % 3
        np.testing.assert_array_equal(example["weight"], [i, -i])
    assert data.spec(test, 3)["image"].shape == (3, 6, 5, 1)


def test_validation_is_carved_from_train_or_the_sets_own(root):
    sizes, seen = {}, {}
    for split in ("train", "validation", "train+validation"):
        ds = data.load("tfds:mini", split, data_dir=root, in_memory=True)
        assert data.in_memory(ds)
        sizes[split], seen[split] = data.length_of(ds), ds.source["weight"][:, 0].astype(int)
    assert sizes == {"train": 36, "validation": 4, "train+validation": 40}
    assert sorted([*seen["train"], *seen["validation"]]) == list(range(40))
    other = data.load("tfds:mini", "validation", data_dir=root, in_memory=True, split_seed=1)
    assert set(other.source["weight"][:, 0]) != set(seen["validation"])

    own = {"train": 9, "validation": 4, "train+validation": 13, "test": 2, "extra": 3}
    for split, size in own.items():
        assert data.length_of(data.load("tfds:with_validation", split, data_dir=root)) == size


def test_grain_gives_the_order_that_memory_gives(root):
    files = data.load("tfds:mini", data_dir=root)
    arrays = data.load("tfds:mini", data_dir=root, in_memory=True)
    slow = data.batches(files, 16, seed=3, epochs=2)
    fast = data.batches(arrays, 16, seed=3, epochs=2)
    for one, other in zip(slow, fast, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "weight", "mask"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    slow.set_state({"batch": 4})
    fast.set_state({"batch": 4})
    np.testing.assert_array_equal(next(slow)["image"], next(fast)["image"])
    assert data.fingerprint(files) != data.fingerprint(
        data.load("tfds:mini", "test", data_dir=root)
    )
    assert data.fingerprint(files) == data.fingerprint(data.load("tfds:mini", data_dir=root))


def test_images_of_varying_size_are_resized_and_cropped(root):
    with pytest.raises(UserError, match="'image' varies in shape: give option `image_size`"):
        data.load("tfds:ragged", data_dir=root)
    narrow = data.load("tfds:ragged", data_dir=root, keys=["label"])
    assert set(narrow.source[0]) == {"label"}
    ds = data.load("tfds:ragged", "train+validation", data_dir=root, image_size=6)
    # The first is 6x6 already: its pixels stay; larger ones keep their mean brightness.
    np.testing.assert_allclose(ds.source[0]["image"][..., 0], picture(0, 6, 6) / 255, rtol=1e-6)
    for i in range(9):
        image = ds.source[i]["image"]
        assert image.shape == (6, 6, 1)
        want = picture(i, 6 + i % 3, 6 + i % 3).mean() / 255
        np.testing.assert_allclose(image.mean(), want, atol=0.03)


def test_crop_is_central():
    from tinker.data.tfds import _resized

    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    np.testing.assert_array_equal(_resized(wide, 4), np.full((4, 4, 3), 200))
    np.testing.assert_array_equal(_resized(wide.transpose(1, 0, 2), 4), np.full((4, 4, 3), 200))


@pytest.mark.parametrize(
    "name,options,message",
    [
        (
            "mini",
            {"split": "tset"},
            r"no split 'tset' \(did you mean 'test'\?\); there are train, t",
        ),
        ("mini", {"split": "validation+test"}, "has no split 'validation'; there are train, test"),
        ("with_validation", {"split": "extras"}, "did you mean 'extra'"),
        ("mini", {"keys": ["id"]}, "'id' is text, and batches take numbers alone"),
        ("mini", {"keys": ["boxes"]}, "'boxes' is nested or of varying length"),
        ("mini", {"keys": ["lable"]}, r"no 'lable' \(did you mean 'label'\?\)"),
        (
            "mini",
            {"image": 3},
            "no option 'image'.* it takes data_dir, keys, image_size, in_memory",
        ),
        ("old", {}, "is tfrecord, not array_record: run `tinker data prepare tfds:old"),
        ("mnits", {}, r"did you mean 'mnist'\?\): run `tinker data prepare tfds:mnits --data_dir="),
        ("mini:2.0.0", {}, "tfds:mini:2.0.0 is not prepared in"),
    ],
)
def test_mistakes(root, name, options, message):
    with pytest.raises(UserError, match=message) as error:
        data.load(f"tfds:{name}", data_dir=root, **options)
    assert "\n" not in str(error.value)


def test_reading_imports_no_tensorflow(root):
    """In a fresh interpreter without TensorFlow, also for a set TFDS has code for."""
    program = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
from tinker import data
ds = data.load("tfds:mnist", "train+validation", data_dir={root!r})
batch = next(data.batches(ds, 5, shuffle=False))
print(batch["label"].tolist(), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "[0, 1, 2, 0, 1] False"


def test_prepare_says_what_is_missing(monkeypatch):
    with pytest.raises(UserError, match="give tfds:NAME, not 'digits'"):
        data.prepare("digits")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name)
    )
    with pytest.raises(UserError, match=r"pip install 'tinker-jax\[tfds-prepare\]'"):
        data.prepare("tfds:mnist")


def test_prepare_writes_array_record(monkeypatch, tmp_path):
    """What is asked of TFDS, without the extra: the builder that it would make is a stand-in."""
    import tensorflow_datasets as tfds

    calls = []

    class Builder:
        data_path = tmp_path / "mnist" / "3.0.1"

        def download_and_prepare(self):
            calls.append("written")

    def builder(name, **options):
        calls.append((name, options))
        if name != "mnist":
            raise tfds.core.DatasetNotFoundError(name)
        return Builder()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(tfds, "builder", builder)
    assert data.prepare("tfds:mnist", str(tmp_path)) == str(Builder.data_path)
    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert calls == [("mnist", options), "written"]
    with pytest.raises(
        UserError, match=r"TFDS has no set 'mnits:1.0.0' \(did you mean 'mnist'\?\)"
    ):
        data.prepare("tfds:mnits:1.0.0")
