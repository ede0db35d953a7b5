import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models, training
from cnn_research.data.images import ImageSpec
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError
from cnn_research.training.feed import image_spec, train_spec
from experiments.configs import imagenet

NAMES = [name for name in models.names() if name.startswith(tuple(imagenet.MODERN)) and not name.endswith("_cifar")]


@pytest.mark.parametrize("recipe", ["paper", "modern"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds(name, recipe):
    config = imagenet.get_config(f"{name},{recipe}")
    program = training.make_program(config)
    assert program.image_shape == models.input_shape(name)
    assert program.total_steps > 100_000
    images = jax.ShapeDtypeStruct((2, *program.image_shape), jnp.float32)
    logits, variables = jax.eval_shape(
        lambda images: program.model.init_with_output(jax.random.key(0), images, train=False), images
    )
    assert logits.shape == (2, 1000)
    assert ("batch_stats" in variables) == (recipe == "modern" or name == "googlenet_bn" or name.startswith("resnet"))


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "resnet50", "resnet50,modern"])
def test_training_and_evaluation_give_the_network_its_size(name):
    config = imagenet.get_config(name)
    program = training.make_program(config)

    def batch(spec):
        return {
            "image": jax.ShapeDtypeStruct((4, *spec.size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4,), jnp.int32),
            "example_mask": jax.ShapeDtypeStruct((4,), jnp.bool),
        }

    trained = jax.eval_shape(program.preprocessing.train, batch(train_spec(config)), jax.random.key(0))
    tested = jax.eval_shape(program.preprocessing.test, batch(image_spec(config.data)))
    assert trained["image"].shape == tested["image"].shape == (4, *program.image_shape)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("alexnet", None),
        ("nin_imagenet", None),
        ("alexnet_owt", RandomWindows(0, area=(0.08, 1.0))),
        ("vgg16", RandomWindows(0, short_side=(256, 256))),
        ("googlenet", RandomWindows(0, area=(0.08, 1.0))),
        ("googlenet_bn", RandomWindows(0, area=(0.08, 1.0))),
        ("resnet50", RandomWindows(0, short_side=(256, 480))),
        ("resnet50,modern", RandomWindows(0, area=(0.08, 1.0))),
        ("alexnet,modern", RandomWindows(0, area=(0.08, 1.0))),
    ],
)
def test_windows_are_those_of_the_papers(name, windows):
    config = imagenet.get_config(name)
    spec = train_spec(config)
    assert spec.windows == windows
    assert spec.size == (models.input_shape(name.partition(",")[0])[:2] if windows else (256, 256))
    assert image_spec(config.data) == ImageSpec((256, 256), 3, "crop")
    assert training.make_program(config).preprocessing.augmentation.random_resized_crop == (1.0, 1.0)


def test_paper_is_what_is_meant_where_no_recipe_is_named():
    assert imagenet.get_config("vgg16").to_dict() == imagenet.get_config("vgg16,paper").to_dict()
    assert imagenet.get_config().model.name == "resnet50"


@pytest.mark.parametrize(
    ("name", "epoch", "rate"),
    [
        ("alexnet", 22, 0.01),
        ("alexnet", 89, 1e-5),
        ("vgg16", 18, 0.01),
        ("vgg16", 73, 1e-5),
        ("nin_imagenet", 9, 0.01),
        ("nin_imagenet", 22, 1e-4),
        ("googlenet", 7.9, 0.01),
        ("googlenet", 8.1, 0.0096),
        ("googlenet", 249, 0.01 * 0.96**31),
        ("googlenet_bn", 8.1, 0.0075 * 0.96**6),
        ("resnet50", 29.9, 0.1),
        ("resnet50", 80.1, 1e-4),
        ("resnet50,modern", 5, 0.4),
        ("resnet50,modern", 102.5, 0.2),
    ],
)
def test_rates_by_epoch(name, epoch, rate):
    program = training.make_program(imagenet.get_config(name))
    assert epoch * program.steps_per_epoch < program.total_steps
    np.testing.assert_allclose(program.schedule(round(epoch * program.steps_per_epoch)), rate, rtol=1e-3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("resnet50,papre", "recipe 'papre' is not known; did you mean 'paper'"),
        ("resnet5", "model 'resnet5' is not known"),
        ("lenet5", r"lenet5 was not made for ImageNet; alexnet\*, .*resnet\* were"),
        ("mlp", "mlp was not made"),
        ("resnet20_cifar", "resnet20_cifar was not made"),
        ("nin_cifar,modern", "nin_cifar was not made"),
    ],
)
def test_what_it_is_not_for_is_refused_in_one_line(argument, message):
    with pytest.raises(UserError, match=f"^{message}") as raised:
        imagenet.get_config(argument)
    assert "\n" not in str(raised.value)
