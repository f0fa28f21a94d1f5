"""The network's structure against the counts of fastai 1.0.21."""

import pytest
import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError
from raytrain.training import models


def test_resnet50_has_the_lessons_layer_groups():
    model = models.build("resnet50", 17, 0.5)
    counts = [models.parameter_count(group) for group in models.layer_groups(model)]
    assert counts == [1_444_928, 22_063_104, 2_115_601]
    assert models.parameter_count(model) == 25_623_633


def test_freezing_leaves_the_head_and_53120_batch_norm_weights_trainable():
    model = models.build("resnet50", 17, 0.5)
    models.set_frozen(model, True)
    assert sum(p.numel() for p in model.body.parameters() if p.requires_grad) == 53_120
    assert all(p.requires_grad for p in model.head.parameters())
    models.set_frozen(model, False)
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_is_the_lessons():
    head = models.build("resnet50", 17, 0.5).head
    kinds = [type(layer) for layer in head]
    assert kinds == [
        models.ConcatPool, nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear,
    ]  # fmt: skip
    assert (head[2].p, head[6].p) == (0.25, 0.5)
    assert head[3].weight.shape == (512, 4096) and head[7].weight.shape == (17, 512)
    # kaiming_normal_ with fan_in: variance 2 / fan_in.
    assert head[3].weight.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.02)
    assert head[3].bias.abs().max() == 0


def test_pooling_puts_the_maximum_first_and_takes_any_size():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert models.ConcatPool()(features).tolist() == [[6.0, 3.0]]
    model = models.build("resnet18", 5, 0.5).eval()
    for size in (64, 96):
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


def test_a_weights_file_fills_the_body_and_its_classifier_is_dropped(tmp_path):
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), tmp_path / "r18.pth")
    model = models.build("resnet18", 5, 0.5)
    models.load_body(model, models.body_weights("resnet18", str(tmp_path / "r18.pth")), "r18.pth")
    images = torch.randn(2, 3, 64, 64)
    wanted = nn.Sequential(*list(reference.children())[:-2]).eval()(images)
    torch.testing.assert_close(model.body.eval()(images), wanted)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    with pytest.raises(ConfigError, match="does not hold weights of this architecture"):
        state = models.body_weights("resnet18", str(tmp_path / "r34.pth"))
        models.load_body(models.build("resnet18", 5, 0.5), state, "r34.pth")


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        models.body_weights("resnet18", str(tmp_path / "x.pth"))
    with pytest.raises(ConfigError, match="neither"):
        models.body_weights("resnet18", str(tmp_path / "missing.pth"))


def test_a_failed_download_says_how_to_go_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RemoteError) as caught:
        models.body_weights("resnet50", "imagenet")
    assert "resnet50-0676ba61.pth" in caught.value.fix and "--model.weights none" in caught.value.fix


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(ConfigError, match='Did you mean "resnet50"'):
        models.build("resnet5O", 5, 0.5)
