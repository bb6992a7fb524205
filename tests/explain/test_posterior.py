"""Posteriors over the head: their samples, their quadratic forms, and explanations without samples."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pneumo_ray.errors import ModelError
from pneumo_ray.explain import BayesGradCAM, Explanation
from pneumo_ray.explain.posterior import DropoutPosterior, HeadPosterior, LaplacePosterior
from pneumo_ray.explain.zones import zone_operator
from pneumo_ray.model import ModelConfig, PneumoniaNet

K, SIDE, IMAGES = 64, 3, 4
MANY = 200_000


def headed(num_channels: int = K, seed: int = 0, dropout: float = 0.5, scale: float = 1.0) -> PneumoniaNet:
    """A network whose images are its feature maps: only the head is left."""
    with torch.device("meta"):
        net = PneumoniaNet(ModelConfig("resnet18", "none", dropout)).eval()
    net.prefix, net.tail = nn.Identity(), nn.Identity()
    net.classifier = nn.Linear(num_channels, 1)
    generator = torch.Generator().manual_seed(seed)
    net.classifier.weight.data = scale * torch.randn(1, num_channels, generator=generator)
    net.classifier.bias.data = torch.tensor([0.2])
    return net


def features(num_channels: int = K, seed: int = 1) -> Tensor:
    """Feature maps as a trunk ends with them: not negative, few large."""
    drawn = torch.rand(IMAGES, num_channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return -drawn.log()


def laplace(num_channels: int = K, seed: int = 2, scale: float = 0.3) -> LaplacePosterior:
    generator = torch.Generator().manual_seed(seed)
    return LaplacePosterior(scale * torch.randn(num_channels + 1, num_channels + 1, generator=generator) / 8)


POSTERIORS: dict[str, HeadPosterior] = {"dropout": DropoutPosterior(0.5), "laplace": laplace()}


@pytest.mark.parametrize("name", POSTERIORS)
def test_samples_have_the_covariance_of_the_quadratic_form(name: str) -> None:
    """Sigma from the roots of unit vectors; each entry within 6 standard errors of 200,000 samples."""
    posterior, theta = POSTERIORS[name], torch.cat([headed().classifier.weight[0], torch.tensor([0.2])]).detach()
    drawn = posterior.samples(theta, posterior.draw(MANY, K, torch.Generator().manual_seed(3))).double()
    assert drawn.shape == (MANY, K + 1)
    root = posterior.root(theta, torch.eye(K + 1)).double()
    sigma = root @ root.mT
    assert ((drawn.mean(0) - theta) / (sigma.diagonal() / MANY).sqrt().clamp(min=1e-9)).abs().max() < 6
    centred = drawn - drawn.mean(0)
    scale = (sigma.diagonal()[:, None] * sigma.diagonal()).sqrt()
    error = (centred.mT @ centred / MANY - sigma).abs()
    # sqrt(2) on the diagonal of a normal; masks are bounded and vary less.
    assert (error <= 6 * 2**0.5 * scale / MANY**0.5 + 1e-9).all()


def test_features_without_a_bias_have_its_weight_0() -> None:
    theta, x = torch.randn(K + 1), torch.randn(5, K)
    for posterior in POSTERIORS.values():
        padded = torch.cat([x, torch.zeros(5, 1)], 1)
        torch.testing.assert_close(posterior.root(theta, x), posterior.root(theta, padded))


def explained(net: PneumoniaNet, maps: Tensor, passes: int | str, **options) -> Explanation:
    engine = BayesGradCAM(net, passes, temperature=1.7, intercept=-0.3, **options)  # type: ignore[arg-type]
    return engine.explain_maps(maps, (48, 48), "pneumonia")


MEASURES = ("logit_mean", "logit_std", "prob_mean", "prob_std", "entropy", "expected_entropy", "cam_mean", "cam_std",
            "zone_mean", "zone_std")  # fmt: skip


def largest_error(found: Explanation, expected: Explanation, name: str) -> float:
    """The largest difference, as a share of the measure's largest value."""
    a, b = getattr(found, name).double(), getattr(expected, name).double()
    return float((a - b).abs().max() / b.abs().max())


def test_exact_laplace_is_the_limit_of_its_samples() -> None:
    """Cells, zones, logit and probability of 200,000 passes: nothing is approximated but by sampling."""
    net, maps, posterior = headed(scale=0.3), features(), laplace()
    sampled = explained(net, maps, MANY, posterior=posterior)
    exact = explained(net, maps, "exact", posterior=posterior)
    for name in MEASURES:
        assert largest_error(exact, sampled, name) < 0.01, name
    assert sampled.cam_exact_var is not None
    assert exact.cam_exact_var is not None
    torch.testing.assert_close(exact.cam_exact_var, sampled.cam_exact_var)


def masked(net: PneumoniaNet, maps: Tensor, passes: int, seed: int) -> Explanation:
    """The explanation under independent masks: groups of Latin hypercubes of this size would take minutes to sort."""
    engine = BayesGradCAM(net, 2, temperature=1.7, intercept=-0.3)
    generator = torch.Generator().manual_seed(seed)
    engine.masks = [2 * torch.randint(0, 2, (passes, maps.shape[1]), generator=generator).float()]
    return engine.explain_maps(maps, (48, 48), "pneumonia")


@pytest.mark.parametrize(("num_channels", "passes", "bound"), [(512, 40_000, 0.015), (2048, 10_000, 0.02)])
def test_exact_dropout_errs_by_little(num_channels: int, passes: int, bound: float) -> None:
    """A sum over channels is nearly normal; a deviation of n masks is itself known to 1 / sqrt(2 n) only."""
    net, maps = headed(num_channels, scale=2 * num_channels**-0.5), features(num_channels)[:2]
    sampled, exact = masked(net, maps, passes, 5), explained(net, maps, "exact")
    for name in MEASURES:
        assert largest_error(exact, sampled, name) < bound, name


