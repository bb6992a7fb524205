import torch

from pneumo_ray.explain.faithfulness import insertion_deletion, parameter_randomisation
from pneumo_ray.model import ModelConfig, PneumoniaNet


def test_insertion_and_deletion_find_the_corner():
    """The score is the contrast of one corner: a map that knows it inserts it first, one that does not, last."""
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, :8:2, :8] = 8.0
    knows = torch.zeros(1, 4, 4)
    knows[0, 0, 0] = 1.0
    blind = 1 - knows

    def score(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, :8, :8].std(dim=(1, 2, 3))

    good = insertion_deletion(score, x, knows, blur_sigma=4.0)
    bad = insertion_deletion(score, x, blind, blur_sigma=4.0)
    assert good[0] > 1.5 * bad[0]
    assert good[1] < 0.7 * bad[1]


def test_curves_run_from_blurred_to_whole():
    x, seen = torch.rand(2, 3, 16, 16), []

    def score(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        return images.sum((1, 2, 3))

    insertion_deletion(score, x, torch.rand(2, 4, 4), steps=5, blur_sigma=2.0)
    assert torch.equal(seen[1], x)  # deletion begins with the image
    assert torch.equal(seen[-2], x)  # insertion ends with it
    assert torch.equal(seen[0], seen[-1])  # and both meet the blurred one
    assert not torch.equal(seen[0], x)


def test_randomising_changes_maps_and_restores_the_network():
    torch.manual_seed(0)
    net = PneumoniaNet(ModelConfig(arch="resnet18", weights="none")).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    stages = parameter_randomisation(net, torch.randn(4, 3, 96, 96), seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    names = [name for name, _ in stages]
    assert names[0] == "nothing"
    assert "classifier" in names[1]
    assert names[-1] == "prefix.conv1"
    assert stages[0][1] == 1.0
    assert all(abs(similarity) < 0.9 for _, similarity in stages[1:])
    assert abs(stages[-1][1]) < 0.6
