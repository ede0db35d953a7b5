"""Training: a config in, a run's directory out."""

from cnn_research.training.config import default_config
from cnn_research.training.loop import train, train_together
from cnn_research.training.program import Program, make_program
from cnn_research.training.signals import Stopped

__all__ = ["Program", "Stopped", "default_config", "make_program", "train", "train_together"]
