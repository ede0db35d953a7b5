"""The script that trains several runs as one program: what it refuses. What it does the tests of sweeps see."""

import pytest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is a list of no runs; give one at least"),
        ('{"a": 1}', "is no list of runs: "),
        ("[3]", "is no list of runs: "),
        ('[{"config": 3, "overrides": {}, "workdir": "x"}]', "is no list of runs: "),
        ('[{"config": "experiments/configs/digits.py", "overrides": {}, "workdir": 3}]', "is no list of runs: "),
        ('[{"config": "no.py", "overrides": {}, "workdir": "x"}]', "is no list of runs: there is no recipe 'no.py'"),
        ("\x00", "is no list of runs: "),
    ],
)
def test_what_is_no_list_of_runs_ends_in_one_line(shell, tmp_path, content, message):
    (tmp_path / "runs.json").write_text(content)
    code, out, err = shell("sweeps.train_together", f"--runs={tmp_path / 'runs.json'}")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
