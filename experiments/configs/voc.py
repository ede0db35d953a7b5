"""PASCAL VOC, photographs of 20 kinds of objects with boxes: the detectors' own recipes, and one that learns by heart.

python -m experiments.prepare_data --dataset=voc/2007
python -m experiments.train --config=experiments/configs/voc.py:faster_rcnn --config.init_from=vgg16.pth \
    --config.init_except='head|box|rpn' --workdir=runs/voc_faster_rcnn
python -m experiments.train --config=experiments/configs/voc.py:yolo,overfit --workdir=runs/voc_yolo_overfit

`fast_rcnn` and `rcnn` are given regions, which are made before:

python -m experiments.propose --dataset=voc/2007 --split=train+validation+test

The argument is a network that finds objects, and after a comma its recipe: `paper`, if none is given, or `overfit`.

`paper` is meant for an accelerator and for VOC 2007, of which it learns 5,011 photographs and tests on 4,952. None of
it has been run here. Published AP50, each from a body trained on ImageNet: rcnn 58.5% (AlexNet), fast_rcnn 66.9% and
faster_rcnn 69.9% (VGG-16); with VOC 2012's photographs besides, which this leaves out, yolo 63.4% and fast_yolo 52.7%.
Fast R-CNN's model S, 57.1%, is `--config.model.body=alexnet --config.model.region_size=6`; what faster_rcnn's number
comes from, is `--config.loss.training=alternating --config.duration=240000`.

`overfit` shows that the program can learn VOC: small networks without augmentation learn 70 photographs of 2012 by
heart, from scratch, on two CPU cores. It was measured for yolo alone, in 15 min 36 s with other work beside it.

Measured on 2 CPU cores, seed 0:

    yolo,overfit  96.7% AP50 on the 70 photographs that it learns  about 15 min
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import models, training
from cnn_research.errors import UserError, nearest

CLASSES = 20

# Redmon et al. 2015, arXiv:1506.02640, section 2.2. Darknet's images are in 0..1; its changes of colour, by up to a
# half in HSV, are taken here for those of brightness and saturation.
YOLO_PAPER: dict[str, Any] = dict(
    duration="135ep",
    batch_size=64,
    eval_batch_size=64,
    data=dict(image_size=(448, 448), mean=(0.0,), std=(1.0,)),
    augmentation=dict(scale_jitter=(0.8, 1.2), flip=True, brightness=0.5, saturation=0.5),
    optimizer=dict(learning_rate=0.01, schedule="step", milestones=("75ep", "105ep"), warmup="3ep"),
)
# Girshick 2015, arXiv:1504.08083, section 2.3, and Ren et al. 2015, arXiv:1506.01497, section 3.1.3: the rate falls
# after three quarters. The shorter side is to have 600 pixels: of most photographs, 4 to 3, it has.
RCNN_PAPER: dict[str, Any] = dict(
    batch_size=2,
    eval_batch_size=8,
    data=dict(image_size=(800, 800), resize="fit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    augmentation=dict(flip=True),
    optimizer=dict(learning_rate=0.001, schedule="step", milestones=("75%",), warmup="0"),
)
PAPER: dict[str, dict[str, Any]] = {
    "yolo": YOLO_PAPER,
    "fast_yolo": YOLO_PAPER,
    "fast_rcnn": RCNN_PAPER | dict(duration="40000"),
    "faster_rcnn": RCNN_PAPER | dict(duration="80000", batch_size=1),
    # Girshick et al. 2014, arXiv:1311.2524, sections 2.1 and 2.3: 128 regions a step, in images 500 pixels wide.
    "rcnn": dict(
        duration="50000",
        batch_size=16,
        eval_batch_size=8,
        loss=dict(regions_drawn=8),
        data=dict(image_size=(500, 500), resize="fit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        augmentation=dict(flip=True),
        optimizer=dict(learning_rate=0.001, schedule="step", milestones=("40%", "80%"), warmup="0"),
    ),
    # Simonyan & Zisserman 2014, arXiv:1409.1556, appendix A, which localizes on ImageNet.
    "localizer": dict(
        duration="60ep",
        batch_size=256,
        data=dict(image_size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        augmentation=dict(flip=True),
        optimizer=dict(learning_rate=0.001, schedule="step", milestones=("40ep", "50ep"), warmup="0"),
    ),
}

SMALL_YOLO: dict[str, Any] = dict(body="small", grid=(20, 20), hidden=(), norm="batch", width=0.5)
SMALL_REGIONS: dict[str, Any] = dict(
    body="resnet20_cifar",
    strides=(4,),
    norm="batch",
    region_pool="align",
    region_size=5,
    hidden=(128,),
    dropout_rate=0.0,
    kernel_init="he_normal",
)
SMALL_PROPOSALS: dict[str, Any] = dict(
    anchor_sizes=(16.0, 40.0, 96.0), rpn_features=64, candidates=(300, 300), proposals=(128, 64)
)
SMALL: dict[str, dict[str, Any]] = {
    "yolo": SMALL_YOLO,
    "fast_yolo": SMALL_YOLO,
    "fast_rcnn": SMALL_REGIONS,
    "faster_rcnn": SMALL_REGIONS | SMALL_PROPOSALS,
    "rcnn": dict(
        body="resnet20_cifar",
        width=0.5,
        region_size=32,
        context=2,
        machine_layer="stage3",
        box_layer="stage3",
        norm="batch",
        dropout_rate=0.0,
    ),
    "localizer": dict(body="resnet18", box_layer="stage4", width=0.5, norm="batch", dropout_rate=0.0),
}


def get_config(model: str = "faster_rcnn") -> ConfigDict:
    name, _, recipe = model.partition(",")
    recipe = recipe or "paper"
    if recipe not in ("paper", "overfit"):
        raise UserError(f"recipe {recipe!r} is not known; {nearest(recipe, ['paper', 'overfit'])}")
    if name not in PAPER:
        raise UserError(f"{name} finds no boxes in VOC; {nearest(name, PAPER)}")
    background = models.task(name) in ("region_classification", "region_detection")
    fields = SMALL[name] if recipe == "overfit" else {}
    config = training.default_config(name, num_classes=CLASSES + background, **fields)
    config.data.update(name="voc/2007", train="train+validation", num_examples=5_011)
    if config.task != "localization":
        config.loss.update(inclusive=True)
    config.update(PAPER[name])
    if recipe == "paper":
        config.eval_every = config.checkpoint_every = "10%"
        return config
    config.data.update(name="voc/2012", train="train[:70]", test="train[:70]", num_examples=70, image_size=(160, 160))
    config.data.update(resize="stretch", mean=(0.45,), std=(0.27,))
    config.augmentation.update(scale_jitter=(1.0, 1.0), flip=False, brightness=0.0, saturation=0.0)
    config.update(duration="150ep", batch_size=14, eval_batch_size=14, log_every=10)
    config.eval_every = config.checkpoint_every = "50ep"
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.0, schedule="cosine", warmup="5%")
    if background:
        config.loss.regions_drawn = 64
    if name == "faster_rcnn":
        config.loss.anchors_drawn = 64
    return config
