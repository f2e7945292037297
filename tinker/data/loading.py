"""``load(name, split)``: every source of data behind one function, nothing downloaded unasked."""

import functools
import gzip
import hashlib
import importlib
import inspect
import os
import pathlib
import sysconfig
from typing import Any, NamedTuple

import numpy as np

from tinker.numerics.errors import UserError, nearest

SPLITS = ("train", "validation", "test", "train+validation")


class Dataset(NamedTuple):
    """One split of a source.

    Attributes:
      source: A dict of arrays of equal leading length, or a random-access sequence of dicts of
        arrays, one per example.
      info: ``name``, ``split``, ``task`` ("classification", "regression" or "language") and what
        the source adds: ``classes``, ``class_names``, ``fonts``, ``version``, …
    """

    source: Any
    info: dict


def load(name, split="train", *, split_seed=0, label_noise=0.0, **options):
    """Loads one split of a source.

    Batches take numbers alone; the keys are ``image`` float32 ``[height, width, channels]`` in
    [0, 1], ``series`` float32 ``[time, channels]``, ``features`` float32 ``[features]``, ``tokens``
    and ``targets`` int32 ``[length]``, ``label`` int32 ``[]``, ``target`` float32 ``[]``.

    Args:
      name: A source out of ``sources()``, e.g. ``"digits"``, ``"tfds:mnist"``, ``"idx:~/emnist"``,
        ``"synthetic:mypackage.worlds:spirals"``.
      split: "train", "validation", "test" or "train+validation"; a TFDS set's own splits too.
      split_seed: A non-negative integer: which examples are held out, or what is drawn. A set's
        own test split stays as it is.
      label_noise: Share in [0, 1) of the labels that are wrong, each another class drawn evenly, in
        splits with "train" in their name; the others stay true. Drawn of ``split_seed``.
      **options: The source's keyword arguments.

    Returns:
      A Dataset.

    Raises:
      UserError: If the source, the split or an option is unknown, or the data is absent.
    """
    head, colon, argument = name.partition(":")
    entry = f"{head}:{_ARGUMENT[head]}" if colon and argument and head in _ARGUMENT else name
    if entry not in LOADERS:
        raise UserError(
            f"no source of data {name!r}{nearest(name, LOADERS)}; there are {', '.join(LOADERS)}"
        )
    if split not in SPLITS and head != "tfds":
        raise UserError(
            f"{name} has no split {split!r}{nearest(split, SPLITS)}; there are {', '.join(SPLITS)}"
        )
    if not isinstance(split_seed, int | np.integer) or split_seed < 0:
        raise UserError(f"split_seed must be a non-negative integer, got {split_seed!r}")
    loader = LOADERS[entry]
    if entry != name:
        loader = functools.partial(loader, argument)
    _check_options(name, options, _option_names(loader))
    source, info = loader(split, int(split_seed), **options)
    if label_noise and "train" in split:
        source = _mislabelled(name, source, info, label_noise, int(split_seed))
    return Dataset(source, {"name": name, "split": split, **info})


def _mislabelled(name, source, info, share, seed):
    """The source with a share of its labels moved to other classes."""
    if not 0 < share < 1:
        raise UserError(f"label_noise={share} must be a share in [0, 1)")
    if not isinstance(source, dict) or "label" not in source or info["classes"] < 2:
        raise UserError(f"label_noise needs labels in memory, of two classes or more: not {name}")
    rng, label = np.random.default_rng((seed, 1)), source["label"].copy()
    rows = rng.permutation(len(label))[: round(share * len(label))]
    label[rows] = (label[rows] + rng.integers(1, info["classes"], len(rows))) % info["classes"]
    return {**source, "label": label}


def sources():
    """The accepted names and what each is.

    Returns:
      A dict from name to one line; a part in capitals is the user's.
    """
    return {name: inspect.getdoc(loader).splitlines()[0] for name, loader in LOADERS.items()}


