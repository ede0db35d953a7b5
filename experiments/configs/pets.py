"""Oxford-IIIT Pet, 7,349 photographs of cats and dogs: each pixel is the pet, the background, or the border of both.

python -m experiments.prepare_data --dataset=oxford_iiit_pet
python -m experiments.train --config=experiments/configs/pets.py:unet --workdir=runs/pets_unet

The argument is a network that labels pixels, in a body small enough for two CPU cores.

Meant for 2 CPU cores, at 96x96 pixels and about 60 minutes; the mean IoU is not yet measured.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import training

SMALL: dict[str, dict[str, Any]] = {
    "fcn": dict(body="resnet20_cifar", norm="batch", hidden=(), kernel_init="he_normal"),
    "deconvnet": dict(configuration="B", stages=4, width=0.25, hidden=(), kernel_init="he_normal"),
    "unet": dict(padding="same", norm="batch", width=0.25, dropout_rate=0.0),
}


def get_config(model: str = "unet") -> ConfigDict:
    fields = next((fields for family, fields in SMALL.items() if model.startswith(family)), {})
    config = training.default_config(model, task="segmentation", num_classes=3, **fields)
    config.batch_size = 32
    config.eval_batch_size = 100
    config.data.update(name="oxford_iiit_pet", num_examples=3_680, image_size=(96, 96), resize="pad")
    config.data.update(class_names=("pet", "background", "border"), mask_values=(1, 2, 3))
    config.data.update(mean=(0.48, 0.45, 0.4), std=(0.27, 0.27, 0.27))
    config.augmentation.update(flip=True, random_resized_crop=(0.5, 1.0), brightness=0.2, contrast=0.2)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
