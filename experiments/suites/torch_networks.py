"""The networks of suite `train_step` and a step of their training in PyTorch, layer for layer ours.

Images are [batch, channels, height, width], as PyTorch's layers want them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from cnn_research.models.lenet import c3_inputs, rbf_codes


class ScaledTanh(nn.Module):
    """LeNet-5's squashing function."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies it to each value."""
        return 1.7159 * torch.tanh(2 / 3 * x)


class TrainablePool(nn.Module):
    """The sum of each 2x2 window, times a weight and plus a bias that each channel learns."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-0.6, 0.6))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Pools images."""
        total = functional.avg_pool2d(x, 2, divisor_override=1)
        return total * self.weight[:, None, None] + self.bias[:, None, None]


class PartialConv(nn.Module):
    """A convolution in which each output map sees some of the input maps; only those connections have weights."""

    sources: Tensor
    targets: Tensor

    def __init__(self, channels: int, inputs: Sequence[Sequence[int]], kernel: int):
        super().__init__()
        sources = np.concatenate(inputs)
        targets = np.repeat(np.arange(len(inputs)), [len(maps) for maps in inputs])
        self.register_buffer("sources", torch.from_numpy(sources))
        self.register_buffer("targets", torch.from_numpy(targets))
        self.shape = (len(inputs), channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(len(sources), kernel, kernel).uniform_(-0.02, 0.02))
        self.bias = nn.Parameter(torch.zeros(len(inputs)))

    def forward(self, x: Tensor) -> Tensor:
        """Convolves images."""
        kernel = self.weight.new_zeros(self.shape).index_put((self.targets, self.sources), self.weight)
        return functional.conv2d(x, kernel, self.bias)


class RadialBasis(nn.Module):
    """Minus the squared distances to the digits' bitmaps."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(rbf_codes()))

    def forward(self, x: Tensor) -> Tensor:
        """Compares features with the bitmaps."""
        return -(x.float()[:, None] - self.codes).square().sum(-1)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, or a bottleneck of three; what the shortcut does is option A or B."""

    def __init__(self, channels: int, features: int, strides: int, bottleneck: bool, shortcut: str):
        super().__init__()
        self.strides, self.features = strides, 4 * features if bottleneck else features
        layers = [(3, strides, features), (3, 1, features)]
        if bottleneck:
            layers = [(1, 1, features), (3, strides, features), (1, 1, self.features)]
        branch: list[nn.Module] = []
        last = channels
        for kernel, stride, width in layers:
            branch += [*conv_norm(last, width, kernel, stride), nn.ReLU(inplace=True)]
            last = width
        self.branch = nn.Sequential(*branch[:-1])
        projects = shortcut == "B" and (strides > 1 or channels != self.features)
        self.projection = nn.Sequential(*conv_norm(channels, self.features, 1, strides)) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Adds what the convolutions compute to what the shortcut hands on."""
        if self.projection is not None:
            shortcut = self.projection(x)
        elif self.strides > 1:
            pad = (0, 0, 0, 0, 0, self.features - x.shape[1])
            shortcut = functional.pad(x[:, :, :: self.strides, :: self.strides], pad)
        else:
            shortcut = x
        return functional.relu(self.branch(x) + shortcut, inplace=True)


def conv_norm(channels: int, features: int, kernel: int, strides: int) -> list[nn.Module]:
    """Returns a ResNet's convolution and its norm."""
    conv = nn.Conv2d(channels, features, kernel, strides, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(features)]