def _option_names(fn, positional=2):
    """The keywords that a function takes after its positional arguments; None: any."""
    parameters = list(inspect.signature(fn).parameters.values())[positional:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _check_options(name, options, accepted):
    for option in options:
        if accepted is not None and option not in accepted:
            listed = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise UserError(f"{name} has no option {option!r}{nearest(option, accepted)}; {listed}")


def hold_out(strata, fractions, seed):
    """Splits rows at random, each stratum alike.

    Args:
      strata: What to keep in proportion, e.g. the labels, ``[rows]``.
      fractions: Share of each held-out part.
      seed: A non-negative integer.

    Returns:
      A list of disjoint row arrays that cover all rows: what remains, then each held-out part.
    """
    rng = np.random.default_rng(seed)
    parts = [[] for _ in range(len(fractions) + 1)]
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        ends = np.round(len(rows) * np.cumsum(fractions)).astype(int)
        for part, chunk in zip(parts[1:] + parts[:1], np.split(rows, ends)):
            part.append(chunk)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _bundled(name, split, split_seed):
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    labels = bunch.target
    if name == "diabetes":
        strata = np.digitize(labels, np.quantile(labels, [0.2, 0.4, 0.6, 0.8]))
    else:
        strata = labels
    train, validation, test = hold_out(strata, [0.1, 0.2], split_seed)
    parts = {"train": train, "validation": validation, "test": test}
    rows = np.concatenate([parts[s] for s in split.split("+")])

    if name == "digits":
        arrays = {"image": (bunch.images[rows, :, :, None] / 16).astype(np.float32)}
    else:
        mean, std = bunch.data[train].mean(0), bunch.data[train].std(0)
        features = (bunch.data[rows] - mean) / np.where(std > 0, std, 1)
        arrays = {"features": features.astype(np.float32)}
    if name == "diabetes":
        mean, std = labels[train].mean(), labels[train].std()
        arrays["target"] = ((labels[rows] - mean) / std).astype(np.float32)
        return arrays, {"task": "regression", "target_mean": float(mean), "target_std": float(std)}
    arrays["label"] = labels[rows].astype(np.int32)
    return arrays, _classification([str(c) for c in bunch.target_names])


def _digits(split, split_seed):
    """1,797 handwritten digits of 8x8 grey pixels (scikit-learn)."""
    return _bundled("digits", split, split_seed)


def _breast_cancer(split, split_seed):
    """569 tumours of 30 features, benign or malignant (scikit-learn)."""
    return _bundled("breast_cancer", split, split_seed)


def _wine(split, split_seed):
    """178 wines of 13 features from three cultivars (scikit-learn)."""
    return _bundled("wine", split, split_seed)


def _iris(split, split_seed):
    """150 flowers of 4 features from three species (scikit-learn)."""
    return _bundled("iris", split, split_seed)


def _diabetes(split, split_seed):
    """442 patients of 10 features, regression of the disease's progression (scikit-learn)."""
    return _bundled("diabetes", split, split_seed)


def _mnist1d(split, split_seed, *, size=5000, seed=42):
    """Deformed digits as series of 40 steps, 4,000 and 1,000 for test (mnist1d, generated).

    Args:
      split: The split.
      split_seed: Which tenth of the 4,000 is validation.
      size: Number of examples, a fifth of them for test.
      seed: The generator's; its own default gives the published set.

    Returns:
      ``(arrays, info)``.
    """
    import random

    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.seed = size, seed
    # mnist1d seeds the two global generators: hand them back as they were.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        data = make_dataset(args)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    series, label = (data["x_test"], data["y_test"]) if split == "test" else (data["x"], data["y"])
    rows = _carved(label, split, split_seed)
    arrays = {"series": series[rows, :, None].astype(np.float32), "label": _int32(label[rows])}
    return arrays, _classification([str(c) for c in range(10)])


def _glyphs(
    split,
    split_seed,
    *,
    classes=10,
    size=10_000,
    validation_size=2_000,
    test_size=2_000,
    disjoint_fonts=False,
    disjoint_classes=False,
    **drawing,
):
    """Characters of 28x28 grey pixels drawn from matplotlib's fonts, 2 to 62 classes (generated).

    Args:
      split: The split.
      split_seed: Of which its examples, and the held-out fonts, are drawn.
      classes: Digits, then capitals, then small letters.
      size: Number of train examples.
      validation_size: Number of validation examples.
      test_size: Number of test examples.
      disjoint_fonts: Whether two of the seven font families are kept for test alone.
      disjoint_classes: Whether each split has characters of its own, drawn of split_seed: half of
        them train, a sixth validation, the others test. Labels go on from split to split.
      **drawing: Of ``draw_glyphs``: rotation, scale, shear, shift, stroke, noise.

    Returns:
      ``(arrays, info)``, beside image and label ``font``, an index into ``glyphs.FONT_NAMES``.
    """
    from tinker.data import glyphs

    sizes = {"train": size, "validation": validation_size, "test": test_size}
    own = ["classes", "size", "validation_size", "test_size", "disjoint_fonts", "disjoint_classes"]
    accepted = dict.fromkeys([*own, *_option_names(glyphs.draw_glyphs, 3)])
    _check_options("glyphs", drawing, list(accepted))
    parts, fonts, drawn = [], [], {part: (0, classes) for part in sizes}
    names = list(glyphs.CHARACTERS[:classes])
    if disjoint_classes:
        order = np.random.default_rng((split_seed, len(SPLITS))).permutation(classes)
        ends = [0, classes // 2, classes // 2 + classes // 6, classes]
        drawn = {part: (a, order[a:b]) for part, a, b in zip(sizes, ends, ends[1:])}
        names = [names[c] for c in order]
    for part in split.split("+"):
        chosen = glyphs.fonts_of(part, disjoint_fonts=disjoint_fonts, split_seed=split_seed)
        fonts += [f for f in chosen if f not in fonts]
        seed = (split_seed, SPLITS.index(part))
        first, among = drawn[part]
        found = glyphs.draw_glyphs(seed, sizes[part], chosen, classes=among, **drawing)
        parts.append({**found, "label": found["label"] + np.int32(first)})
    arrays = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    return arrays, {**_classification(names), "fonts": fonts}


def _tfds(name, split, split_seed, *, data_dir=None, keys=None, image_size=None, in_memory=False):
    """A TensorFlow Datasets set, read without TensorFlow once `tinker data prepare` wrote it."""
    from tinker.data import tfds

    return tfds.read(
        name,
        split,
        split_seed,
        data_dir=data_dir,
        keys=keys,
        image_size=image_size,
        in_memory=in_memory,
    )


def _idx(directory, split, split_seed):
    """A folder in MNIST's format: train and t10k, images idx3 and labels idx1, gzipped or not."""
    part = "t10k" if split == "test" else "train"
    label = _read_idx(_idx_file(directory, part, "labels"))
    images = _read_idx(_idx_file(directory, part, "images"))
    if len(images) != len(label):
        raise UserError(f"idx:{directory}: {len(images)} images but {len(label)} labels for {part}")
    rows = _carved(label, split, split_seed)
    images = images[rows].reshape(len(rows), *images.shape[1:3], -1)
    arrays = {"image": np.divide(images, 255, dtype=np.float32), "label": _int32(label[rows])}
    return arrays, {"task": "classification", "classes": int(label.max()) + 1}


def _fashion_mnist(split, split_seed, *, directory="/usr/share/datasets/fashion-mnist"):
    """70,000 articles of clothing of 28x28 grey pixels (Debian's dataset-fashion-mnist)."""
    if not pathlib.Path(directory).is_dir():
        raise UserError(
            f"fashion_mnist is not in {directory}: `apt-get install dataset-fashion-mnist` on "
            "Debian or Ubuntu, or give the folder of its four IDX files as option `directory`"
        )
    arrays, _ = _idx(directory, split, split_seed)
    names = ("T-shirt/top", "trouser", "pullover", "dress", "coat")
    names += ("sandal", "shirt", "sneaker", "bag", "ankle boot")
    return arrays, _classification(list(names))


def _ucr(name, split, split_seed, *, data_dir=None):
    """A UCR/UEA set of labelled time series, from aeon's wheel or a folder of .ts files.

    Args:
      name: The set's, e.g. "ArrowHead".
      split: The split; the set's own test split stays.
      split_seed: Which tenth of train is validation.
      data_dir: Folder of ``NAME/NAME_TRAIN.ts`` and ``NAME/NAME_TEST.ts``; None is aeon's own.

    Returns:
      ``(arrays, info)``.
    """
    try:
        import aeon.datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"ucr:{name} is read with aeon: pip install 'tinker-jax[timeseries]'"
        ) from error

    wheel = pathlib.Path(aeon.datasets.__file__).parent / "data"
    root = wheel if data_dir is None else pathlib.Path(data_dir).expanduser()
    files = {p: root / name / f"{name}_{p.upper()}.ts" for p in ("train", "test")}
    if not all(path.exists() for path in files.values()):
        present = sorted(
            path.parent.name
            for path in root.glob("*/*_TRAIN.ts")
            if path.name == f"{path.parent.name}_TRAIN.ts"
        )
        raise UserError(
            f"ucr:{name} is not in {root}{nearest(name, present)}: put {files['train'].name} and "
            f"{files['test'].name} from https://timeseriesclassification.com into DIR/{name} and "
            f"give option `data_dir`=DIR; present are {', '.join(present) or 'none'}"
        )
    _, names, meta = aeon.datasets.load_from_ts_file(files["train"], return_meta_data=True)
    if not meta["classlabel"]:
        raise UserError(f"ucr:{name} has no classes: it is a set for regression or forecasting")
    names = np.unique(names)  # of train: the test file may lack a class, and adds none
    series, label = aeon.datasets.load_from_ts_file(files["test" if split == "test" else "train"])
    if isinstance(series, list):
        raise UserError(f"ucr:{name} has series of unequal length, which batches do not take")
    if np.isnan(series).any():
        raise UserError(f"ucr:{name} has missing values, which batches do not take")
    label = np.searchsorted(names, label)
    rows = _carved(label, split, split_seed)
    series = np.ascontiguousarray(series[rows].transpose(0, 2, 1), np.float32)
    arrays = {"series": series, "label": _int32(label[rows])}
    return arrays, _classification([str(n) for n in names])


def _text_stdlib(split, split_seed, *, length=128):
    """Python's standard library as bytes: predict the next one, split by file.

    Args:
      split: The split.
      split_seed: Which files are held out, a tenth for validation and a tenth for test.
      length: Bytes per example; examples do not overlap, and their order is the files'.

    Returns:
      ``(arrays, info)``; ``targets`` are ``tokens`` one byte on.
    """
    if length < 1:
        raise UserError(f"text:stdlib: length must be at least 1, got {length}")
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    chosen = b"".join(
        (root / path).read_bytes()
        for path in _stdlib_files()
        if _part_of_file(path, split_seed) in split.split("+")
    )
    data = np.frombuffer(chosen, np.uint8).astype(np.int32)
    windows = (len(data) - 1) // length
    arrays = {
        "tokens": data[: windows * length].reshape(windows, length),
        "targets": data[1 : windows * length + 1].reshape(windows, length),
    }
    return arrays, {"task": "language", "classes": 256}


@functools.cache
def _stdlib_files():
    """The standard library's modules, without its tests and what pip installed.

    Returns:
      A tuple of paths relative to the library's folder, with slashes, sorted.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in skip]
        inside = pathlib.Path(folder).relative_to(root)
        found += [(inside / f).as_posix() for f in files if f.endswith(".py")]
    return tuple(sorted(found))


def _synthetic(
    fn, split, split_seed, *, size=2_000, validation_size=1_000, test_size=1_000, **options
):
    """What a function draws, ``fn(seed, size, **options) -> arrays``: one of ours or pkg.mod:fn.

    Args:
      fn: A function of ``tinker.data.synthetic``, or an import path ``"pkg.mod:fn"``.
      split: The split.
      split_seed: The function's seed.
      size: Number of train examples.
      validation_size: Number of validation examples.
      test_size: Number of test examples.
      **options: The function's own.

    Returns:
      ``(arrays, info)``.
    """
    source, fn = f"synthetic:{fn}", _generator(fn)
    accepted = _option_names(fn)
    if accepted is not None:
        _check_options(source, options, [*accepted, "size", "validation_size", "test_size"])
    # One draw for all splits: they share the world, and no example is in two of them.
    ends = np.cumsum([size, validation_size, test_size])
    arrays = _plain_arrays(source, fn(split_seed, int(ends[-1]), **options), int(ends[-1]))
    info = {}
    if "label" in arrays:
        info = {"task": "classification", "classes": int(arrays["label"].max()) + 1}
    elif "target" in arrays:
        info = {"task": "regression"}
    elif "targets" in arrays:
        info = {"task": "language", "classes": int(arrays["targets"].max()) + 1}
    starts = dict(zip(("train", "validation", "test"), zip([0, *ends], ends)))
    rows = np.concatenate([np.arange(*starts[part]) for part in split.split("+")])
    return {key: value[rows] for key, value in arrays.items()}, info


LOADERS = {
    "digits": _digits,
    "breast_cancer": _breast_cancer,
    "wine": _wine,
    "iris": _iris,
    "diabetes": _diabetes,
    "mnist1d": _mnist1d,
    "glyphs": _glyphs,
    "fashion_mnist": _fashion_mnist,
    "tfds:NAME": _tfds,
    "idx:DIR": _idx,
    "ucr:NAME": _ucr,
    "text:stdlib": _text_stdlib,
    "synthetic:FN": _synthetic,
}
_ARGUMENT = {"tfds": "NAME", "idx": "DIR", "ucr": "NAME", "synthetic": "FN"}


def _classification(names):
    return {"task": "classification", "classes": len(names), "class_names": names}


def _int32(labels):
    return np.asarray(labels, np.int32)


def _carved(label, split, split_seed):
    """Rows of a set that comes with a test split: 10 % of train, by class, is validation."""
    if split not in ("train", "validation"):
        return np.arange(len(label))
    train, validation = hold_out(label, [0.1], split_seed)
    return train if split == "train" else validation


def _part_of_file(path, split_seed):
    """Which split a file is in: by the hash of its path, 10 % validation and 10 % test."""
    digest = hashlib.sha256(f"{split_seed}/{path}".encode()).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def _idx_file(directory, part, kind):
    """The file of one part ("train" or "t10k") and kind ("images" or "labels")."""
    folder = pathlib.Path(directory).expanduser()
    stem = f"{part}-{kind}"
    dimensions = 3 if kind == "images" else 1
    names = [f"{stem}{dash}idx{dimensions}-ubyte{gz}" for dash in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"idx:{directory}: no {names[0]} (or {names[1]}) in {folder}")


def _read_idx(path):
    """The array of an IDX file: two zero bytes, a type code, the rank, big-endian sizes, data."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        data = file.read()
    if data[:3] != b"\0\0\x08":
        raise UserError(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != shape.prod(dtype=np.int64):
        raise UserError(f"{path} is cut short: {values.size} values for shape {tuple(shape)}")
    return values.reshape(shape)


def _generator(path):
    """The function behind ``synthetic:FN``."""
    module, colon, attribute = path.rpartition(":")
    module = module if colon else "tinker.data.synthetic"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the user's module exists and imports something that does not
        raise UserError(f"synthetic:{path}: there is no module {error.name!r}") from error
    functions = [n for n, f in vars(found).items() if inspect.isfunction(f) and n[0] != "_"]
    if not callable(getattr(found, attribute, None)):
        listed = ", ".join(functions)
        hint = nearest(attribute, functions)
        raise UserError(f"synthetic:{path}: {module} has no function {attribute!r}{hint}; {listed}")
    return getattr(found, attribute)


def _plain_arrays(source, arrays, size):
    """Checks what a user's function returned and brings it to the dtypes of batches."""
    if not isinstance(arrays, dict) or not arrays:
        raise UserError(f"{source} must return a dict of arrays, got {type(arrays).__name__}")
    plain = {}
    for key, value in arrays.items():
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise UserError(
                f"{source}: {key!r} has dtype {value.dtype}; batches take numbers alone"
            )
        if value.shape[:1] != (size,):
            raise UserError(f"{source}: {key!r} has shape {value.shape}, not {size} examples")
        plain[key] = value.astype({"f": np.float32, "b": bool}.get(value.dtype.kind, np.int32))
    return plain
