"""DSB 2018, 320 images of nuclei under microscopes, 256x256: each nucleus with its mask, one to a hundred an image.

python -m experiments.train --config=experiments/configs/nuclei.py:mask_rcnn --workdir=runs/nuclei_mask_rcnn

The set is any directory `dsb2018_nuclei` in one of the folders that `CNN_RESEARCH_DATA_DIRS` lists, with `objects/`
`bbox` and `label` and an `instance_mask`, 0 or the number of the object that a pixel shows; its splits train and val
have 256 and 64 images (Caicedo et al. 2019, doi:10.1038/s41592-019-0612-7). Training sees random quarters of them. The
body is a ResNet-20 with a feature pyramid, small enough for two CPU cores, and learns from scratch. AP50 is COCO's
average precision at an IoU of 0.5, and AP its mean over thresholds.

Measured on 2 CPU cores, seed 0:

    mask_rcnn  masks: 87.1% AP50, 59.7% AP; boxes: 87.8% AP50, 58.3% AP  7 min 6 s
"""

from ml_collections import ConfigDict

from cnn_research import training


def get_config(model: str = "mask_rcnn") -> ConfigDict:
    # Half of the nuclei are from 10 to 18 pixels wide, one in twenty less than 6, one in a hundred more than 30.
    config = training.default_config(
        model,
        num_classes=2,
        body="resnet20_cifar",
        strides=(2, 4),
        neck="fpn",
        fpn_features=48,
        norm="batch",
        anchor_sizes=(9.0, 18.0, 36.0),
        anchor_ratios=(0.7, 1.4),
        rpn_features=48,
        candidates=(300, 400),
        proposals=(192, 192),
        region_size=5,
        hidden=(128,),
        mask_features=(48, 48),
        mask_size=8,
    )
    config.duration = "20ep"
    config.batch_size = 16
    config.eval_batch_size = 8
    config.eval_every = "10ep"
    config.checkpoint_every = "10ep"
    config.data.update(name="dsb2018_nuclei", test="val", num_examples=256, image_size=(256, 256))
    config.data.update(crop_size=(128, 128), max_objects=110, mean=(0.05,), std=(0.08,))
    config.augmentation.update(dihedral=True, brightness=0.5, contrast=0.3)
    config.loss.update(anchors_drawn=128, regions_drawn=64, positives=0.5, max_detections=150)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
