"""A network of others, as a user has it in a file beside the weights."""

import torch
from torch import nn

from pneumo_ray.model import Preprocessing
from pneumo_ray.model.calibrated import Calibration
from pneumo_ray.score.foreign import ForeignModel


def bare():
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(3, 6, 5, 8), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(maps, nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(6 * 64, 4), nn.Tanh(), nn.Linear(4, 2))


def whole():
    return ForeignModel(bare(), Preprocessing(64, 73), Calibration(2.0, 0.5), threshold=0.4)


def nothing():
    return {"weights": 1}
