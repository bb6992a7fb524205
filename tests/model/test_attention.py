"""Attention against torchvision's, and keys that are dropped before its softmax."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import ready, smallest_images
from torch import Tensor, nn

from pneumo_ray.model.attention import attend, replace_attention
from pneumo_ray.model.dropout import KeyDropout


def parts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of 2 images, 3 windows, 4 positions, 2 heads; and a bias."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, 4, 2, 5, generator=generator)
    return q, k, v, torch.randn(1, 6, 4, 4, generator=generator)


def written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    logits = torch.einsum("bwqhd,bwkhd->bwhqk", q, k) * scale + bias.unflatten(1, (3, 2))
    return torch.einsum("bwhqk,bwkhd->bwqhd", logits.softmax(-1), v).flatten(3)


def test_attention_is_a_softmax_within_windows() -> None:
    q, k, v, bias = parts()
    torch.testing.assert_close(attend(q, k, v, bias, 0.3), written_out(q, k, v, bias, 0.3))


def test_other_keys_share_a_dropped_weight() -> None:
    """What is left is the attention over the keys that are left, without any scale (arXiv 2208.02646)."""
    q, k, v, bias = parts()
    layer = KeyDropout(0.5, 4)
    mask = torch.full((2, 4, 4), 2.0)
    mask[0, :, 1] = 0  # key 1, from every query of the first image
    mask[1, 2, 3] = 0  # key 3, from query 2 of the second
    layer.mask = mask.flatten(1)
    out = attend(q, k, v, layer(bias, 2), 0.3)
    left = [0, 2, 3]
    logits = torch.einsum("wqhd,wkhd->whqk", q[0], k[0][:, left]) * 0.3 + bias.unflatten(1, (3, 2))[0][..., left]
    expected = torch.einsum("whqk,wkhd->wqhd", logits.softmax(-1), v[0][:, left]).flatten(2)
    torch.testing.assert_close(out[0], expected)
    plain = attend(q, k, v, bias, 0.3)
    changed = (out[1] != plain[1]).any(-1)
    assert changed[:, 2].all()
    torch.testing.assert_close(out[1][:, [0, 1, 3]], plain[1][:, [0, 1, 3]])


def test_a_query_without_keys_keeps_them_all() -> None:
    q, k, v, bias = parts()
    layer = KeyDropout(0.5, 4)
    layer.mask = torch.zeros(16)
    torch.testing.assert_close(attend(q, k, v, layer(bias, 2), 0.3), attend(q, k, v, bias, 0.3), rtol=1e-2, atol=1e-2)


def test_keys_are_dropped_in_training_at_the_rate() -> None:
    layer, bias = KeyDropout(0.25, 7), torch.zeros(1, 1, 7, 7)
    assert layer.eval()(bias, 400) is bias
    hidden = layer.train()(bias, 400) < 0
    assert hidden.shape == (400, 1, 7, 7)
    share = hidden.double().mean().item()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / hidden.numel()) ** 0.5
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize(("arch", "size"), [("swin_t", 64), ("swin_t", 75), ("swin_t", 160), ("maxvit_t", 224)])
def test_features_are_those_of_torchvision(arch: str, size: int) -> None:
    """Padded, shifted and whole windows; MaxViT at the size that torchvision's is built for."""
    net = ready(arch)
    state = {name.split(".", 1)[1]: tensor for name, tensor in net.state_dict().items() if name[0] in "pt"}
    with torch.device("meta"):
        twin = torchvision.models.get_model(arch, weights=None)
    named = {
        name: state.get(name, tensor.new_zeros(tensor.shape, device="cpu"))
        for name, tensor in twin.state_dict().items()
    }
    twin.load_state_dict(named, assign=True)
    seen: list[Tensor] = []
    pool = twin.get_submodule("avgpool" if arch == "swin_t" else "classifier.0")
    pool.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        twin.eval()(x)
        expected = seen[0] if arch == "swin_t" else net.tail.get_submodule("norm")(seen[0])
        found = net.feature_maps(x)
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale)


def test_padding_of_maxvit_is_seen_by_no_query() -> None:
    """Attention over a map of 2 x 2 is attention over its four positions, window or grid."""
    layer = nn.Sequential(_partition("window"), _partition("grid"))
    replace_attention(layer)
    x = torch.randn(2, 64, 2, 2, generator=torch.Generator().manual_seed(0))
    for module in layer:
        tokens = x.flatten(2).mT
        norm, attention = module.attn_layer[0], module.attn_layer[1]
        q, k, v = attention.to_qkv(norm(tokens)).unflatten(-1, (3, 2, 32)).unbind(2)
        at = torch.tensor([0, 1, 7, 8])
        bias = attention.get_relative_positional_bias()[0][:, at][:, :, at]
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 64**-0.5 + bias).softmax(-1)
        tokens = tokens + attention.merge(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
        expected = (tokens + module.mlp_layer(tokens)).mT.unflatten(2, (2, 2))
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def _partition(kind: str) -> nn.Module:
    layer = torchvision.models.maxvit.PartitionAttentionLayer(
        64, 32, 7, kind, (7, 7), 4, nn.GELU, nn.LayerNorm, 0.0, 0.0, 0.0
    )
    nn.init.normal_(layer.attn_layer[1].relative_position_bias_table)
    return layer.eval()


def test_passes_do_not_depend_on_the_batch() -> None:
    from pneumo_ray.explain import BayesGradCAM

    engine = BayesGradCAM(ready("swin_t", "keys", 0.3), passes=4, seed=2)
    x = smallest_images("swin_t", 3)
    whole, last = engine.logits_and_map(x)[0], engine.logits_and_map(x[2:])[0]
    torch.testing.assert_close(whole[2:], last, rtol=1e-4, atol=1e-5)
    one_by_one = BayesGradCAM(engine.net, passes=4, seed=2, max_bytes=1).logits_and_map(x)[0]
    torch.testing.assert_close(one_by_one, whole, rtol=1e-4, atol=1e-5)
    assert (F.softplus(whole).std(1) > 0).all()
