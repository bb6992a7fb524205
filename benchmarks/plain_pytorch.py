"""A plain PyTorch script for comparison: ImageFolder, torchvision transforms, WeightedRandomSampler, DataLoader.

Run as `python -m benchmarks.plain_pytorch FOLDER ARCH SIZE STEPS`; prints images per second after a warm-up.
"""

import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from torchvision import models, transforms
from torchvision.datasets import ImageFolder


def main(folder: str, arch: str, size: int, steps: int, batch: int = 64, warm_up: int = 3) -> float:
    """Train for some steps and return the rate in images per second."""
    pipeline = transforms.Compose(
        [
            transforms.Resize((size * 256 // 224, size * 256 // 224)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(0.9, 1 / 0.9)),
            transforms.ColorJitter(0.2, 0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = ImageFolder(folder, pipeline)
    counts = torch.bincount(torch.tensor(data.targets))
    weights = (1.0 / counts)[torch.tensor(data.targets)]
    sampler = WeightedRandomSampler(weights.tolist(), (steps + warm_up) * batch)
    loader = DataLoader(data, batch, sampler=sampler, num_workers=2, drop_last=True)
    net = models.get_model(arch, weights=None)
    net.fc = nn.Linear(net.fc.in_features, 1)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    loss_function = nn.BCEWithLogitsLoss()
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == warm_up:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images.to(memory_format=torch.channels_last)).squeeze(1)
        loss = loss_function(logits.float(), labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