def lenet5() -> nn.Module:
    """Returns LeNet-5 as of 1998."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), ScaledTanh(), TrainablePool(6), ScaledTanh(),
        PartialConv(6, c3_inputs(6, 16), 5), ScaledTanh(), TrainablePool(16), ScaledTanh(),
        nn.Conv2d(16, 120, 5), ScaledTanh(), nn.Flatten(),
        nn.Linear(120, 84), ScaledTanh(), RadialBasis(),
    )  # fmt: skip


def vgg11() -> nn.Module:
    """Returns VGG-11 with batch norm for ten classes of 32x32 images, without hidden layers."""
    layers: list[nn.Module] = []
    channels = 3
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for features in stage:
            layers += [
                nn.Conv2d(channels, features, 3, padding=1),
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
            ]
            channels = features
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def nin_cifar() -> nn.Module:
    """Returns Network in Network as published for CIFAR-10."""
    between = {
        1: [nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)],
        2: [nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5)],
        3: [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    }
    layers: list[nn.Module] = []
    channels = 3
    for block, (kernel, widths) in enumerate(((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192, 10))), start=1):
        for size, features in zip((kernel, 1, 1), widths, strict=True):
            layers += [nn.Conv2d(channels, features, size, padding=size // 2), nn.ReLU(inplace=True)]
            channels = features
        layers += between[block]
    return nn.Sequential(*layers)


def resnet(sizes: Sequence[int], bottleneck: bool = False, cifar: bool = False) -> nn.Module:
    """Returns a ResNet for ImageNet's thousand classes, or CIFAR-10's ten.

    Args:
      sizes: blocks of each stage.
      bottleneck: the kind of the blocks.
      cifar: whether it is one of those for 32x32 images.
    """
    features, kernel, strides, shortcut, classes = (16, 3, 1, "A", 10) if cifar else (64, 7, 2, "B", 1000)
    layers = [*conv_norm(3, features, kernel, strides), nn.ReLU(inplace=True)]
    if not cifar:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    channels = features
    for stage, size in enumerate(sizes):
        for index in range(size):
            step = 2 if stage and not index else 1
            block = Block(channels, features * 2**stage, step, bottleneck, shortcut)
            layers.append(block)
            channels = block.features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class UNet(nn.Module):
    """U-Net with padded convolutions and batch norm, for two classes of pixels."""

    def __init__(self, depth: int = 4, features: int = 64, classes: int = 2):
        super().__init__()
        widths = [features * 2**level for level in range(depth + 1)]
        pairs = zip([3, *widths], widths, strict=False)
        self.down = nn.ModuleList([self.level(channels, width) for channels, width in pairs])
        self.up = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(nn.ModuleList([nn.ConvTranspose2d(2 * width, width, 2, 2), self.level(2 * width, width)]))
        self.head = nn.Conv2d(features, classes, 1)

    @staticmethod
    def level(channels: int, features: int) -> nn.Module:
        """Returns the two convolutions of a level, each with its norm and activation."""
        layers = [*conv_norm(channels, features, 3, 1), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, *conv_norm(features, features, 3, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of each pixel."""
        skips = []
        for index, level in enumerate(self.down):
            x = level(functional.max_pool2d(x, 2) if index else x)
            skips.append(x)
        for skip, (raise_, level) in zip(reversed(skips[:-1]), self.up, strict=True):
            x = level(torch.cat([skip, raise_(x)], 1))
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lenet5,
    "nin_cifar": nin_cifar,
    "resnet18": partial(resnet, (2, 2, 2, 2)),
    "resnet20_cifar": partial(resnet, (3, 3, 3), cifar=True),
    "resnet50": partial(resnet, (3, 4, 6, 3), bottleneck=True),
    "unet": UNet,
    "vgg11": vgg11,
}


class Trainer:
    """A network in training on one batch that stays on the device."""

    def __init__(
        self,
        config: ConfigDict,
        batch: dict[str, np.ndarray],
        accelerated: bool = False,
        channels_last: bool = True,
        compiled: bool = False,
    ):
        """Builds the network.

        Args:
          config: of the run that this is compared with.
          batch: `image`, uint8[batch, height, width, channels], and `label` or `segmentation_mask`.
          accelerated: whether to train on a GPU, in bfloat16 where autocast does.
          channels_last: whether images and kernels lie in memory with the channels innermost.
          compiled: whether `torch.compile` compiles normalisation, network and loss.
        """
        self.accelerated = accelerated
        device = "cuda" if accelerated else "cpu"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = NETWORKS[config.model.name]().to(device, memory_format=layout)
        self.images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
        labels = batch["label"] if "label" in batch else batch["segmentation_mask"][..., 0]
        self.labels = torch.from_numpy(labels).to(device, torch.int64)
        (self.mean,), (self.std,) = config.data.mean, config.data.std
        self.loss = functional.cross_entropy
        if config.loss.criterion == "map":
            self.loss = partial(map_loss, rubbish_penalty=config.loss.rubbish_penalty)
        kernels = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim == 1]
        self.optimizer = torch.optim.SGD(
            [{"params": kernels, "weight_decay": config.optimizer.weight_decay}, {"params": others}],
            config.optimizer.learning_rate,
            config.optimizer.momentum,
            fused=True,
        )
        self.objective = torch.compile(self._objective) if compiled else self._objective

    @property
    def params(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def train(self, steps: int) -> None:
        """Takes steps, and waits until they are done."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.objective().backward()
            self.optimizer.step()
        if self.accelerated:
            torch.cuda.synchronize()

    def _objective(self) -> Tensor:
        images = (self.images.float() / 255 - self.mean) / self.std
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.accelerated):
            logits = self.network(images)
        return self.loss(logits.float(), self.labels)


def map_loss(logits: Tensor, labels: Tensor, rubbish_penalty: float) -> Tensor:
    """Returns the mean over a batch of the criterion `map`, see `cnn_research.tasks.classification`."""
    rubbish = logits.new_tensor(-rubbish_penalty)
    normalizer = torch.logaddexp(torch.logsumexp(logits, 1), rubbish)
    return (normalizer - logits.gather(1, labels[:, None])[:, 0]).mean()
