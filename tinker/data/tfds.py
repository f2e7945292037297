"""TensorFlow Datasets: prepared once as array_record, read in any order without TensorFlow."""

import importlib.util

import numpy as np

from tinker.data.loading import hold_out
from tinker.numerics.errors import UserError, nearest


class Decoded:
    """Rows of a TFDS data source as examples with the keys and dtypes of batches."""

    def __init__(self, records, rows, decode):
        self.records, self.rows, self.decode = records, rows, decode

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.decode(self.records[int(self.rows[index])])


def read(name, split, split_seed, *, data_dir=None, keys=None, image_size=None, in_memory=False):
    """Reads one split of a prepared set; its examples decode when they are asked for.

    A set without a validation split lends a random tenth of train.

    Args:
      name: As TFDS has it: ``"mnist"``, ``"mnist:3.0.1"``, ``"set/config"``.
      split: One of the usual four, or one of the set's own.
      split_seed: Which examples of train are validation, where the set has no such split.
      data_dir: Where it was prepared, gs:// too; None is TFDS_DATA_DIR or ~/tensorflow_datasets.
      keys: Features to keep; None keeps those that are images, numbers or arrays of fixed shape.
      image_size: Side in pixels that images are resized (shorter side) and centre-cropped to.
      in_memory: Whether to decode the split once, into arrays.

    Returns:
      ``(source, info)``: a Decoded, or a dict of arrays.

    Raises:
      UserError: If the set is absent, not array_record, lacks the split, or a key is unfit.
    """
    builder = _builder(name, data_dir)
    own = list(builder.info.splits)
    parts = [split] if split in own else split.split("+")
    lends = "validation" not in own and split in ("train", "validation", "train+validation")
    for part in parts:
        if part not in own and not (lends and "train" in own):
            raise UserError(
                f"tfds:{name} has no split {part!r}{nearest(part, own)}; there are {', '.join(own)}"
            )
    records = builder.as_data_source("train" if lends else split)
    rows = np.arange(len(records))
    if lends and split != "train+validation":
        train, validation = hold_out(np.zeros(len(records)), [0.1], split_seed)
        rows = np.sort(train if split == "train" else validation)
    decode, info = _decoder(f"tfds:{name}", builder.info.features, keys, image_size)
    source = Decoded(records, rows, decode)
    if in_memory:
        examples = [source[i] for i in range(len(source))]
        source = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    return source, {"version": str(builder.version), **info}


def prepare(name, data_dir=None):
    """Downloads a TFDS set and writes it as array_record, for ``load`` to read.

    Args:
      name: ``"tfds:NAME"``, the name as TFDS has it.
      data_dir: Where to write; None is TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      The folder that was written, or found already there, as a string.

    Raises:
      UserError: If the name is not a TFDS set's, or the extra tfds-prepare is not installed.
    """
    head, _, dataset = name.partition(":")
    if head != "tfds" or not dataset:
        raise UserError(f"only TFDS sets are prepared: give tfds:NAME, not {name!r}")
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing {name} needs TensorFlow: pip install 'tinker-jax[tfds-prepare]'"
        )
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(
            dataset, data_dir=data_dir, file_format="array_record"
        )
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        hint = nearest(_stem(dataset), known)
        raise UserError(f"TFDS has no set {dataset!r}{hint}") from error
    builder.download_and_prepare()
    return str(builder.data_path)


def _stem(name):
    """The set's name without its configuration and version."""
    return name.partition("/")[0].partition(":")[0]


def _builder(name, data_dir):
    """The builder of a set's files; the code that wrote them is not loaded."""
    from tensorflow_datasets import list_builders
    from tensorflow_datasets.core import DatasetNotFoundError
    from tensorflow_datasets.core.file_adapters import FileFormat
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    flag = "" if data_dir is None else f" --data_dir={data_dir}"
    command = f"`tinker data prepare tfds:{name}{flag}`"
    try:
        builder = builder_from_files(name, data_dir=data_dir)
    except DatasetNotFoundError as error:
        known = list_builders(with_community_datasets=False)
        hint = "" if _stem(name) in known else nearest(_stem(name), known)
        where = "TFDS_DATA_DIR or ~/tensorflow_datasets" if data_dir is None else data_dir
        raise UserError(f"tfds:{name} is not prepared in {where}{hint}: run {command}") from error
    if builder.info.file_format is not FileFormat.ARRAY_RECORD:
        raise UserError(
            f"tfds:{name} in {builder.data_path} is {builder.info.file_format.value}, not "
            f"array_record: run {command} with another data_dir"
        )
    return builder


def _decoder(name, features, keys, image_size):
    """A function from TFDS's element to an example of a batch, and the task's info."""
    from tensorflow_datasets import features as kinds

    def fault(feature):
        """Why a feature cannot stand in a batch, or None."""
        if not isinstance(feature, kinds.Image | kinds.Tensor):
            return "is nested or of varying length"
        if np.dtype(feature.np_dtype).kind not in "fiub":
            return "is text, and batches take numbers alone"
        if isinstance(feature, kinds.Image) and image_size is not None:
            return None
        return "varies in shape: give option `image_size`" if None in feature.shape else None

    faults = {key: fault(features[key]) for key in features}
    images = [key for key in features if isinstance(features[key], kinds.Image)]
    # An image of varying size is what the user came for: refuse it rather than leave it out.
    kept = keys or [key for key in features if faults[key] is None or key in images]
    for key in kept:
        if key not in faults:
            raise UserError(
                f"{name} has no {key!r}{nearest(key, faults)}; it has {', '.join(faults)}"
            )
        if faults[key] is not None:
            raise UserError(f"{name}: {key!r} {faults[key]}")

    def decode(element):
        example = {}
        for key in kept:
            value = np.asarray(element[key])
            if key in images:
                value = value if image_size is None else _resized(value, image_size)
                if value.dtype.kind == "u":
                    value = np.divide(value, np.iinfo(value.dtype).max, dtype=np.float32)
            example[key] = value.astype(
                {"f": np.float32, "b": bool}.get(value.dtype.kind, np.int32)
            )
        return example

    label = features["label"] if "label" in kept else None
    if not isinstance(label, kinds.ClassLabel):
        return decode, {}
    info = {"task": "classification", "classes": label.num_classes, "class_names": label.names}
    return decode, info


def _resized(image, side):
    """An image uint8 ``[height, width, channels]`` as its central square, ``[side, side, …]``."""
    from PIL import Image

    height, width = image.shape[:2]
    size = [max(side, round(length * side / min(height, width))) for length in (width, height)]
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    left, top = ((length - side) // 2 for length in size)
    return resized[top : top + side, left : left + side].reshape(side, side, -1)
