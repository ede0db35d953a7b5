"""Examples that cannot be decoded: they end a run in a line that names them, or are left out, named and counted."""

import dataclasses
import io
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_research import analysis, training
from cnn_research.data.batches import decoded, load, load_all, load_step, present
from cnn_research.data.corruption import Corruption, corrupted
from cnn_research.data.images import ImageSpec, MaskSpec
from cnn_research.data.order import Sequential, Shuffled
from cnn_research.data.proposals import open_proposals
from cnn_research.data.propose import search_split
from cnn_research.data.selective_search import SelectiveSearch
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.tasks import Classification
from cnn_research.training.evaluation import Evaluator
from cnn_research.training.feed import abstract_feed, eval_spec, make_feed, train_spec
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import make_program
from cnn_research.training.step import gather
from experiments import hog_svm

JPEG = cv2.imencode(".jpg", np.full((40, 40, 3), 128, np.uint8))[1].tobytes()
BROKEN = {("train", 0): b"", ("train", 5): b"\x89PNG garbage", ("test", 0): JPEG[:20], ("test", 3): b"no image"}
BROKEN_MASK = ("test", 7)
SPEC = ImageSpec((16, 16), 3, skip_corrupt=True)
MASKED = dataclasses.replace(SPEC, masks=MaskSpec("segmentation_mask", 4))


