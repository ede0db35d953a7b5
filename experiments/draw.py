"""Draws a network as a course does: tensors as blocks with their sizes, skips and branches as arrows.

python -m experiments.draw --model=vgg16 --out=vgg16.svg
python -m experiments.draw --model=resnet50 --depth=1 --out=resnet50.pdf
python -m experiments.draw --model=googlenet --inside=inception_3a --out=inception_3a.png
python -m experiments.draw --config=experiments/configs/digits.py:lenet5 --config.model.c3=dense --out=lenet5.svg

The picture is read from the network itself: nothing is computed, and no data is needed. Equal blocks in a row are one.
"""

from absl import flags
from etils import epath

from cnn_research.errors import UserError, nearest
from experiments import command_line, networks

MOST_PIXELS = 2**16  # along a side, that matplotlib draws
SUFFIXES = (".pdf", ".png", ".svg")

_OUT = flags.DEFINE_string("out", "", f"the file, which ends in {', '.join(SUFFIXES)}")
_DEPTH = flags.DEFINE_integer(
    "depth", 0, "names of a layer's path that get a block of their own: 1 draws stages, 2 their blocks; 0: what fits",
    lower_bound=0,
)  # fmt: skip
_INSIDE = flags.DEFINE_string("inside", "", "a module, to draw it alone: stage1/block1")
flags.adopt_module_key_flags(networks)


def main() -> None:
    """Draws and writes."""
    command_line.require("out")
    out = epath.Path(_OUT.value)
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out={out}: a picture's name ends in {', '.join(SUFFIXES)}")
    network = networks.chosen()
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    import matplotlib

    from cnn_research.analysis import drawing, graph

    whole = graph.make_graph(network.model, network.input_shape, network.name)
    if _INSIDE.value and _INSIDE.value not in whole.modules():
        raise UserError(f"--inside={_INSIDE.value} is no module; {nearest(_INSIDE.value, whole.modules())}")
    shown = graph.inside(whole, _INSIDE.value) if _INSIDE.value else whole
    figure = drawing.draw(shown, _DEPTH.value)
    if out.suffix == ".png" and max(figure.get_size_inches()) * figure.dpi >= MOST_PIXELS:
        raise UserError(
            f"--depth={_DEPTH.value} makes too large a picture of {network.name}; give less, or --out=FILE.svg"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Words stay words, and the same network the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnn_research"}), out.open("wb") as file:
        metadata = {} if out.suffix == ".png" else {"CreationDate" if out.suffix == ".pdf" else "Date": None}
        figure.savefig(file, format=out.suffix[1:], metadata=metadata)
    print(f"{network.name} drawn into {out}")


if __name__ == "__main__":
    command_line.run(main)
