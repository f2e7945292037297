"""``tinker bench`` lists and runs what stands in benchmarks/ and beside the kernels."""

from tinker.cli import benchmarks, main


def test_benchmarks_are_listed_and_run_with_their_flags(tmp_path, monkeypatch, capsys):
    body = 'import sys\nif __name__ == "__main__":\n    print(sys.argv[1:])\n'
    (tmp_path / "add.py").write_text(f'"""Adds.\n\nAt length."""\n{body}')
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(benchmarks, "checkout", lambda: tmp_path)
    assert main(["bench"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["add", "Adds."]
    assert main(["bench", "add", "--steps=5", "--quick"]) == 0
    assert capsys.readouterr().out == "['--steps=5', '--quick']\n"
    assert main(["bench", "ad"]) == 2
    assert "did you mean 'add'?" in capsys.readouterr().err


def test_an_installed_wheel_says_where_benchmarks_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "checkout", lambda: tmp_path / "benchmarks")
    assert main(["bench"]) == 0
    assert benchmarks.ABSENT in capsys.readouterr().out


def test_every_benchmark_says_what_it_measures():
    for name, path in benchmarks.benchmarks().items():
        assert benchmarks.summary(path), name
