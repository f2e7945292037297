"""``tinker data`` lists sources, shows one, draws it."""

import pytest

from tinker import data
from tinker.cli import main


def shown(capsys, *argv):
    assert main(["data", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_every_source_is_listed(capsys):
    lines = shown(capsys).splitlines()
    for name, summary in data.sources().items():
        assert any(line.split() == [*name.split(), *summary.split()] for line in lines), name


def test_a_source_is_shown_with_counts_shapes_and_a_picture_of_characters(capsys):
    out = shown(capsys, "show", "digits")
    for split in ("train", "validation", "test"):
        assert any(
            line.split() == [split, f"{data.length_of(data.load('digits', split)):,}"]
            for line in out.splitlines()
        )
    assert "(8, 8, 1)" in out and "int32" in out
    assert "classes: 0, 1, 2" in out
    assert sum("##" in line or "@@" in line or "%%" in line for line in out.splitlines()) >= 4


@pytest.mark.parametrize(
    "source", ["digits", "mnist1d --size=99", "diabetes", "synthetic:two_moons"]
)
def test_a_figure_is_drawn(source, tmp_path, capsys):
    path = tmp_path / "new" / "figure.png"
    assert f"wrote {path}" in shown(capsys, "show", *source.split(), f"--figure={path}").replace(
        "\n", ""
    )
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_options_go_to_the_source(capsys):
    out = shown(capsys, "show", "synthetic:gaussian_blobs", "--size=77", "--dimension=5")
    assert "77" in out and "(5,)" in out


def test_text_is_shown_as_text(capsys):
    out = shown(capsys, "show", "text:stdlib", "--split=validation")
    assert "tokens" in out and "\\n" in out


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["show", "digts"], "did you mean 'digits'?"),
        (["show", "digits", "--split=tset"], "did you mean 'test'?"),
        (["show", "glyphs", "--clases=3"], "did you mean 'classes'?"),
        (["show", "ucr:Nothing"], "ucr:Nothing"),
        (["show", "text:stdlib", "--figure=x.png"], "no images"),
        (["prepare", "mnist"], "tfds:"),
    ],
)
def test_a_mistake_is_one_line(argv, hint, capsys):
    assert main(["data", *argv]) == 2
    err = capsys.readouterr().err
    assert hint in err and err.count("\n") == 1