class Scarred(tfds.core.GeneratorBasedBuilder):
    """Images of noise, PNG and JPEG, with targets of all kinds; the images of `BROKEN` and a mask are none."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=4)}
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train", 24), "test": self._generate_examples("test", 10)}

    def _generate_examples(self, split, count):
        draws = np.random.default_rng(0)
        for index in range(count):
            pixels, classes = draws.integers(0, 256, (20, 24, 3), np.uint8), draws.integers(0, 4, (20, 24), np.uint8)
            image = cv2.imencode((".png", ".jpg")[index % 2], pixels)[1].tobytes()
            mask = b"no mask" if (split, index) == BROKEN_MASK else cv2.imencode(".png", classes)[1].tobytes()
            boxes = [{"bbox": tfds.features.BBox(0.1, 0.2, 0.6, 0.7), "label": index % 4}]
            yield (
                index,
                {
                    "image": io.BytesIO(BROKEN.get((split, index), image)),
                    "label": index % 4,
                    "segmentation_mask": io.BytesIO(mask),
                    "objects": boxes,
                },
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Scarred(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


@pytest.fixture
def config(folder):
    config = training.default_config("mlp", num_classes=4)
    config.data.update(name=folder, image_size=(16, 16), skip_corrupt=True)
    config.update(duration="8", batch_size=8, log_every=3, eval_every="4", checkpoint_every="4", tensorboard=False)
    return config


def train(config, workdir):
    return training.train(config, workdir, jax.devices()[:1])


@pytest.mark.parametrize("resident", ["on", "off"])
def test_without_the_flag_the_example_is_named(config, tmp_path, resident):
    config.data.update(resident=resident, skip_corrupt=False)
    fault = "an image cannot be decoded; .*; --config.data.skip_corrupt leaves such examples out"
    with pytest.raises(UserError, match=rf"^example [05] of .*scarred/1.0.0, split train: {fault}"):
        train(config, tmp_path / "train")
    config.data.train = "train[6:]"
    with pytest.raises(UserError, match=rf"^example 0 of .*scarred/1.0.0, split test: {fault}"):
        train(config, tmp_path / "test")


def steps_with(lost, start, stop, order):
    return sum(int(np.isin(order(step)[0], lost).sum()) for step in range(start, stop))


@pytest.mark.parametrize("resident", ["on", "off"])
def test_with_it_the_run_ends_and_says_what_it_skipped(config, tmp_path, capsys, resident):
    config.data.resident = resident
    result = train(config, tmp_path / "run")
    expected = steps_with([0, 5], 0, 8, Shuffled(24, 8, config.seed))
    assert expected > 4
    assert (result["train/skipped"], result["test/skipped"], result["test/examples"]) == (expected, 2, 8)
    said = capsys.readouterr().err
    for index, split in ((0, "train"), (5, "train"), (0, "test"), (3, "test")):
        assert said.count(f"skips example {index} of {config.data.name}, split {split}: it cannot be decoded") == 1
    assert said.count("skips") == 4
    assert f"examples that cannot be decoded were skipped: test/skipped 2  train/skipped {expected}\n" in said
    # Killed in the middle it counts on; and evaluation says it, too.
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    again = train(config, tmp_path / "run")
    assert {name: again[name] for name in result if "second" not in name} == {
        name: result[name] for name in result if "second" not in name
    }
    run = analysis.load_run(tmp_path / "run")
    assert run.evaluate() == {name.removeprefix("test/"): value for name, value in result.items() if "test/" in name}
    assert run.evaluate("train")["skipped"] == 2


def test_where_examples_lie_and_in_how_many_programs_changes_nothing(config, tmp_path):
    config.augmentation.update(mixup=0.2, pad_crop=2)
    results = []
    for resident, parallel in (("on", "jit"), ("off", "jit"), ("off", "pmap")):
        config.data.resident, config.parallel = resident, parallel
        results.append(training.train(config, tmp_path / f"{resident}{parallel}"))
    for name, value in results[0].items():
        if "second" not in name:
            assert results[1][name] == value
            assert results[2][name] == pytest.approx(value, rel=1e-4), name


def test_a_run_that_stopped_at_a_corrupt_image_goes_on_with_the_flag(config, tmp_path):
    """And ends as if it had had the flag from the start: until there it changes nothing."""
    config.update(batch_size=1, checkpoint_every="1", eval_every="100", seed=3)
    config.data.update(resident="off", test="test[8:]")
    first = next(step for step in range(8) if Shuffled(24, 1, 3)(step)[0][0] in (0, 5))
    assert first > 1
    result = train(config, tmp_path / "with")
    config.data.skip_corrupt = False
    with pytest.raises(UserError, match=r"example [05] of"):
        train(config, tmp_path / "first_without")
    assert analysis.load_run(tmp_path / "first_without").step <= first
    config.data.skip_corrupt = True
    again = train(config, tmp_path / "first_without")
    assert {**again, "seconds": 0, "images_per_second": 0} == {**result, "seconds": 0, "images_per_second": 0}


def test_a_skipped_example_has_no_targets(folder):
    source = open_source(folder, "test")
    everything = dataclasses.replace(MASKED, max_objects=3, masks=dataclasses.replace(MASKED.masks, borders=True))
    batch = load(source, np.arange(10), np.arange(10) != 9, everything)
    assert batch["example_mask"].tolist() == [index not in (0, 3, 7, 9) for index in range(10)]
    for row in (0, 3, 7):
        assert not batch["image"][row].any()
        assert (batch["segmentation_mask"][row] == 255).all()
        assert np.isinf(batch["border_distance"][row]).all()
        assert not batch["objects/valid"][row].any()
    assert batch["objects/valid"].any(axis=1).tolist() == [index not in (0, 3, 7) for index in range(10)]
    whole = load(source, np.array([1, 2, 4, 5, 6, 8]), np.ones(6, bool), everything)
    kept = present(batch)
    for name in whole:
        np.testing.assert_array_equal(kept[name], whole[name])
    assert load(source, np.array([7]), np.ones(1, bool), SPEC)["example_mask"].all()  # whose mask nobody reads


def test_other_faults_of_an_example_are_not_skipped(folder):
    source = open_source(folder, "test")
    with pytest.raises(UserError, match=r"example 1 of .*, split test: a mask has the value 3"):
        load(source, np.arange(2), np.ones(2, bool), dataclasses.replace(SPEC, masks=MaskSpec("segmentation_mask", 3)))


def test_a_jpeg_file_that_lies_about_its_size_is_corrupt():
    """Two headers: the decoder goes by the other one, or by none."""
    start = JPEG.index(b"\xff\xc0")
    lie = JPEG[:start] + b"\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00" + JPEG[start:]
    examples = [{"image": lie, "label": 1}]
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=4)}
    )
    source = dataclasses.replace(open_source("digits", "test"), examples=InMemory(examples), features=features)
    assert not load(source, np.array([0]), np.ones(1, bool), SPEC)["example_mask"].any()


class InMemory(list):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_the_loss_is_that_of_the_others(folder, config):
    batch = load(open_source(folder, "train"), np.arange(8), np.ones(8, bool), SPEC)
    config.data.num_examples = 24
    program = make_program(config)
    variables = program.init_variables()

    def loss(batch):
        batch = program.preprocessing.test(jax.tree.map(jnp.asarray, batch))
        terms, aux = Classification().loss(program.model, variables, batch, jax.random.key(0), train=False)
        return terms["loss"], aux["metrics"]["accuracy"]

    np.testing.assert_allclose(loss(batch), loss(present(batch)), rtol=1e-6)
    assert loss(batch)[0][1] == 6


@pytest.mark.parametrize("resident", ["on", "off"])
def test_average_precision_counts_no_truth_of_what_is_skipped(folder, resident):
    config = training.default_config("yolo", num_classes=4, width=0.05, hidden=(8,))
    config.data.update(name=folder, image_size=(64, 64), skip_corrupt=True, resident=resident, num_examples=24)
    config.eval_batch_size = 4
    program, parallel, source = make_program(config), make_parallel("jit"), open_source(folder, "test")
    evaluator = Evaluator(program.model, program.task, program.preprocessing, source, config, parallel)
    measured = evaluator.measure(parallel.replicate(program.init_variables()))
    assert [int(record["index"]) for record in measured] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert all(len(record["true/boxes"]) == 1 for record in measured)
    assert evaluator.summarize(measured)["skipped"] == 2


def test_the_plan_knows_what_the_step_takes(config):
    source, parallel = open_source(config.data.name, "train"), make_parallel("jit")
    config.data.num_examples = 24
    for resident in ("on", "off"):
        config.data.resident = resident
        feed = make_feed(source, Shuffled(24, 8, 0), config.data, parallel, train_spec(config))
        [batch] = feed(0, 1)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (batch, feed.data)) == jax.tree.map(
            lambda x: (x.shape, x.dtype), abstract_feed(config, parallel)
        )
        examples = gather(batch, feed.data)
        assert examples["example_mask"].tolist() == (~np.isin(feed.order(0)[0], (0, 5))).tolist()


def test_each_process_skips_what_the_whole_does(folder):
    source, order = open_source(folder, "test"), Sequential(10, 8)
    for step in (0, 1):
        whole = load_step(source, order, MASKED, slice(None), step)
        parts = [load_step(source, order, MASKED, slice(begin, begin + 4), step) for begin in (0, 4)]
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))
    assert load_all(source, MASKED)["example_mask"].tolist() == [index not in (0, 3, 7) for index in range(10)]


def test_workers_skip_as_threads_do(config, capfd):
    source, parallel = open_source(config.data.name, "test"), make_parallel("jit")
    config.data.update(resident="off", workers=1)
    feed = make_feed(source, Sequential(10, 8), config.data, parallel, eval_spec(config))
    masks = np.concatenate([batch["example_mask"] for _ in range(2) for batch in feed(0, 2)])
    assert masks.tolist() == 2 * [index not in (0, 3, *range(10, 16)) for index in range(16)]
    assert feed.skipped == {0, 3}
    assert capfd.readouterr().err.count("skips example") == 2


def test_examples_at_their_own_size(folder):
    source = open_source(folder, "test")
    found = list(decoded(source, range(5, 10), MASKED))
    assert [index for index, _, _ in found] == [5, 6, 8, 9]
    assert {image.shape for _, image, _ in found} == {(20, 24, 3)}
    assert {example["segmentation_mask"].shape for _, _, example in found} == {(20, 24, 1)}
    with pytest.raises(UserError, match=r"^example 7 of .*, split test: an image cannot be decoded"):
        list(decoded(source, range(5, 10), dataclasses.replace(MASKED, skip_corrupt=False)))


def test_noise_is_added_to_what_can_be_decoded(folder):
    source = corrupted(open_source(folder, "test"), Corruption("gaussian_noise", 3))
    assert load_all(source, SPEC)["example_mask"].tolist() == [index not in (0, 3) for index in range(10)]
    with pytest.raises(UserError, match=r"^example 0 of .*, split test: an image cannot be decoded"):
        load_all(source, dataclasses.replace(SPEC, skip_corrupt=False))


def test_proposals_of_what_can_be_decoded(folder, tmp_path):
    source = open_source(folder, "test")
    wanted = open_proposals("scarred", SelectiveSearch(), 5, str(tmp_path))
    with pytest.raises(UserError, match=r"^example [03] of .*, split test: .*; --skip_corrupt leaves such images out"):
        list(search_split(source, wanted))
    assert list(search_split(source, wanted, skip_corrupt=True)) == [10]
    batch = load(source, np.arange(10), np.ones(10, bool), dataclasses.replace(SPEC, max_objects=1, proposals=wanted))
    assert batch["example_mask"].tolist() == [index not in (0, 3) for index in range(10)]
    assert batch["proposals"].any(axis=(1, 2)).tolist() == batch["example_mask"].tolist()


def test_histograms_of_what_can_be_decoded(folder, config, capsys):
    source = open_source(folder, "test")
    descriptors, labels = hog_svm.describe(source, np.arange(10), config, hog_svm.Hog((16, 16), 8))
    assert (len(descriptors), labels.tolist()) == (8, [1, 2, 0, 1, 2, 3, 0, 1])
    assert "test: skips what cannot be decoded: 0, 3" in capsys.readouterr().err
