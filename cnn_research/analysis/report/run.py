"""The report of a run: results, curves, classes, pictures, layers, config."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cnn_research.analysis.report import tables
from cnn_research.analysis.report.charts import Line, chart, learning_curves
from cnn_research.analysis.report.markup import Markup, element, join
from cnn_research.analysis.report.numbers import duration, magnitude, number
from cnn_research.analysis.report.page import Section, page
from cnn_research.analysis.report.picker import picker
from cnn_research.analysis.report.pictures import panel, read_pictures
from cnn_research.analysis.run import Run
from cnn_research.analysis.table import COLUMNS, LEFT, NOTHING, Table
from cnn_research.analysis.tabulate import tabulate
from cnn_research.errors import UserError
from cnn_research.metrics import segmentation
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.training import config as configs
from cnn_research.training.writers import read_json, write_text

CLASSES = 200  # rows of the table of classes; more are cut off
CURVES = 12  # classes whose precision and recall are drawn


def write_run(run: Run, folder: epath.PathLike, split: str = "") -> epath.Path:
    """Measures a run on a split and writes its report.

    Args:
      run: restored.
      folder: gets `index.html`; what it holds of pictures is in the page.
      split: with TFDS's slicing; the run's test split unless given.

    Returns:
      The path of the page. Where the data is not here the page says so, and has no classes.
    """
    folder, split = epath.Path(folder), split or run.config.data.test
    try:
        measured, fault = run.measure(split), ""
    except UserError as error:
        measured, fault = None, str(error)
    table = tabulate(run.model, run.program.image_shape, run.config.model.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "index.html", run_page(run, table, folder, split, measured, fault))
    return folder / "index.html"


def run_page(run: Run, table: Table, folder: epath.Path, split: str, measured: Any, fault: str = "") -> str:
    """Returns the page of a run.

    Args:
      run: restored.
      table: of its network.
      folder: with pictures.
      split: that was measured.
      measured: what `Run.measure` gave for it; None where it could not be.
      fault: why not.
    """
    config, path = run.config, run.workdir / "environment.json"
    environment = read_json(path) if path.exists() else {}
    values = {} if measured is None else {f"{split}/{name}": v for name, v in run.task.summarize(measured).items()}
    sections = [Section("Results", _results(run, table, values, split, fault))]
    if run.metrics:
        main, further = learning_curves(run.metrics, run.task.primary_metric)
        body = element("div", *main, class_="charts")
        if further:
            body += tables.details(f"{len(further)} more curves", element("div", *further, class_="charts"))
        sections.append(Section("Curves", body))
    if measured is not None and (classes := _classes(run, measured)):
        sections.append(Section("Classes", classes))
    drawn_better = ("confusions", "curves") if measured is not None else ()
    if pictures := read_pictures(folder, [row.name for row in table.rows], without=drawn_better):
        sections.append(Section("Pictures", picker([*map(panel, pictures)], "Method", "Layer or image")))
    sections += [Section("Layers", _layers(table)), Section("Config", _config(run, environment))]
    name = run.workdir.resolve().name if "://" not in str(run.workdir) else run.workdir.name
    subtitle = f"{config.model.name} on {config.data.name}, after {run.step:,} steps"
    if not run.result:
        subtitle += " (not finished)"
    started = environment.get("started", "")[:10]
    footer = f"Started {started}. " if started else ""
    return page(config.task.replace("_", " "), name, subtitle, sections, f"{footer}Written by cnn_research.")


def _results(run: Run, table: Table, values: Mapping[str, Any], split: str, fault: str) -> Markup:
    """Returns the numbers to see first, and a table of all."""
    values = values or {name: value for name, value in run.result.items() if name.startswith(f"{split}/")}
    primary = f"{split}/{run.task.primary_metric}"
    shown = [(run.task.primary_metric.replace("_", " "), number(values[primary], primary))] if primary in values else []
    shown += [("parameters", magnitude(table.params)), ("multiply-adds", magnitude(table.macs))]
    if run.result:
        shown += [
            ("training time", duration(run.result["seconds"])),
            ("images a second", number(round(run.result["images_per_second"]))),
        ]
    body = tables.tiles(shown)
    if fault:
        body += element("p", f"Not measured anew: {fault}", class_="note")
    body += tables.metrics([(name, number(value, name)) for name, value in values.items()])
    return body


def _classes(run: Run, measured: Any) -> Markup:
    """Returns what is measured of each class; nothing where the task measures none."""
    names = run.class_names
    if isinstance(run.task, AveragePrecision):
        return _average_precisions(run.task, measured, names)
    if "confusion" not in measured:
        return Markup()
    matrix = np.asarray(measured["confusion"])
    if run.config.task == "classification":
        return tables.confusion(matrix, names)
    columns = segmentation.class_iou(matrix), segmentation.class_accuracy(matrix), matrix.sum(1) / matrix.sum()
    rows = [[name, *map(tables.share, row)] for name, *row in zip(names, *columns, strict=True)]
    return tables.table(["class", "IoU", "accuracy", "pixels"], rows[:CLASSES])


def _average_precisions(task: AveragePrecision, measured: Sequence[Any], names: Sequence[str]) -> Markup:
    scores = task.by_class(measured)
    columns = [name for name in next(iter(scores.values())) if name != "objects"]
    rows = [
        [names[label], *(tables.share(score[name]) for name in columns), f"{score['objects']:,}"]
        for label, score in scores.items()
    ]
    whole = tables.table(["class", *columns, "objects"], rows[:CLASSES])
    curves = [*task.of_voc(measured)["curves"].items()][:CURVES]
    lines = [
        Line(names[label], list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True)), group)
        for group, (label, curve) in enumerate(curves)
    ]
    title = "precision at IoU 0.5"
    return element("div", whole, chart(title, lines, x="recall", percent=True), class_="columns")


def _layers(table: Table) -> Markup:
    """Returns the table of layers, with those that have parameters or an output of their own."""
    rows = [[cell(row) or NOTHING for cell in COLUMNS.values()] for row in table.shown()]
    return join(
        tables.table([*COLUMNS], rows, left=len(LEFT), class_="layers"),
        *(element("p", note, class_="note") for note in table.notes()),
    )


def _config(run: Run, environment: Mapping[str, Any]) -> Markup:
    """Returns the fields that differ from the defaults, and, closed, all of them and what the run ran on."""
    fields = configs.flatten(run.config)
    defaults = configs.flatten(configs.default_config(run.config.model.name, run.config.task))
    differing = [name for name in fields if name in defaults and fields[name] != defaults[name]]
    rows = [[_breakable(name), _value(fields[name]), _value(defaults[name])] for name in differing]
    every = [
        [element("mark", _breakable(name)) if name in differing else _breakable(name), _value(value)]
        for name, value in sorted(fields.items())
    ]
    body = tables.table(["field", "value", "default"], rows, left=3, class_="fields")
    body += tables.details(
        f"All {len(fields)} fields, those that differ marked",
        tables.table(["field", "value"], every, left=2, class_="fields"),
    )
    if environment:
        flat = [[name, _value(value)] for name, value in _flat(environment)]
        body += tables.details("What it ran on", tables.table(["", "value"], flat, left=2, class_="fields"))
    return body


def _breakable(name: str) -> Markup:
    """Returns a field's name, with places where a narrow column may break it."""
    return join(*(join(part, element("wbr")) for part in re.findall(r"[^._]+[._]?", name)))


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in environment.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "()"
    return str(value) if value != "" else "“”"
