"""Flags become a command, and a mistaken one becomes a line."""

import pytest

from tests.test_layers import files
from tinker.cli import main
from tinker.cli.parsing import EXAMPLES, literal, make_parsers, parse, split_overrides
from tinker.numerics import UserError


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("3e-4", 3e-4),
        ("-1", -1),
        ("True", True),
        ("None", None),
        ("('image', 'label')", ("image", "label")),
        ("{'fn': 'a:b'}", {"fn": "a:b"}),
        ("tinker.losses:focal", "tinker.losses:focal"),
        ("true", "true"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_values_are_literals_or_strings(text, value):
    found = literal(text)
    assert found == value and type(found) is type(value)


def test_overrides_come_with_equals_or_as_two_words():
    words = ["train", "--config.a.b=1", "--config=x", "--config.c", "-2", "--config.d=k=v", "--z"]
    rest, overrides, missing = split_overrides(words)
    assert rest == ["train", "--config=x", "--z"]
    assert overrides == {"a.b": 1, "c": -2, "d": "k=v"}
    assert missing == []


def test_the_last_of_two_overrides_counts():
    assert split_overrides(["--config.steps=1", "--config.steps=2"])[1] == {"steps": 2}


def test_an_override_without_a_value_does_not_swallow_a_flag():
    rest, overrides, missing = split_overrides(["--config.a", "--workdir=x", "--config.b"])
    assert (rest, overrides, missing) == (["--workdir=x"], {}, ["a", "b"])


MISTAKES = {
    "trian": "did you mean 'train'?",
    "data shwo": "did you mean 'show'?",
    "train --confg=x --workdir=y": "did you mean '--config'?",
    "train --config=x --workdri=y": "did you mean '--workdir'?",
    "train --config=JOB --workdir=y --steps=5": "did you mean '--config.steps'?",
    "train --config=JOB --workdir=y --optimizer.learning_rat=5": "optimizer.learning_rate'?",
    "train --workdir=y": "--config",
    "train --config=x": "--workdir",
    "train --config=x --workdir=y extra": "'extra'",
    "train --config=x --workdir=y --config.steps": "--config.steps=VALUE",
    "train --config=x --workdir": "--workdir",
    "train --config=x --workdir=y --profile=10": "FROM:TO",
    "train --config=x --print_config=flgs": "did you mean 'flags'?",
    "eval --workdir=y --splt=test": "did you mean '--split'?",
    "eval --workdir=y --step=last": "--step",
    "eval --workdir=y --config.steps=3": "--config.steps",
    "eval": "--workdir",
    "data show": "`tinker data` lists",
    "data show digits --figur=x.png": "did you mean '--figure'?",
    "data show digits --size 3": "--OPTION=VALUE",
    "data prepare": "`tinker data` lists",
    "bench nothing": "'nothing'",
}


@pytest.mark.parametrize("line, hint", MISTAKES.items())
def test_a_mistake_is_one_line_on_stderr(line, hint, capsys, job):
    status = main([word.replace("JOB", str(job)) for word in line.split()])
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("tinker: ") and err.count("\n") == 1
    assert hint in err


@pytest.mark.parametrize("argv", [["--debug", "trian"], ["trian", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(argv):
    with pytest.raises(UserError, match="did you mean 'train'"):
        main(argv)


def test_other_exceptions_keep_their_traceback(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        main(["train", f"--config={config}", "--print_config"])


@pytest.mark.parametrize("path", make_parsers())
def test_help_has_examples_that_parse(path, capsys):
    assert main([*path.split(), "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    lines = EXAMPLES[path].replace("\\\n", " ").splitlines()
    commands = [line.split()[1:] for line in lines if line.strip().startswith("tinker ")]
    assert commands
    for words in commands:
        parse(words)


def test_without_a_command_help_is_printed(capsys):
    assert main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


def test_version(capsys):
    import tinker

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tinker {tinker.__version__}\n"


@pytest.mark.parametrize("argv", [["data"], ["bench"], ["--help"]])
def test_a_reader_that_closes_the_pipe_sees_no_traceback(argv, python):
    code = "import os, sys, tinker.cli; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
    done = python(f"{code}sys.exit(tinker.cli.main({argv}))", check=False)
    assert done.stderr == "" and done.returncode in (0, 1)


def test_module_and_script_are_the_same_command():
    assert "tinker.cli.__main__" in dict(files())
