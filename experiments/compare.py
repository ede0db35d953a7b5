"""Sets networks or runs beside each other: accuracy, size, operations, memory, speed, and time to train.

python -m experiments.compare --models=alexnet,vgg16,googlenet,resnet50 --batch_sizes=1,8 --out=compared
python -m experiments.compare --runs='runs/*' --out=compared
python -m experiments.compare --runs=runs/seed0,runs/seed1 --similarity --out=compared

`--out` gets `table.csv`, `charts.png` and `index.html`, one interactive page that needs no network; the table is
printed too. A network's accuracy is what others have published of it on ImageNet, and marked so; a run's is its own.
Of two runs it also says where they first part: config, examples, logged values, parameters. `--similarity` adds a map
of how alike the layers of two runs (or of one) represent the same images: linear centered kernel alignment.
`--receptive_fields` adds how much each pixel matters to a unit in the middle, beside what that sees at all.
`--correlation` adds a table of how much neighbours in the maps of runs say the same before and after each pooling.
"""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from flax import linen as nn
from jaxtyping import UInt8
from tqdm import tqdm

from cnn_research import analysis, models
from cnn_research.analysis.published import IMAGENET
from cnn_research.data.batches import load, present
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec
from cnn_research.training.writers import write_text
from experiments import command_line
from experiments.images import save
from experiments.markdown import markdown_table
from experiments.runs import find_runs

if TYPE_CHECKING:
    from cnn_research.analysis.comparison import Entry

RANDOM_WEIGHTS = 4  # of a network, that its effective receptive fields are averaged over

_MODELS = flags.DEFINE_list("models", [], "networks' names")
_RUNS = flags.DEFINE_string("runs", "", "or runs' directories, as globs in quotes, with commas between")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "images a forward pass whose time is measured; '' is none")
_SIMILARITY = flags.DEFINE_boolean("similarity", False, "draw how alike the layers of one or two runs are")
_FIELDS = flags.DEFINE_boolean("receptive_fields", False, "draw effective receptive fields beside theoretical ones")
_CORRELATION = flags.DEFINE_boolean("correlation", False, "tell how far the poolings of runs decorrelate neighbours")
_EXAMPLES = flags.DEFINE_integer("examples", 512, "images of the test split to tell that by, at most", lower_bound=4)
_OUT = flags.DEFINE_string("out", "", "the folder for the table, the charts and the page")


def main() -> None:
    """Measures, prints and draws."""
    command_line.require("out")
    if bool(_MODELS.value) == bool(_RUNS.value):
        raise UserError("give --models=alexnet,vgg16 or --runs='runs/*', and not both")
    sizes = _BATCH_SIZES.value
    if not all(size.isdigit() and int(size) for size in sizes):
        raise UserError(f"--batch_sizes={','.join(sizes)}: give numbers of images, such as 1,8")
    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    for name in _MODELS.value:
        models.input_shape(name)  # refuses what is no network before any is measured
    for flag, given, number in (
        ("similarity", _SIMILARITY.value, " with one or two"),
        ("correlation", _CORRELATION.value, ""),
    ):
        if given and not _RUNS.value:
            raise UserError(f"--{flag} is for runs; give --runs{number}")
    runs = (
        {name: analysis.load_run(path, _STEP.value) for name, path in find_runs(_RUNS.value).items()}
        if _RUNS.value
        else {}
    )
    if _SIMILARITY.value and len(runs) > 2:
        raise UserError(f"--similarity takes one run or two, not {len(runs)}")
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    from cnn_research.analysis import comparison, comparison_page, divergence

    count = len(runs) or len(_MODELS.value)
    bar = tqdm(entries(runs, [*map(int, sizes)]), total=count, unit="network", disable=None, leave=False)
    compared: list[comparison.Entry] = list(bar)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "table.csv", comparison.to_csv(compared))
    save(comparison.charts(compared), out / "charts.png")
    write_text(out / "index.html", comparison_page.page(compared))
    print("\n".join(table(compared)))
    if len(runs) == 2:
        first, second = runs.values()
        order = [row.name for row in compared[0].table.rows]
        print("", *divergence.explain(first, second, order), sep="\n")
    if _SIMILARITY.value:
        draw_similarity(runs, out)
    if _CORRELATION.value:
        print("", *correlations(runs), sep="\n")
    if _FIELDS.value:
        draw_fields(runs, compared, out)


def entries(runs: dict[str, analysis.Run], batch_sizes: Sequence[int]) -> "Iterator[Entry]":
    """Yields what is compared of each network or run."""
    from cnn_research.analysis.comparison import Entry, measure_latency

    for name, run in runs.items():
        shape, metric = run.program.image_shape, f"{run.config.data.test}/{run.task.primary_metric}"
        table = analysis.tabulate(run.model, shape, name)
        records = [record for record in (*run.metrics, run.result) if metric in record]
        measured = [record[metric] for record in records if record["step"] == run.step]
        forward = _forward(run.model)
        latency = {size: measure_latency(forward, run.variables, shape, size) for size in batch_sizes}
        accuracy = float(measured[-1]) if measured else None
        seconds = run.result.get("seconds")
        yield Entry(name, table, accuracy, f"{metric} of {run.config.data.name}", False, latency, seconds)
    for name in _MODELS.value:
        model, shape = models.create(name), models.input_shape(name)
        table = analysis.tabulate(model, shape, name)
        images = jax.ShapeDtypeStruct((1, *shape), "float32")
        abstract = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
        # The time does not depend on the weights.
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract) if batch_sizes else {}
        latency = {size: measure_latency(_forward(model), variables, shape, size) for size in batch_sizes}
        published = IMAGENET.get(name)
        source = f"published, ImageNet top-1: {published.source}" if published else ""
        yield Entry(name, table, published and published.top1, source, bool(published), latency)


