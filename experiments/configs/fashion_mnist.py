"""Fashion-MNIST, 60,000 pieces of clothing, padded from 28x28 to 32x32.

python -m experiments.train --config=experiments/configs/fashion_mnist.py:lenet5_modern --workdir=runs/fashion_lenet5

20 epochs take about 5 minutes on 2 CPU cores. The test accuracy has not been measured yet.
"""

from ml_collections import ConfigDict

from cnn_research import training


def get_config(model: str = "lenet5_modern") -> ConfigDict:
    config = training.default_config(model, num_classes=10)
    config.duration = "20ep"
    config.log_every = 100
    config.data.update(name="fashion_mnist", num_examples=60_000, channels=1, resize="pad", mean=(0.286,), std=(0.353,))
    config.augmentation.update(flip=True)
    if config.model.get("output") == "rbf":
        config.loss.criterion = "map"
    config.optimizer.update(name="adamw", learning_rate=0.01, weight_decay=0.01)
    return config
