"""The network's structure against the counts of fastai 1.0.21; every family against torchvision's and timm's own."""

import copy
import functools
import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn

from raytrain.errors import ConfigError, RemoteError
from raytrain.models import bodies, initial_weights, layer_groups, networks

FAMILIES = (
    "resnet18",
    "convnext_tiny",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "swin_t",
    "swin_v2_t",
)
TIMM = (
    "resnet26",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "swin_tiny_patch4_window7_224",
)
BATCH_NORM = nn.modules.batchnorm._BatchNorm


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for each other on a busy core make these small passes a hundred times slower.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def built(arch):
    return networks.build(arch, 5, 0.0)


def network(arch):
    """A copy of its own; building is slower."""
    return copy.deepcopy(built(arch))


def pickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301  # bytes made on this line


def with_statistics(model):
    """Gives random running statistics, so that a lost or moved one shows."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def reference(arch):
    return with_statistics(torchvision.models.get_model(arch, weights=None))


def parts_of(net):
    """Its body in order, up to where the map has an eighth of the tile's size, and the rest."""
    if hasattr(net, "fc"):
        stem = [net.conv1, net.bn1, net.relu, net.maxpool]
        return nn.Sequential(*stem, net.layer1, net.layer2), nn.Sequential(net.layer3, net.layer4)
    last = [net.norm, net.permute] if hasattr(net, "norm") else []
    return net.features[:4], nn.Sequential(*net.features[4:], *last)


def trainable_after(model, groups):
    """Names of the parameters that a pass with frozen groups gives a gradient."""
    layer_groups.set_frozen(model, groups)
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def norm_names(model):
    return {
        f"{n}.{p}"
        for n, m in model.named_modules()
        if isinstance(m, BATCH_NORM)
        for p in ("weight", "bias")
    }


def test_resnet50_has_the_lessons_layer_groups():
    model = networks.build("resnet50", 17, 0.5)
    counts = [sum(p.numel() for p in group) for group in layer_groups.layer_groups(model)]
    assert counts == [1_444_928, 22_063_104, 2_115_601]
    assert networks.parameter_count(model) == 25_623_633