def _forward(model: nn.Module) -> Callable[[Any, Any], Any]:
    return lambda variables, images: model.apply(variables, images, train=False)


def table(compared: "Sequence[Entry]") -> list[str]:
    """Returns the lines of the table: a row a network."""
    sizes = sorted({size for entry in compared for size in entry.latency})
    header = ["name", "accuracy", "M params", "G MACs", "MiB outputs", "% a M params"]
    header += [f"{unit}, batch {size}" for size in sizes for unit in ("ms", "images/s")] + [
        "training, s",
        "accuracy of",
    ]
    rows = [header]
    for entry in compared:
        accuracy = "" if entry.accuracy is None else f"{entry.accuracy:.1%}" + "*" * entry.published
        speeds = [(entry.latency[size], size / entry.latency[size]) for size in sizes]
        rows.append(
            [
                entry.name,
                accuracy,
                f"{entry.table.params / 1e6:,.3f}",
                f"{entry.table.macs / 1e9:,.4f}",
                f"{entry.table.activation_bytes / 2**20:,.2f}",
                "" if entry.density is None else f"{entry.density:,.2f}",
                *(text for seconds, rate in speeds for text in (f"{1e3 * seconds:,.2f}", f"{rate:,.1f}")),
                "" if entry.train_seconds is None else f"{entry.train_seconds:,.0f}",
                entry.source,
            ]
        )
    notes = ["", "* published by others, not measured here"] if any(entry.published for entry in compared) else []
    return [*markdown_table(rows, left=1), *notes]


def test_images(run: analysis.Run) -> UInt8[np.ndarray, "examples height width channels"]:
    """Returns the first `--examples` images of a run's test split, at the network's size."""
    source = open_split(run.config, run.config.data.test)
    count = min(_EXAMPLES.value, len(source))
    return present(load(source, np.arange(count), np.ones(count, bool), image_spec(run.config.data)))["image"]


def correlations(runs: dict[str, analysis.Run]) -> list[str]:
    """Returns the lines of a table: a row a pooling."""
    from cnn_research.analysis import correlation

    rows = [["run", "pooling", "correlation of neighbours before", "after"]]
    for name, run in runs.items():
        inputs = run.program.preprocessing.test({"image": jnp.asarray(test_images(run))})["image"]
        for layer, change in correlation.of_poolings(run.model, run.variables, inputs).items():
            rows.append([name, layer, *("" if np.isnan(value) else f"{value:.3f}" for value in change)])
    return markdown_table(rows, left=2) if rows[1:] else ["no network of these runs pools its maps"]


def draw_similarity(runs: dict[str, analysis.Run], out: epath.Path) -> None:
    """Draws how alike the layers of two runs are on the first one's test images; of one run with itself."""
    from cnn_research.analysis import similarity

    names = [*runs] * 2
    first, second = ([*runs.values()] * 2)[:2]
    spec = image_spec(first.config.data)
    if image_spec(second.config.data).size != spec.size or second.config.data.channels != first.config.data.channels:
        raise UserError("--similarity: the runs' images are not of one size")
    alike = similarity.of_runs(first, second, test_images(first))
    figure = similarity.heat_map(alike, names[0], names[1])
    save(figure, out / "similarity.png")
    text = io.StringIO()
    text.write(",".join(["", *alike.columns]) + "\n")
    text.writelines(
        ",".join([name, *(f"{value:.5f}" for value in row)]) + "\n"
        for name, row in zip(alike.rows, alike.values, strict=True)
    )
    write_text(out / "similarity.csv", text.getvalue())
    print(f"\nsimilarity of {len(alike.rows)} and {len(alike.columns)} layers drawn into {out / 'similarity.png'}")


def draw_fields(runs: dict[str, analysis.Run], compared: "Sequence[Entry]", out: epath.Path) -> None:
    """Draws what matters to units of some layers: of runs with their weights, of networks with several random ones."""
    from cnn_research.analysis import effective_field

    found = {}
    for entry in tqdm(compared, unit="network", disable=None, leave=False):
        if run := runs.get(entry.name):
            model, weights = run.model, iter([run.variables])
        else:
            model = models.create(entry.name)
            init = jax.jit(functools.partial(model.init, train=False))
            images = jnp.zeros((1, *entry.table.input_shape))
            weights = (init(jax.random.key(seed), images) for seed in range(RANDOM_WEIGHTS))
        found[entry.name] = effective_field.fields(model, entry.table, weights, jax.random.key(0))
    drawn = {name: fields for name, fields in found.items() if fields}
    if not drawn:
        raise UserError("--receptive_fields: no layer of these networks gives maps")
    save(effective_field.draw(drawn), out / "receptive_fields.png")
    print(f"\nreceptive fields drawn into {out / 'receptive_fields.png'}")


if __name__ == "__main__":
    command_line.run(main)
