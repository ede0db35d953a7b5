"""ImageNet (ILSVRC 2012), 1,281,167 photographs of 1,000 classes: the networks' own recipes, and one of today for all.

python -m experiments.prepare_data --dataset=imagenet2012 --manual_dir=FOLDER_OF_THE_ARCHIVES
python -m experiments.train --config=experiments/configs/imagenet.py:resnet50 --workdir=runs/imagenet_resnet50
python -m experiments.train --config=experiments/configs/imagenet.py:vgg16,modern --workdir=runs/imagenet_vgg16

The argument is a network, and after a comma its recipe: `paper`, if none is given, or `modern`. The network sees a
window: in evaluation the middle of a photograph whose shorter side is 256 pixels, in training a random one of the whole
photograph, or, where the recipe says `DEVICE`, of its middle, 256x256.

None of this has been run here. To expect are, for `paper`, the published top-1 / top-5 errors in %:

    alexnet 40.7 / 18.2 (10 windows; 5 to 6 days on two GTX 580); torchvision's alexnet_owt 43.48 / 20.93
    vgg11 29.6 / 10.4, vgg11_lrn 29.7 / 10.5, vgg13 28.7 / 9.9, vgg16_1x1 28.1 / 9.4, vgg16 27.0 / 8.8 and vgg19
        27.3 / 9.0, over the whole photograph and its mirror image (2 to 3 weeks on four Titan Black)
    nin_imagenet 40.64 top-1 (4 to 5 days on a GTX Titan)
    googlenet 31.3 / 11.1, which is BVLC's, without the changes of scale and colour, and after 60 epochs of another
        schedule; googlenet_bn: torchvision's weights, which came from elsewhere, have 30.22 / 10.47
    resnet18, 34, 50, 101 and 152: torchvision's 30.24, 26.69, 23.87, 22.63 and 21.69 top-1; the paper's, from resnet34
        on and with 10 windows, 24.52, 22.85, 21.75 and 21.43

Nobody has published `modern` as it stands here. For resnet50 "Bag of tricks" reaches 79.29% accuracy, with a changed
stem, changed shortcuts and a teacher besides, and "ResNet strikes back" 80.4%, in 600 epochs with another optimizer.
On one device 1,024 images a step may want `--config.accumulate=8`.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import models, training
from cnn_research.errors import UserError, nearest

# Of the training set's pixels, as torchvision has them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Recipe = tuple[dict[str, Any], dict[str, Any]]  # fields of the network, and of the rest of the config

SGD = dict(name="sgd", momentum=0.9, schedule="step", factor=0.1, warmup="0")

# GoogLeNet, section 6: what worked very well "after the competition".
WINDOWS = dict(random_resized_crop=(0.08, 1.0), aspect_ratio=(3 / 4, 4 / 3))
DEVICE = dict(crop_on="device")

# By the beginning of the network's name, the first that fits.
PAPER: dict[str, Recipe] = {
    # "One weird trick" trained on many GPUs; this is torchvision's, whose network it is (references/classification).
    "alexnet_owt": (
        {},
        dict(
            batch_size=256,
            duration="90ep",
            augmentation=WINDOWS,
            optimizer=SGD | dict(learning_rate=0.01, milestones=("30ep", "60ep"), weight_decay=1e-4),
        ),
    ),
    # Section 5. The rate fell three times, whenever the validation error stood still; when is not said, here evenly.
    # Section 2: windows of the middle, 256x256. Section 4.1 also shifts colours along their principal components, which
    # this does not.
    "alexnet": (
        {},
        dict(
            data=DEVICE,
            batch_size=128,
            duration="90ep",
            optimizer=SGD | dict(learning_rate=0.01, milestones=("25%", "50%", "75%"), weight_decay=5e-4),
        ),
    ),
    # Section 3.1, at the one scale of 256; the best networks were tuned further at several, which is
    # `--config.data.short_side=(256,512)`. The rate and the colours as with AlexNet. Its deep networks began with the
    # layers of a shallow one; these begin as it found possible later.
    "vgg": (
        {},
        dict(
            batch_size=256,
            duration="370000",
            optimizer=SGD | dict(learning_rate=0.01, milestones=("25%", "50%", "75%"), weight_decay=5e-4),
        ),
    ),
    # The authors' published definition, https://gist.github.com/mavenlin/d802a5849de39225bcc6; the paper has none. It
    # cuts windows out of images that are stored at one size, as Caffe does.
    "nin_imagenet": (
        {},
        dict(
            data=DEVICE,
            batch_size=64,
            duration="450000",
            optimizer=SGD | dict(learning_rate=0.01, milestones=("200000", "400000"), weight_decay=5e-4),
        ),
    ),
    # BN-x5 of Ioffe & Szegedy 2015, arXiv:1502.03167, section 4.2, on torchvision's network, whose weights came from
    # another library: a rate of 0.0075 that falls six times as fast as GoogLeNet's, a fifth of its weight decay, no
    # dropout, and less change of colours, by how much is not said (here half). Theirs reached plain Inception's
    # accuracy after 2.1 million steps, a fourteenth of its; where it ended is not said, here where the rate is at 4%.
    "googlenet_bn": (
        dict(auxiliary_weights=(0.3, 0.3), dropout_rate=0.0, auxiliary_dropout_rate=0.0),
        dict(
            batch_size=32,
            duration="4266667",
            ema=0.9999,
            augmentation=WINDOWS | dict(brightness=0.25, contrast=0.25, saturation=0.25),
            optimizer=SGD
            | dict(
                learning_rate=0.0075,
                factor=0.96,
                milestones=tuple(str(round(320_000 / 6 * fall)) for fall in range(1, 80)),
                weight_decay=4e-5,
            ),
        ),
    ),
    # Section 6: momentum, a rate that falls by 4% every 8 epochs, averaged parameters, and changes of colours as Howard
    # 2013, arXiv:1312.5402, makes them: by up to a half, there in random order; section 5: the auxiliary classifiers.
    # Batch size, first rate, decay and end are those of BVLC's solver.prototxt, in which 8 epochs are 320,000 steps;
    # how far the average reaches back nobody says, here 10,000 steps.
    "googlenet": (
        dict(auxiliary_weights=(0.3, 0.3)),
        dict(
            batch_size=32,
            duration="10000000",
            ema=0.9999,
            augmentation=WINDOWS | dict(brightness=0.5, contrast=0.5, saturation=0.5),
            optimizer=SGD
            | dict(
                learning_rate=0.01,
                factor=0.96,
                milestones=tuple(str(320_000 * fall) for fall in range(1, 32)),
                weight_decay=2e-4,
            ),
        ),
    ),
    # Section 3.4, where the rate falls as the error stands still; the epochs are those of Goyal et al. 2017,
    # arXiv:1706.02677, section 5.1. Colours as with AlexNet.
    "resnet": (
        {},
        dict(
            data=dict(short_side=(256, 480)),
            batch_size=256,
            duration="90ep",
            optimizer=SGD | dict(learning_rate=0.1, milestones=("30ep", "60ep", "80ep"), weight_decay=1e-4),
        ),
    ),
}

# "Bag of tricks for image classification with convolutional neural networks", He et al. 2018, arXiv:1812.01187:
# everything but the two lines that say otherwise, and but its changes of colour.
TODAY: dict[str, Any] = dict(
    batch_size=1024,
    duration="200ep",  # section 5: 120, and 200 with mixup
    ema=0.9999,  # of 10,000 steps, 8 epochs, as in GoogLeNet's successors; the paper averages nothing
    loss=dict(label_smoothing=0.1),
    # cutmix in turns with mixup: "ResNet strikes back", Wightman et al. 2021, arXiv:2110.00476
    augmentation=WINDOWS | dict(mixup=0.2, cutmix=1.0),
    # 0.1 for each 256 examples, rising over 5 epochs; norms and biases do not decay, which is the default
    optimizer=dict(
        name="nesterov", momentum=0.9, learning_rate=0.4, schedule="cosine", warmup="5ep", weight_decay=1e-4
    ),
)
# What that takes: norms, as the rate is too high without (torchvision trains its VGGs with norms at the rate of its
# ResNets), for weights that start by He et al. 2015, arXiv:1502.01852.
NORMED = dict(norm="batch", kernel_init="he_normal")
MODERN: dict[str, Recipe] = {
    "alexnet": (NORMED | dict(lrn=False, initial_bias=0.0), TODAY),
    "vgg": (NORMED, TODAY),
    "nin_imagenet": (NORMED | dict(activate_last=False), TODAY),
    "googlenet": (NORMED | dict(lrn=False), TODAY),
    # The norm at a branch's end starts at 0: "Bag of tricks", section 3.1.
    "resnet": (dict(zero_init_last_norm=True), TODAY),
}


def get_config(model: str = "resnet50") -> ConfigDict:
    name, _, recipe = model.partition(",")
    recipes = {"paper": PAPER, "modern": MODERN}
    recipe = recipe or "paper"
    if recipe not in recipes:
        raise UserError(f"recipe {recipe!r} is not known; {nearest(recipe, recipes)}")
    crop_size = models.input_shape(name)[:2]
    family = next((family for family in recipes[recipe] if name.startswith(family)), None)
    if family is None or min(crop_size) < 224:
        raise UserError(f"{name} was not made for ImageNet; {', '.join(f'{family}*' for family in MODERN)} were")
    fields, settings = recipes[recipe][family]
    config = training.default_config(name, num_classes=1000, **fields)
    config.log_every = 100
    config.data.update(name="imagenet2012", test="validation", num_examples=1_281_167, mean=MEAN, std=STD)
    config.data.update(image_size=(256, 256), crop_size=crop_size, resize="crop", crop_on="host")
    config.augmentation.flip = True
    config.update(settings)
    return config
