"""The report of a sweep: settings, curves, differences; and the script that writes it."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnn_research.errors import UserError
from experiments.sweeps import page
from experiments.sweeps.page import sweep_page as make_page
from experiments.sweeps.results import Run, difference, group

REPOSITORY = Path(__file__).parents[3]
METRIC = "test/accuracy"
EVIL = "<script>alert(1)</script>"


def make_run(norm, seed, value, status="done"):
    result = {METRIC: value, "seconds": 75.0, "params": 61_706} if status == "done" else None
    curve = {50: 0.5, 100: value} if result else {}
    return Run(f"norm={norm},seed={seed}", {"model.norm": norm, "seed": seed}, status, result, curve)


@pytest.fixture
def runs():
    values = {"none": (0.90, 0.91, 0.92), "batch": (0.93, 0.941, 0.949), EVIL: (0.91, 0.90, 0.92)}
    return [make_run(norm, seed, value) for norm, three in values.items() for seed, value in enumerate(three)]


def cells(row):
    return [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]


def test_page(runs):
    failed = make_run("group", 0, 0.0, "failed")
    groups = group([*runs, failed], METRIC)
    text = make_page("norms", {"sweep": EVIL, "config": "digits.py"}, groups, METRIC)
    assert text.count("<script") == 1
    assert "94.00%" in text
    assert f"best {METRIC}: norm=batch" in text
    assert "9 of 10" in text
    assert "Missing: norm=group,seed=0 (failed)." in text
    rows = [cells(row) for row in re.findall("<tr>.*?</tr>", text)]
    assert rows[:3] == [
        ["norm", "n", METRIC, "± sd", "each seed", "time", "parameters"],
        ["none", "3", "91.00%", "1.00%", "", "1 min 15 s", "61.7 k"],
        ["batch", "3", "94.00%", "0.95%", "", "1 min 15 s", "61.7 k"],
    ]
    assert rows[4] == ["group", "0 of 1", "-", "-", "", "-", "-"]
    chart = json.loads(html.unescape(re.search(r'data-chart="(.*?)"', text)[1]))
    assert [line["name"] for line in chart["lines"] if not line["faint"]] == ["norm=none", "norm=batch", f"norm={EVIL}"]
    assert sum(line["faint"] for line in chart["lines"]) == 9
    np.testing.assert_allclose(chart["lines"][4]["points"], [[50, 0.5], [100, 0.94]])


def test_differences_are_from_each_setting(runs):
    groups = group(runs, METRIC)
    text = make_page("norms", {}, groups, METRIC)
    panels = dict(re.findall(r'data-choice="(.*?)" data-part="">(.*?)</table>', text))
    assert [*map(html.unescape, panels)] == ["norm=none", "norm=batch", f"norm={EVIL}"]
    found = difference(groups[1], groups[0], METRIC)
    row = re.findall("<tr>.*?</tr>", panels["norm=none"])[1]
    assert cells(row)[:3] == ["norm=batch", f"+{found.mean:.2%}", f"± {found.margin:.2%}"]
    assert "sure" in row  # the interval of 3% ± 0.3% leaves out 0
    assert "sure" not in re.findall("<tr>.*?</tr>", panels["norm=none"])[2]
    assert cells(re.findall("<tr>.*?</tr>", panels["norm=batch"])[1])[1] == f"-{found.mean:.2%}"
    alone = make_page("norms", {}, group(runs[::3], METRIC), METRIC)
    assert "Differences" not in alone


def test_the_script_knows_a_sweep(runs, tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        page.write(tmp_path, tmp_path / "report")
    arms = [{"name": run.name, "fields": run.fields, "status": run.status} for run in runs[:6]]
    (tmp_path / "sweep.json").write_text(json.dumps({"metric": METRIC, "arms": arms}))
    for run in runs[:6]:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "result.json").write_text(json.dumps(run.result))
    command = [sys.executable, "-m", "experiments.report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{tmp_path}/report/index.html: 0.0 MiB\n", done.stderr
    text = (tmp_path / "report" / "index.html").read_text()
    assert f"<title>{tmp_path.name}</title>" in text
    assert 'id="curves"' not in text