def test_exact_knows_a_deviation_better_than_twenty_passes() -> None:
    """The deviation of a logit is a sum over channels, and known in full."""
    net, maps = headed(512, scale=0.1), features(512)
    pooled = maps.double().mean((2, 3)) * net.classifier.weight.detach().double()
    truth = pooled.square().sum(1).sqrt()
    exact = explained(net, maps, "exact")
    torch.testing.assert_close(exact.logit_std.double(), truth, rtol=1e-5, atol=0.0)
    errors = [masked(net, maps, 20, seed).logit_std / truth - 1 for seed in range(40)]
    assert float(torch.stack(errors).square().mean().sqrt()) > 0.1


def test_exact_draws_no_random_number() -> None:
    """Any seed gives the same bits, and the state of torch's generator is left alone."""
    net, maps = headed(), features()
    state = torch.get_rng_state()
    engines = [BayesGradCAM(net, "exact", seed, posterior=laplace()) for seed in (0, 1)]
    first, second = (engine.explain_maps(maps, (48, 48)) for engine in engines)
    assert torch.equal(torch.get_rng_state(), state)
    assert engines[0].masks == []
    for field in dataclasses.fields(Explanation):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert first.passes == 0
    assert first.zone_groups is None
    assert not first.logit_se.any()


def test_exact_normal_mirrors_pneumonia() -> None:
    net, maps = headed(), features()
    engine = BayesGradCAM(net, "exact")
    ill, well = engine.explain_maps(maps, (48, 48), "pneumonia"), engine.explain_maps(maps, (48, 48), "normal")
    torch.testing.assert_close(ill.cam_mean - well.cam_mean, ill.cam_signed)  # relu(S) - relu(-S) = S
    assert torch.equal(ill.prob_mean, well.prob_mean)


def test_exact_zones_may_differ_by_image_and_lack() -> None:
    """A zone that an image lacks is NaN, and only that one."""
    net, maps = headed(), features()
    zones = zone_operator((SIDE, SIDE), (48, 48)).repeat(IMAGES, 1, 1)
    zones[1, 2] = torch.nan
    e = BayesGradCAM(net, "exact").explain_maps(maps, (48, 48), zones=zones)
    whole = BayesGradCAM(net, "exact").explain_maps(maps, (48, 48))
    missing = torch.zeros(IMAGES, 6, dtype=torch.bool)
    missing[1, 2] = True
    for found, expected in ((e.zone_mean, whole.zone_mean), (e.zone_std, whole.zone_std)):
        assert torch.equal(found.isnan(), missing)
        torch.testing.assert_close(found[~missing], expected[~missing])


def test_logits_of_passes_are_those_of_laplace_samples() -> None:
    net, maps, posterior = headed(), features(), laplace()
    engine = BayesGradCAM(net, 7, seed=4, posterior=posterior)
    e = engine.explain_maps(maps, (48, 48), "pneumonia")
    theta = torch.cat([net.classifier.weight[0], net.classifier.bias]).detach()
    samples = theta + torch.randn(7, K + 1, generator=torch.Generator().manual_seed(4)) @ posterior.factor.mT
    logits = torch.cat([maps.mean((2, 3)), torch.ones(IMAGES, 1)], 1) @ samples.mT
    torch.testing.assert_close(e.logit_mean, logits.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e.logit_std, logits.std(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine.logits(maps)[:, 1:], logits, rtol=1e-4, atol=1e-5)


def test_laplace_needs_no_dropout_and_no_site() -> None:
    with torch.device("meta"):
        tail = PneumoniaNet(ModelConfig("resnet18", "none", 0.5, "tail"))
    tail.prefix, tail.tail, tail.classifier = nn.Identity(), nn.Identity(), headed().classifier
    for net in (headed(dropout=0.0), tail):
        e = BayesGradCAM(net, posterior=laplace()).explain_maps(features(), (48, 48))
        assert e.passes == 200
        assert (e.logit_std > 0).all()


def test_what_a_posterior_cannot_do_is_refused() -> None:
    with pytest.raises(ModelError, match="64 channels and the network has 32"):
        BayesGradCAM(headed(32), posterior=laplace())
    with pytest.raises(ModelError, match="square matrix of finite numbers"):
        LaplacePosterior(torch.ones(3, 2))
    with pytest.raises(ModelError, match="square matrix of finite numbers"):
        LaplacePosterior(torch.full((3, 3), torch.nan))
    with pytest.raises(ModelError, match="no dropout to sample"):
        BayesGradCAM(headed(dropout=0.0), "exact")
    with torch.device("meta"):
        tail = PneumoniaNet(ModelConfig("resnet18", "none", 0.5, "tail"))
    with pytest.raises(ModelError, match="exact needs a posterior over the head"):
        BayesGradCAM(tail, "exact")


def test_an_exact_variance_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is bitwise the same, and nothing is multiplied with the Laplace factor for it."""
    posterior = laplace()
    whole = BayesGradCAM(headed(), 20, posterior=posterior)(features())
    monkeypatch.setattr(posterior, "root", lambda *_: pytest.fail("the variance was computed"))
    less = BayesGradCAM(headed(), 20, posterior=posterior, exact_var=False)(features())
    assert whole.cam_exact_var is not None
    for field in dataclasses.fields(Explanation):
        one, other = getattr(whole, field.name), getattr(less, field.name)
        if field.name.startswith("cam_exact"):
            assert other is None
        elif isinstance(one, Tensor):
            assert torch.equal(one, other), field.name
