"""``tinker data``: what can be loaded, what it looks like, and how it is written."""

from pathlib import Path

from tinker.cli.printing import console, table
from tinker.numerics.errors import UserError

SPLITS = ("train", "validation", "test")


def show_sources():
    """Lists the sources of data."""
    from tinker import data

    out = console()
    out.print(table(rows=data.sources().items()))
    out.print("\n`tinker data show NAME` shows one; config.data.source names it in a job.")


def show(name, *, split, figure, options):
    """Shows a source: rows per split, shapes, classes, and an example or a picture of several."""
    from tinker import data

    chosen = data.load(name, split, **options)
    parts = {s: data.load(name, s, **options) for s in SPLITS if s != split} | {split: chosen}
    example, out = first(chosen, 1), console()
    out.print(f"{name}: {chosen.info.get('task', 'no task')}", highlight=False)
    classes = chosen.info.get("class_names") or chosen.info.get("classes")
    if classes:
        named = classes if isinstance(classes, int) else ", ".join(map(str, classes))
        out.print(f"classes: {named}", highlight=False, markup=False)
    counts = [(s, f"{data.length_of(parts[s]):,}") for s in dict.fromkeys([*SPLITS, split])]
    out.print(table("split", "examples", rows=counts, right=["examples"]))
    keys = [(k, str(v.shape[1:]), str(v.dtype), preview(v[0])) for k, v in example.items()]
    out.print(table("key", "shape", "dtype", "first example", rows=keys))
    if "image" in example:
        out.print(as_text(example["image"][0]), highlight=False, markup=False)
    if figure:
        draw(chosen, figure)
        out.print(f"wrote {figure}", highlight=False)


def first(dataset, count):
    """The first examples as a batch, ``{key: [count, …]}``."""
    from tinker import data

    return next(iter(data.batches(dataset, min(count, data.length_of(dataset)), shuffle=False)))


def preview(value):
    """A few numbers, or the text, of one entry of an example."""
    import numpy as np

    flat = np.ravel(value)
    if value.ndim == 1 and value.dtype.kind in "iu" and flat.size > 8:
        return repr(bytes(flat[:40].astype(np.uint8)).decode("utf-8", "replace"))
    shown = " ".join(f"{x:.3g}" for x in flat[:6])
    return f"{shown} …" if flat.size > 6 else shown


def as_text(image, width=64):
    """An image as lines of characters, darker where it is larger."""
    import numpy as np

    grey = np.asarray(image, np.float32).mean(-1)
    stride = -(-grey.shape[1] // width)
    grey = np.clip(grey[::stride, ::stride], 0, 1)
    ramp = np.array(list(" .:-=+*#%@"))
    return "\n".join("".join(2 * c for c in row) for row in ramp[np.rint(grey * 9).astype(int)])


def draw(dataset, path):
    """Writes a picture: images or series of 40 examples, or the first two features of 1,000."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batch = first(dataset, 1000)
    kind = next((k for k in ("image", "series", "features") if k in batch), None)
    if kind is None:
        raise UserError(f"{dataset.info['name']} has no images, series or features to draw")
    if kind == "features":
        figure, axis = plt.subplots(layout="constrained")
        shade = batch.get("label", batch.get("target"))
        x = batch["features"].reshape(len(batch["features"]), -1)
        drawn = axis.scatter(x[:, 0], x[:, min(1, x.shape[1] - 1)], s=8, c=shade, cmap="turbo")
        axis.set(title=dataset.info["name"], xlabel="features[0]", ylabel="features[1]")
        if shade is not None:
            figure.colorbar(drawn, label="label" if "label" in batch else "target")
    else:
        columns = 10 if kind == "image" else 5
        values = batch[kind][:40]
        lines = -(-len(values) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(13, 1.5 * lines), squeeze=False, layout="constrained"
        )
        names = dataset.info.get("class_names")
        for axis in axes.flat:
            axis.set_axis_off()
        for i, (axis, value) in enumerate(zip(axes.flat, values, strict=False)):
            if kind == "image":
                axis.imshow(value.squeeze(-1) if value.shape[-1] == 1 else value, cmap="gray")
            else:
                axis.plot(value, linewidth=0.8)
            if "label" in batch:
                label = int(batch["label"][i])
                axis.set_title(names[label] if names else label, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def prepare(name, data_dir=None):
    """Downloads and writes a TFDS set as array_record, with TensorFlow."""
    from tinker import data

    print(f"ready: {data.prepare(name, data_dir=data_dir)}")
