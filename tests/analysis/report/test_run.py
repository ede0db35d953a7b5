"""The page of a run: what is in it, and what a browser makes of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from cnn_research.analysis import Run, report
from cnn_research.analysis.table import Row, Table
from cnn_research.training import config as configs
from cnn_research.training.program import make_program

EVIL = "<script>alert(1)</script>"
ROWS = (Row("C1", "Conv", (5, 5), weights=150, biases=6), Row(EVIL, "Dense", weights=10))
TABLE = Table("lenet5_modern", (32, 32, 1), ROWS)


def make_run(workdir, config):
    config.data.num_examples = 1437
    config.data.class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", EVIL)
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    (workdir / "environment.json").write_text(json.dumps({"started": "2026-01-02T03", "versions": {"jax": "1.2.3"}}))
    records = [{"step": step, "train/loss": 3 / step, "train/learning_rate": 0.1} for step in (4, 8, 12)]
    records += [{"step": step, "test/accuracy": step / 20, "test/loss": 4 / step} for step in (6, 12)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {"step": 12, "test/accuracy": 0.6, "seconds": 75.0, "images_per_second": 99.6, "params": 160}
    (workdir / "result.json").write_text(json.dumps(result))
    return Run(epath.Path(workdir), make_program(config), 12, {})


def measure(run, wrong=3):
    labels = np.arange(20) % 10
    predicted = np.where(np.arange(20) < wrong, (labels + 1) % 10, labels)
    logits = jnp.asarray(5.0 * np.eye(10)[predicted], jnp.float32)
    predictions = {"logits": logits, "probabilities": jax.nn.softmax(logits), "label": jnp.asarray(predicted)}
    return run.task.measure(predictions, {"label": labels, "example_mask": np.ones(20, bool)})


@pytest.fixture(scope="module")
def run(digits_config, tmp_path_factory):
    config = digits_config()
    config.optimizer.learning_rate = 0.0371
    return make_run(tmp_path_factory.mktemp("runs") / "a <script> & b", config)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The path of a page with pictures."""
    folder = tmp_path_factory.mktemp("report")
    for index, name in enumerate(("filters_C1", "grad_cam", "top_patches_C1", f"top_patches_{EVIL.replace('/', '_')}")):
        Image.fromarray(np.full((30, 600, 3), 50 * index, np.uint8)).save(folder / f"{name}.png")
    path = folder / "index.html"
    path.write_text(report.run_page(run, TABLE, epath.Path(folder), "test", measure(run)))
    return path


def test_names_cannot_become_scripts(page):
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 1
    assert "<title>a &lt;script&gt; &amp; b</title>" in text
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text


def test_what_a_page_holds(page):
    text = page.read_text()
    for part in ("85.0%", "1 min 15 s", "2026-01-02", "1.2.3", "after 12 steps", ">0.0371<", ">0.1<"):
        assert part in text
    assert "not finished" not in text
    assert "0 as 1: 1, 50.0%" in text
    assert "Not measured" not in text


def test_data_that_is_not_here(digits_config, tmp_path):
    config = digits_config()
    config.data.update(name="no_such_set", class_names=())
    run = make_run(tmp_path / "run", config)
    (run.workdir / "result.json").unlink()
    path = report.write_run(run, tmp_path / "report")
    text = path.read_text()
    assert "Not measured anew: " in text
    assert "no_such_set" in text
    assert "(not finished)" in text
    assert ">C3<" in text
    assert 'id="classes"' not in text


def test_classes_of_pixels(digits_config, tmp_path):
    config = configs.default_config("unet", num_classes=2, padding="same", depth=1, features=4)
    config.data.update(name="shapes", class_names=("ground", "figure"), num_examples=10)
    run = Run(epath.Path(tmp_path), make_program(config), 5, {})
    confusion = np.array([[60, 20], [0, 20]])
    measured = {"confusion": confusion, "examples": 1, "pixels": 100, "loss": 30.0}
    text = report.run_page(run, TABLE, epath.Path(tmp_path), "test", measured)
    assert 'id="curves"' not in text
    assert '<th scope="row">figure</th><td class="number share" style="--share:0.5000"><span>50.0%' in text
    assert "62.5%" in text  # the mean of 75% and 50%


def test_classes_of_objects(tmp_path):
    config = configs.default_config("yolo", num_classes=2)
    config.data.update(name="shapes", class_names=("star", "disc"), num_examples=10)
    run = Run(epath.Path(tmp_path), make_program(config), 5, {})
    boxes = np.array([[0.0, 0, 20, 20], [30, 30, 60, 60]])
    record = {
        **{f"true/{name}": value for name, value in (("boxes", boxes), ("classes", np.array([0, 0])))},
        **{f"found/{name}": value for name, value in (("boxes", boxes[:1]), ("classes", np.array([0])))},
        "true/ignored": np.zeros(2, bool),
        "found/scores": np.array([0.9]),
    }
    text = report.run_page(run, TABLE, epath.Path(tmp_path), "test", [record])
    assert '<th scope="row">star</th><td class="number share" style="--share:0.5000">' in text
    assert '<td class="number">2</td>' in text
    assert "disc</th>" not in text
    assert "precision at IoU 0.5" in text
    assert "[0.5, 1.0]" in text  # of the curve


STATE = """(() => ({
  shown: [...document.querySelectorAll('.panel:not([hidden]) img')].map((image) => image.alt),
  loaded: [...document.images].every((image) => image.naturalWidth === 600),
  wide: document.documentElement.scrollWidth,
  charts: [...document.querySelectorAll('.chart svg')].filter((svg) => svg.querySelector('path, circle')).length,
  tip: document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent,
  ground: getComputedStyle(document.body).backgroundColor,
}))()"""
CHOOSE = """(([choice, part]) => {{
  {0}.value = {1};
  {0}.dispatchEvent(new Event('change'));
}})(document.querySelectorAll('.picker select'))"""
KEY = "document.querySelector('.chart svg').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"


def test_in_a_browser(browser, page):
    browser.open(page)
    state = browser.run(STATE)
    assert state["shown"] == ["Filters: C1"]
    assert state["loaded"]
    assert state["charts"] == 3
    browser.run(CHOOSE.format("choice", "'Top patches'"))
    assert browser.run(STATE)["shown"] == ["Top patches: C1"]
    browser.run(CHOOSE.format("part", json.dumps(EVIL)))
    assert browser.run(STATE)["shown"] == [f"Top patches: {EVIL}"]
    browser.run(CHOOSE.format("choice", "'Grad-CAM'"))
    assert browser.run(STATE)["shown"] == ["Grad-CAM"]
    browser.run(KEY)
    assert browser.run(STATE)["tip"] == "step 4train0.75"
    for _ in range(3):  # by the steps of both lines: 6, 8, 12
        browser.run(KEY)
    assert browser.run(STATE)["tip"] == "step 12test0.3333train0.25"
    light = state["ground"]
    for width in (320, 390, 1280):
        browser.open(page, width=width, height=844, dark=True)
        state = browser.run(STATE)
        assert state["wide"] <= width
        assert state["ground"] != light
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
