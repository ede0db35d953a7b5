"""Handwritten digits, 8x8, the embedded set (scikit-learn's 1,797): the first run.

python -m experiments.train --config=experiments/configs/digits.py:lenet5 --workdir=runs/digits_lenet5

40 epochs with shifts by up to 2 pixels; the test split has 360 images.

Measured on 2 CPU cores, seed 0:

    lenet5  98.6% accuracy (98.3 to 98.9% with seeds 0 to 2)  14 s
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from cnn_research import training


def sweep_since_1998() -> Iterator[dict[str, object]]:
    """What changed between LeNet-5 as published and as it is built today, one change after the other; three seeds."""
    network: dict[str, object] = {}
    changes: tuple[dict[str, object], ...] = (
        {},
        {"model.output": "softmax", "loss.criterion": "cross_entropy"},
        {"model.c3": "dense"},
        {"model.pool": "max"},
        {"model.activation": "relu"},
    )
    for change in changes:
        network |= change
        for seed in range(3):
            yield {**network, "seed": seed}


def sweep_sharing() -> Iterator[dict[str, object]]:
    """What local perception and shared weights are worth: LeNets with both, one and neither, and a perceptron."""
    for seed in range(3):
        for sharing in ("convolution", "local", "dense"):
            yield {"config": "lenet5_modern", "model.sharing": sharing, "seed": seed}
        yield {"config": "mlp", "seed": seed}


def get_config(model: str = "lenet5") -> ConfigDict:
    config = training.default_config(model, num_classes=10)
    config.duration = "40ep"
    config.batch_size = 64
    config.log_every = 100
    config.eval_every = config.checkpoint_every = "10ep"
    config.data.update(name="digits", num_examples=1_437, channels=1, mean=(0.3,), std=(0.38,))
    config.augmentation.update(pad_crop=2)
    if config.model.get("output") == "rbf":
        config.loss.criterion = "map"
    config.optimizer.update(name="adamw", learning_rate=0.01, weight_decay=0.01)
    return config
