"""Photographs to batches: a random window of each, 224x224, decoded, cut and resized by the host."""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cnn_research.data import embedded, sources
from cnn_research.data.batches import load, stream
from cnn_research.data.images import ImageSpec, decode, reduced
from cnn_research.data.order import Shuffled
from cnn_research.data.sources import Source
from cnn_research.data.windows import RandomWindows, Window
from cnn_research.errors import UserError
from experiments.suites import timing

WINDOWS = RandomWindows(seed=0, area=(0.08, 1.0))
BATCH_SIZE = 50
MOST = 500  # of VOC's photographs
STAND_INS = 100  # photographs, where VOC is absent

# One core: the side of what windows are resized to. At 224 those of VOC's photographs are too small to be decoded at
# half their size, at 112 some are not.
OTHERS = {"opencv": 224, "opencv_112": 112, "pillow": 224}

# Then 1, 2, 4, … threads or processes, up to the number of cores.
CORES = os.cpu_count() or 1
COUNTS = sorted({2**power for power in range(CORES.bit_length())} | {CORES})
READERS = {f"{kind}_{count}": {kind: count} for kind in ("threads", "workers") for count in COUNTS}


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """`load` against OpenCV's bare decoding and against Pillow, as torchvision uses it; then `stream` on more cores.

    The first rows are images for each second of a core's time. `psnr` is that of our pictures, in dB: from what exact
    decoding and averaging give, or from Pillow's. The other rows are images for each second of the clock; their ratio
    is over those with one thread or process.
    """
    chosen = timing.chosen(models, [*OTHERS, *READERS])
    data, photographs = _photographs()
    with tempfile.TemporaryDirectory() as folder:
        source = _prepare(photographs, folder)
        found = [_compare(name, source, photographs, rounds) for name in chosen if name in OTHERS]
        found += _scale([name for name in chosen if name in READERS], source, rounds)
    return [{"model": row.pop("model"), "data": data, **row} for row in found]


def _photographs() -> tuple[str, list[bytes]]:
    """Returns JPEG files of about 500x375, and what they are."""
    try:
        sources.find("voc/2012")
    except UserError:
        return "windows of scikit-learn's photographs", list(_stand_ins())
    source = sources.open_source("voc/2012", "train+validation")
    return "voc/2012", [example["image"] for example in source.read(range(min(len(source), MOST)))]


def _stand_ins() -> Iterator[bytes]:
    """Yields windows of 375x500 pixels of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_image  # here: importing it takes a second

    random = np.random.default_rng(0)
    whole = [load_sample_image(name)[..., ::-1] for name in ("china.jpg", "flower.jpg")]
    for index in range(STAND_INS):
        top, left = random.integers(0, (427 - 375, 640 - 500))
        window = whole[index % 2][top : top + 375, left : left + 500]
        yield cv2.imencode(".jpg", window, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _prepare(photographs: Sequence[bytes], folder: str) -> Source:
    """Stores photographs as ImageNet is stored, and opens them."""
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, photograph in enumerate(photographs):
                yield index, {"image": io.BytesIO(photograph), "label": 0, "file_name": f"{index}.jpg"}

    with embedded.quiet():
        builder = Photographs(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return sources.open_source(str(builder.data_path), "train")


def _compare(name: str, source: Source, photographs: Sequence[bytes], rounds: int) -> timing.Row:
    """Returns images/s on one core, and the other's."""
    side = OTHERS[name]
    spec = ImageSpec((side, side), windows=WINDOWS)
    indices = np.arange(min(BATCH_SIZE, len(source)))
    draws = WINDOWS.draws(0, len(indices))
    windows = [_window(spec, *pair) for pair in zip(photographs, draws.tolist(), strict=False)]
    ours = partial(load, source, indices, np.ones(len(indices), bool), spec, draws)
    if name == "pillow":
        other: Callable[[], Any] = partial(_pillow, source, indices.tolist(), windows, side)
        pictures = other()
    else:
        other = partial(_bare, photographs[: len(indices)])
        pictures = np.stack([_exact(*pair, side) for pair in zip(photographs, windows, strict=False)])
    times = timing.in_turns({"ours": ours, "other": other}, rounds, clock=time.process_time)
    speeds = {key: [len(indices) / seconds for seconds in values] for key, values in times.items()}
    return {
        "model": name,
        "images_per_s": round(statistics.median(speeds["ours"]), 1),
        "other_images_per_s": round(statistics.median(speeds["other"]), 1),
        "psnr": round(float(np.median(_psnr(ours()["image"], pictures))), 1),
        **timing.ratios(speeds["ours"], speeds["other"]),
    }


def _window(spec: ImageSpec, photograph: bytes, draws: Sequence[float]) -> Window:
    reduction, window = reduced(*spec.place(decode(photograph, 3).shape[:2], draws))
    return Window(*(part * reduction for part in window))


def _bare(photographs: Sequence[bytes]) -> None:
    for photograph in photographs:
        cv2.imdecode(np.frombuffer(photograph, np.uint8), cv2.IMREAD_COLOR)


def _pillow(source: Source, indices: Sequence[int], windows: Sequence[Window], side: int) -> np.ndarray:
    """Returns a batch as torchvision's data set, `RandomResizedCrop` and a loader make it; drawing is not counted."""
    images = []
    for example, window in zip(source.read(indices), windows, strict=True):
        image = Image.open(io.BytesIO(example["image"])).convert("RGB")
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        images.append(np.asarray(image.crop(box).resize((side, side), Image.Resampling.BILINEAR)))
    return np.stack(images)


def _exact(photograph: bytes, window: Window, side: int) -> np.ndarray:
    part = decode(photograph, 3)[window.top :, window.left :][: window.height, : window.width]
    return cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)


def _psnr(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the peak signal-to-noise ratio of each image, in dB."""
    errors = np.square(images.astype(float) - others).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(errors, 1e-3))


def _scale(names: Sequence[str], source: Source, rounds: int) -> Iterator[timing.Row]:
    """Yields images/s of `stream`, and how many times those of one thread or process."""
    ones = {name: name.split("_")[0] + "_1" for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in [*ones.values(), *names]}
    for _ in range(rounds):
        for name, values in speeds.items():
            values.append(_stream_speed(source, **READERS[name]))
    for name, one in ones.items():
        yield {
            "model": name,
            "images_per_s": round(statistics.median(speeds[name]), 1),
            "other_images_per_s": round(statistics.median(speeds[one]), 1),
            **timing.ratios(speeds[name], speeds[one]),
        }


def _stream_speed(source: Source, threads: int = 1, workers: int = 0) -> float:
    """Returns images/s, without the batches that are ready when the processes have started."""
    readers = max(threads, workers)
    first, last = 8 * readers, 24 * readers
    order, spec = Shuffled(len(source), BATCH_SIZE, 0), ImageSpec((224, 224), windows=WINDOWS)
    batches = stream(source, order, spec, range(last), slice(None), workers, threads)
    for _ in range(first):
        next(batches)
    began = time.perf_counter()
    count = sum(len(batch["label"]) for batch in batches)
    return count / (time.perf_counter() - began)
