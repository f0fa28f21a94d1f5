"""Counts against the convolution's own formula, and against published numbers of torchvision's networks."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raytrain.errors import ConfigError
from raytrain.models import bodies, operations
from raytrain.models.operations import SIZE, per_pixel

# Multiplications of the whole network for a tile of 224 px, by torchvision's own documentation.
PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "efficientnet_b0": torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "convnext_tiny": torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    "swin_t": torchvision.models.Swin_T_Weights.IMAGENET1K_V1,
}
TIMM = ("resnet26", "convnext_atto", "swin_tiny_patch4_window7_224")
WITH_BATCH_NORM = ("resnet18", "resnet50", "efficientnet_b0")


@pytest.mark.parametrize("arch", PUBLISHED)
def test_a_step_counts_three_forward_passes_of_the_published_network(arch):
    published = 2e9 * PUBLISHED[arch].meta["_ops"]  # an addition for each multiplication
    # The first layer needs no gradient of its input, and the classifier is not ours.
    assert per_pixel(arch, 0) * SIZE**2 == pytest.approx(3 * published, rel=0.06)


@pytest.mark.parametrize("arch", PUBLISHED)
def test_frozen_groups_save_the_gradients_of_their_weights(arch):
    whole, early, body = (per_pixel(arch, frozen) for frozen in range(3))
    assert whole > early > body
    # BatchNorm trains in a frozen body, so the gradient passes through it.
    forward_and_gradient = 2 if arch in WITH_BATCH_NORM else 1
    assert body / whole == pytest.approx(forward_and_gradient / 3, abs=0.03)


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_are_counted(name, caplog):
    pytest.importorskip("timm")
    found = [per_pixel(f"timm:{name}", frozen) for frozen in range(3)]
    assert found[0] > found[1] > found[2] > 1000
    assert caplog.text == ""


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_the_first_layer_takes_any_number_of_channels(channels):
    # 7 x 7 kernel, 64 filters, stride 2: forward and gradient of the weight.
    of_a_channel = 2 * 2 * 7 * 7 * 64 / 4
    more = per_pixel("resnet18", 0, channels) - per_pixel("resnet18", 0, 3)
    assert more == pytest.approx((channels - 3) * of_a_channel)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("of_input", [True, False])
def test_a_convolution_takes_as_much_for_each_gradient_as_forward(groups, of_input):
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False, device="meta")
    pixels = torch.empty(2, 8, 10, 10, device="meta", requires_grad=of_input)
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten.convolution_backward: operations._convolution_backward},
    )
    with counter:
        layer(pixels).sum().backward()
    forward = 2 * 2 * 100 * 16 * (8 // groups) * 9
    assert counter.get_total_flops() == forward * (3 if of_input else 2)


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="resnet19"):
        per_pixel("resnet19", 0)


def test_a_network_that_cannot_be_counted_is_assumed_and_told(monkeypatch, caplog):
    class Odd(bodies.Body):
        def forward(self, pixels):
            return super().forward(pixels * pixels.mean().item())  # no value on the meta device

    def body(arch, channels):
        made = Odd(nn.Conv2d(channels, 4, 3))
        made.channels = 4
        made.early = frozenset()
        return made

    monkeypatch.setattr("raytrain.models.networks._body", body)
    assert [per_pixel("odd", frozen) for frozen in range(3)] == [3, 3, 1]
    assert "the operations of odd cannot be counted" in caplog.text
    assert "1 for a forward pass and 2 for a backward pass" in caplog.text


def test_counting_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    per_pixel.cache_clear()
    operations._network.cache_clear()
    per_pixel("resnet18", 1)
    assert torch.equal(torch.rand(3), expected)
