"""A plain scoring script for comparison: files, PIL, a DataLoader, one forward pass, a CSV file of probabilities.

Run as `python -m benchmarks.plain_scoring FOLDER MODEL OUT.csv`. It makes no maps, no passes, and no row for a broken file.
"""

import csv
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pneumo_ray.model import load_bundle


class _Files(Dataset[tuple[Tensor, str]]):
    def __init__(self, folder: str) -> None:
        self._paths = sorted(Path(folder).rglob("*.jp*g"))
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self._transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path = self._paths[index]
        return self._transform(Image.open(path).convert("RGB")), str(path)


def main(folder: str, model: str, out: str, batch: int = 16) -> None:
    """Write a probability for every JPEG file below a folder."""
    net = load_bundle(model).model.eval().to(memory_format=torch.channels_last)
    loader = DataLoader(_Files(folder), batch, num_workers=2)
    with open(out, "w", newline="") as sink, torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rows = csv.writer(sink)
        for images, paths in loader:
            probabilities = torch.sigmoid(net(images.to(memory_format=torch.channels_last)).float())
            rows.writerows(zip(paths, probabilities.tolist(), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:4])