def test_freezing_leaves_the_head_and_53120_batch_norm_weights_trainable():
    model = networks.build("resnet50", 17, 0.5)
    layer_groups.set_frozen(model, 2)
    trainable = [
        sum(p.numel() for p in group if p.requires_grad)
        for group in layer_groups.layer_groups(model)[:2]
    ]
    assert trainable == [10_112, 43_008] and sum(trainable) == 53_120
    assert all(p.requires_grad for p in model.head.parameters())
    layer_groups.set_frozen(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_is_the_lessons():
    head = networks.build("resnet50", 17, 0.5).head
    kinds = [type(layer) for layer in head]
    assert kinds == [
        networks.ConcatPool,
        nn.BatchNorm1d,
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
        nn.BatchNorm1d,
        nn.Dropout,
        nn.Linear,
    ]
    assert (head[2].p, head[6].p) == (0.25, 0.5)
    assert head[3].weight.shape == (512, 4096) and head[7].weight.shape == (17, 512)
    # kaiming_normal_ with fan_in: variance 2 / fan_in.
    assert head[3].weight.std().item() == pytest.approx((2 / 4096) ** 0.5, rel=0.02)
    assert head[7].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert head[3].bias.abs().max() == head[7].bias.abs().max() == 0


def test_pooling_puts_the_maximum_first_and_takes_any_size():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert networks.ConcatPool()(features).tolist() == [[6.0, 3.0]]
    model = networks.build("resnet18", 5, 0.5).eval()
    for size in (64, 96):
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_pooling_is_in_float32_at_least_and_keeps_float64(dtype):
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    # 4096 values of one: a mean summed in half precision stops growing at 2048 and at 256.
    pooled = networks.ConcatPool()(torch.ones(1, 1, 64, 64, dtype=dtype))
    assert pooled.dtype == wanted and pooled.tolist() == [[1.0, 1.0]]


def test_a_whole_network_computes_in_float64():
    model = network("resnet18").double()
    assert model(torch.randn(2, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64


# Families


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_gives_a_map_at_any_size(arch):
    model = built(arch).eval()
    for size, side in ((32, 1), (64, 2), (96, 3)):
        with torch.inference_mode():
            features = model.body(torch.randn(1, 3, size, size))
        assert features.shape == (1, model.head[1].num_features // 2, side, side)


@pytest.mark.parametrize("arch", FAMILIES)
def test_layer_groups_part_all_parameters_at_an_eighth_of_the_size(arch):
    model = network(arch)
    groups = layer_groups.layer_groups(model)
    flat = [id(p) for group in groups for p in group]
    assert len(flat) == len(set(flat)) and set(flat) == {id(p) for p in model.parameters()}
    early, late = parts_of(reference(arch))
    assert [sum(p.numel() for p in group) for group in groups[:2]] == [
        networks.parameter_count(part) for part in (early, late)
    ]
    features = early(torch.randn(1, 3, 64, 64))
    # Swin's blocks put the channels last.
    assert (features.shape[1:3] if arch.startswith("swin") else features.shape[2:]) == (8, 8)


@pytest.mark.parametrize("arch", FAMILIES)
def test_frozen_groups_get_no_gradient_but_for_batch_norm(arch):
    every, norms = {name for name, _ in built(arch).named_parameters()}, norm_names(built(arch))
    head = {name for name in every if name.startswith("head.")}
    assert trainable_after(network(arch), 2) == head | norms
    model = network(arch)
    early = {id(p) for p in layer_groups.layer_groups(model)[0]}
    late = {name for name, p in model.named_parameters() if id(p) not in early}
    assert trainable_after(model, 1) == late | norms and late > head


def test_nothing_frozen_trains_everything():
    model = network("resnet18")
    layer_groups.set_frozen(model, 2)
    assert trainable_after(model, 0) == {name for name, _ in model.named_parameters()}


def test_layer_groups_outlive_copies_pickles_and_weights():
    model = networks.build("convnext_tiny", 5, 0.0)
    sizes = [len(group) for group in layer_groups.layer_groups(model)]
    copies = [copy.deepcopy(model), pickled(model)]
    copies[0].load_state_dict(model.state_dict())
    assert [[len(group) for group in layer_groups.layer_groups(other)] for other in copies] == [
        sizes,
        sizes,
    ]


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_weights_file_gives_torchvisions_features_and_its_classifier_is_dropped(arch, tmp_path):
    net, model = reference(arch), network(arch).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    initial_weights.load_body(
        model, initial_weights.body_weights(arch, str(tmp_path / "net.pth")), "net.pth"
    )
    classifier = tuple(f"{name}." for name in ("fc", "classifier", "head"))
    assert list(model.body.state_dict()) == [
        key for key in net.state_dict() if not key.startswith(classifier)
    ]
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted = nn.Sequential(*parts_of(net))(images)
        assert torch.equal(model.body(images), wanted) and (wanted[0] - wanted[1]).abs().max() > 0


def test_the_first_imagenet_files_which_count_no_batches_load():
    net, model = reference("resnet18"), network("resnet18")
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    initial_weights.load_body(model, state, "old.pth")
    assert torch.equal(model.body.bn1.running_mean, net.bn1.running_mean)
    del state["bn1.running_mean"]
    with pytest.raises(ConfigError, match=r"1 tensors differ, such as bn1\.running_mean"):
        initial_weights.load_body(model, state, "old.pth")


@pytest.mark.parametrize(
    "arch", [n for n in torchvision.models.list_models() if n.startswith(bodies.FAMILIES)]
)
def test_every_architecture_has_the_weights_that_imagenet_means(arch):
    assert "IMAGENET1K_V1" in [
        weights.name for weights in torchvision.models.get_model_weights(arch)
    ]


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    with pytest.raises(ConfigError, match="does not hold weights of this architecture"):
        state = initial_weights.body_weights("resnet18", str(tmp_path / "r34.pth"))
        initial_weights.load_body(networks.build("resnet18", 5, 0.5), state, "r34.pth")


def test_weights_of_another_width_are_refused():
    state = reference("resnet18").state_dict() | {"conv1.weight": torch.zeros(64, 4, 7, 7)}
    with pytest.raises(ConfigError, match=r"1 tensors differ, such as conv1\.weight"):
        initial_weights.load_body(network("resnet18"), state, "four-bands.pth")


# Other channels than three


def first_of(body):
    return next(layer for layer in body.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("arch", "channels"),
    [
        *((arch, 4) for arch in FAMILIES),
        *((f"timm:{name}", 4) for name in TIMM),
        *(("resnet18", channels) for channels in (1, 2, 13)),
        ("timm:resnet26", 1),
    ],
)
def test_rgb_weights_answer_pictures_of_equal_channels_as_before(arch, channels):
    rgb, model = network(arch), networks.build(arch, 5, 0.0, channels=channels)
    assert networks.in_channels(model) == channels
    initial_weights.load_body(model, rgb.body.state_dict(), "rgb.pth")
    own, theirs = first_of(model.body), first_of(rgb.body)
    assert own.weight.shape[1] == channels
    # All other weights are those of the file.
    state = rgb.body.state_dict()
    different = [k for k, v in model.body.state_dict().items() if not torch.equal(v, state[k])]
    assert len(different) == 1 and model.body.state_dict()[different[0]].shape[1] == channels
    # In float64: sums of float32 alone differ by more than the weights do.
    equal = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        wanted = theirs.double()(equal.expand(-1, 3, -1, -1))
        found = own.double()(equal.expand(-1, channels, -1, -1))
    assert wanted.std() > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_added_channels_begin_as_the_mean_of_the_given_ones():
    weight = torch.rand(8, 3, 7, 7)
    found = initial_weights.spread(weight, 5) * 5 / 3
    torch.testing.assert_close(found[:, :3], weight)
    for channel in (3, 4):
        torch.testing.assert_close(found[:, channel], weight.mean(1))
    torch.testing.assert_close(initial_weights.spread(weight, 1)[:, 0], weight.sum(1))


def test_weights_of_as_many_channels_are_taken_as_they_are():
    model, other = (networks.build("resnet18", 5, 0.0, channels=4) for _ in range(2))
    initial_weights.load_body(model, other.body.state_dict(), "four.pth")
    assert torch.equal(model.body.conv1.weight, other.body.conv1.weight)


def test_a_new_first_layer_has_the_deviation_of_the_one_it_replaces():
    torch.manual_seed(0)
    four = networks.build("resnet18", 5, 0.0, channels=4).body.conv1
    three = built("resnet18").body.conv1
    assert four.bias is None and four.stride == three.stride and four.padding == three.padding
    assert float(four.weight.std()) == pytest.approx(float(three.weight.std()), rel=0.05)
    assert abs(float(four.weight.mean())) < 0.01


def test_a_network_of_four_channels_is_made_without_memory():
    with torch.device("meta"):
        model = networks.build("resnet18", 5, 0.0, channels=4)
    assert model.body.conv1.weight.shape == (64, 4, 7, 7)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        initial_weights.body_weights("resnet18", str(tmp_path / "x.pth"))
    with pytest.raises(ConfigError, match="neither"):
        initial_weights.body_weights("resnet18", str(tmp_path / "missing.pth"))


def test_a_failed_download_says_how_to_go_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RemoteError) as caught:
        initial_weights.body_weights("resnet50", "imagenet")
    assert (
        "resnet50-0676ba61.pth" in caught.value.fix and "--model.weights none" in caught.value.fix
    )


def test_an_unknown_architecture_names_the_nearest():
    for typed, meant in (
        ("resnet5O", "resnet50"),
        ("convnext-tiny", "convnext_tiny"),
        ("swin_v2", "swin_v2_t"),
    ):
        with pytest.raises(ConfigError, match=f'Did you mean "{meant}"') as caught:
            networks.build(typed, 5, 0.5)
        assert caught.value.exit_code == 2


# BatchNorm


def test_state_dicts_have_the_same_keys_however_batch_norm_works():
    kinds = [networks.build("resnet18", 5, 0.0, kind) for kind in ("worker", "sync", "fixed")]
    keys = [list(model.state_dict()) for model in kinds]
    assert keys[0] == keys[1] == keys[2]
    body = [
        f"body.{key}" for key in reference("resnet18").state_dict() if not key.startswith("fc.")
    ]
    assert [key for key in keys[0] if key.startswith("body.")] == body
    for model in kinds[1:]:
        model.load_state_dict(kinds[0].state_dict())


def test_fixed_statistics_are_used_and_never_move_and_their_weights_train():
    model = with_statistics(networks.build("resnet18", 5, 0.0, "fixed"))
    before, images = {k: v.clone() for k, v in model.named_buffers()}, torch.randn(4, 3, 64, 64)
    for other in (model, copy.deepcopy(model), pickled(model)):
        wanted = other.eval()(images).detach()
        output = other.train()(images)
        assert other.training and other.head[2].training and torch.equal(output, wanted)
        output.sum().backward()
        assert all(torch.equal(buffer, before[name]) for name, buffer in other.named_buffers())
        assert (
            other.body.bn1.weight.grad.abs().max() > 0 and other.head[1].bias.grad.abs().max() > 0
        )


def test_fixed_statistics_hold_from_the_first_pass_and_moving_ones_move():
    images = torch.randn(4, 3, 64, 64)
    for kind, moves in (("fixed", False), ("worker", True)):
        model = networks.build("resnet18", 5, 0.0, kind)
        model(images)
        assert bool(model.body.bn1.running_mean.abs().max() > 0) is moves
        assert bool(model.head[1].num_batches_tracked) is moves


def test_synchronised_batch_norm_is_everywhere_and_leaves_the_groups():
    model = networks.build("resnet50", 17, 0.5, "sync")
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORM)]
    assert len(norms) == 53 + 2 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    groups = layer_groups.layer_groups(model)
    assert [sum(p.numel() for p in group) for group in groups] == [1_444_928, 22_063_104, 2_115_601]
    layer_groups.set_frozen(model, 2)
    trainable = [
        sum(p.numel() for p in group if p.requires_grad)
        for group in layer_groups.layer_groups(model)[:2]
    ]
    assert trainable == [10_112, 43_008] and sum(trainable) == 53_120


def test_synchronised_batch_norm_is_refused_without_gpus():
    with pytest.raises(ConfigError, match="needs GPUs") as caught:
        networks.check_batch_norm("sync", "cpu")
    assert "--model.batch-norm worker" in caught.value.fix
    for kind, device in (("sync", "cuda"), ("worker", "cpu"), ("fixed", "cpu")):
        networks.check_batch_norm(kind, device)


# timm


def test_without_timm_the_error_is_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for call in (networks.build, initial_weights.body_weights):
        with pytest.raises(ConfigError, match="needs the package timm") as caught:
            call("timm:resnet26", *([5, 0.0] if call is networks.build else ["imagenet"]))
        assert caught.value.fix == "pip install 'raytrain[timm]'"


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_give_maps_and_three_groups(name):
    model = network(f"timm:{name}").eval()
    for size, side in ((64, 2), (96, 3)):
        with torch.inference_mode():
            features = model.body(torch.randn(1, 3, size, size))
        assert features.shape == (1, model.head[1].num_features // 2, side, side)
    flat = [id(p) for group in layer_groups.layer_groups(model) for p in group]
    assert len(flat) == len(set(flat)) and set(flat) == {id(p) for p in model.parameters()}
    assert all(layer_groups.layer_groups(model))
    head = {key for key, _ in model.named_parameters() if key.startswith("head.")}
    assert trainable_after(model, 2) == head | norm_names(model)


def test_timms_first_group_ends_where_the_lessons_does():
    model = built("timm:resnet26")
    assert {name.split(".")[1] for name in model.body.early} == {"conv1", "bn1", "layer1", "layer2"}
    stages = {
        ".".join(name.split(".")[1:3])
        for name in built("timm:convnext_atto").body.early
        if "stages" in name
    }
    assert stages == {"stages.0", "stages.1"}


@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_timm_gives_timms_features(name, tmp_path):
    import timm

    net, model = with_statistics(timm.create_model(name)), network(f"timm:{name}").eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    initial_weights.load_body(
        model, initial_weights.body_weights(f"timm:{name}", str(tmp_path / "net.pth")), "net.pth"
    )
    net.reset_classifier(0, "")
    images = torch.randn(1, 3, 224, 224)  # the one size that timm's Swin takes by default
    with torch.inference_mode():
        wanted = net(images)
        wanted = wanted.permute(0, 3, 1, 2) if name.startswith("swin") else wanted
        assert torch.equal(model.body(images), wanted) and wanted.std() > 0


def test_timms_batch_norm_keeps_its_activation_when_synchronised():
    plain, sync = (
        with_statistics(network("timm:efficientnet_b0")),
        networks.build("timm:efficientnet_b0", 5, 0.0, "sync"),
    )
    assert list(sync.state_dict()) == list(plain.state_dict())
    sync.load_state_dict(plain.state_dict())
    assert all(isinstance(m, nn.SyncBatchNorm) for m in sync.modules() if isinstance(m, BATCH_NORM))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(sync.eval()(images), plain.eval()(images))
    assert [len(group) for group in layer_groups.layer_groups(sync)] == [
        len(group) for group in layer_groups.layer_groups(plain)
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_tiny_patch16_224", "does not take tiles of 64 px"),
        ("mvitv2_tiny", "not a feature map"),
        ("coat_tiny", "cannot be built without its pooling"),
        ("caformer_s18", "defines no layer groups"),
        ("resnet26d0", 'Did you mean "resnet26d"'),
        ("resnet26.nonsense", "timm has no model"),
    ],
)
def test_what_timm_cannot_give_is_one_sentence(name, why):
    with pytest.raises(ConfigError, match=why) as caught:
        networks.build(f"timm:{name}", 5, 0.0)
    assert caught.value.exit_code == 2


def test_timms_own_weights_and_how_to_go_on_without(monkeypatch):
    import timm

    create, net = (
        timm.create_model,
        timm.create_model("convnext_atto", num_classes=0, global_pool=""),
    )

    def downloaded(name, pretrained, **options):
        return (
            net
            if pretrained and name == "convnext_atto"
            else create(name, pretrained=False, **options)
        )

    monkeypatch.setattr(timm, "create_model", downloaded)
    model = network("timm:convnext_atto")
    initial_weights.load_body(
        model, initial_weights.body_weights("timm:convnext_atto", "imagenet"), "imagenet"
    )
    assert all(
        torch.equal(model.body.network.state_dict()[key], value)
        for key, value in net.state_dict().items()
    )

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(RemoteError, match="no route") as caught:
        initial_weights.body_weights("timm:convnext_atto", "imagenet")
    assert "--model.weights none" in caught.value.fix
    unweighted = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(ConfigError, match="has no weights"):
        initial_weights.body_weights(f"timm:{unweighted}", "imagenet")


def test_a_size_that_the_network_cannot_take_is_refused():
    model = networks.build("convnext_tiny", 3, 0.0)
    networks.check_sizes(model, "convnext_tiny", [64, 96])
    with pytest.raises(ConfigError, match="convnext_tiny cannot take tiles of 16 px"):
        networks.check_sizes(model, "convnext_tiny", [64, 16])
    assert model.training
