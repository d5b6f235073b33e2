"""Building, saving, loading and running a model; SegNet's maps."""

import json

import pytest
import torch

from multidense.codebook import log_bins
from multidense.models import MultiTask, build_model, load_model, weights_hash
from multidense.models.backbones import SegNet
from multidense.tasks import Depth, Normals, SemanticSegmentation
from multidense.types import MultidenseError

TASKS = (SemanticSegmentation(4), Depth(bins=3))


@pytest.fixture
def model():
    return build_model("segnet", "hitts", TASKS, width=0.125, seed=0)


@pytest.fixture
def fitted(model):
    model.set_codebook("depth", log_bins(1.0, 4.0, 3))
    return model


@pytest.fixture
def image():
    return torch.rand(3, 32, 40)


# Building


@pytest.mark.parametrize(
    ("backbone", "decoder", "message"),
    [
        ("segnett", "hitts", "unknown backbone 'segnett' .did you mean 'segnet'.*There are: segnet"),
        ("segnet", "hits", "unknown decoder 'hits' .did you mean 'hitts'.*There are: shared, hitts"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all(backbone, decoder, message):
    with pytest.raises(MultidenseError, match=message):
        build_model(backbone, decoder, TASKS)


def test_an_unknown_option_is_answered_with_the_nearest_and_all():
    with pytest.raises(MultidenseError, match=r"'fine_token'.*did you mean 'fine_tokens'.*Valid are: aligned, attention"):
        build_model("segnet", "hitts", TASKS, fine_token=False)
    with pytest.raises(MultidenseError, match="Valid are: none"):
        build_model("segnet", "shared", TASKS, fine_tokens=False)


@pytest.mark.parametrize("width", [0.0, -1.0, 0.001, float("nan"), float("inf")])
def test_a_width_that_leaves_no_channels_is_refused(width):
    with pytest.raises(MultidenseError, match="width"):
        build_model("segnet", "shared", TASKS, width=width)


def test_tasks_must_be_there_and_differ():
    with pytest.raises(MultidenseError, match="at least one task"):
        build_model("segnet", "shared", ())
    with pytest.raises(MultidenseError, match="'depth' more than once"):
        build_model("segnet", "shared", (Depth(), Depth(bins=3)))


def test_a_seed_alone_decides_the_weights_and_disturbs_nothing():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = build_model("segnet", "hitts", TASKS, width=0.125, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert weights_hash(one) == weights_hash(build_model("segnet", "hitts", TASKS, width=0.125, seed=7))
    assert weights_hash(one) != weights_hash(build_model("segnet", "hitts", TASKS, width=0.125, seed=8))


def test_decoders_with_one_seed_start_from_the_same_trunk():
    one, other = (build_model("segnet", decoder, TASKS, width=0.125, seed=7) for decoder in ("shared", "hitts"))
    assert weights_hash(one.backbone) == weights_hash(other.backbone)


def test_the_repr_builds_the_same_model():
    model = build_model("segnet", "hitts", TASKS, width=0.125, seed=0, identity_bias=True)
    names = {"build_model": build_model, "SemanticSegmentation": SemanticSegmentation, "Depth": Depth}
    assert eval(repr(model), names).spec == model.spec


# SegNet


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 39)], ids=str)
def test_segnet_keeps_to_the_channels_and_strides_it_declares(size):
    backbone = SegNet(width=0.125)
    features = backbone(torch.rand(1, 3, *size))
    assert backbone.channels == (8, 8, 16, 32, 64)
    for maps, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert maps.shape == (1, channels, size[0] // stride, size[1] // stride)
    assert features.bottleneck.shape == (1, 64, size[0] // 32, size[1] // 32)
    assert features.stages == ()


def test_segnet_lists_its_stages_only_when_asked():
    stages = SegNet(width=0.125, stages=True)(torch.rand(1, 3, 32, 64)).stages
    channels = [stage.shape[1] for stage in stages]
    assert channels == [8, 8, 16, 16, 32, 32, 64, 64, 64, 64, 64, 64, 64, 32, 32, 16, 16, 8, 8, 8]
    assert [stage.shape[-1] for stage in stages[::2]] == [64, 32, 16, 8, 4, 4, 8, 16, 32, 64]


# Running


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 32, 32), r"Found shape \(3, 32, 32\)"),
        (torch.rand(1, 4, 32, 32), r"Found shape \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"Found torch.uint8; convert it"),
        (torch.rand(1, 3, 31, 64), r"at least 32. Found 31×64"),
    ],
    ids=["no batch", "four channels", "integers", "too small"],
)
def test_a_wrong_image_is_refused_with_the_remedy(model, image, message):
    with pytest.raises(MultidenseError, match=message):
        model(image)


def test_predict_returns_value_and_confidence_and_restores_the_mode(fitted, image):
    fitted.train()
    fitted.backbone.encoder[0].eval()
    found = fitted.predict(image)
    assert found["semseg"][0].shape == found["depth"][0].shape == found["depth"][1].shape == (1, 32, 40)
    assert fitted.training
    assert not fitted.backbone.encoder[0].training
    batched = fitted.predict(image[None])
    assert batched["depth"][0].shape == (1, 1, 32, 40)
    torch.testing.assert_close(batched["depth"][0][0], found["depth"][0])
    assert not found["depth"][0].requires_grad


# Codebooks


def test_codebooks_are_missing_until_set(model, image):
    assert model.missing_codebooks == ("depth",)
    assert not model.has_codebooks
    assert model.codebooks == {}
    with pytest.raises(MultidenseError, match="'depth' has none"):
        model.predict(image)
    model.set_codebook("depth", log_bins(1.0, 4.0, 3))
    assert model.has_codebooks
    assert torch.equal(model.tasks[1].codebook, log_bins(1.0, 4.0, 3))
    assert model.task_names == ("semseg", "depth")


@pytest.mark.parametrize(
    ("name", "centres", "message"),
    [
        ("semseg", torch.ones(4, 1), "'semseg' has no codebook"),
        ("depth", torch.ones(4, 1), r"shape \(3, 1\).*Found shape \(4, 1\)"),
        ("depth", torch.full((3, 1), torch.nan), "not finite"),
    ],
    ids=["no codebook", "wrong shape", "not finite"],
)
def test_a_codebook_that_does_not_fit_is_refused(model, name, centres, message):
    with pytest.raises(MultidenseError, match=message):
        model.set_codebook(name, centres)


def test_a_codebook_bound_to_a_task_is_taken_over():
    depth = Depth(bins=3).with_codebook(log_bins(1.0, 4.0, 3))
    assert build_model("segnet", "shared", [depth], width=0.125).has_codebooks


def test_codebooks_travel_with_the_state_dict(fitted):
    other = build_model("segnet", "hitts", TASKS, width=0.125, seed=1)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other.codebooks["depth"], log_bins(1.0, 4.0, 3))


# Saving


@pytest.mark.parametrize("with_codebook", [True, False])
def test_saving_and_loading_keeps_weights_spec_and_codebooks(model, tmp_path, with_codebook):
    if with_codebook:
        model.set_codebook("depth", log_bins(1.0, 4.0, 3))
    model.save_pretrained(tmp_path / "model")
    state = torch.random.get_rng_state()
    for loaded in (load_model(tmp_path / "model"), MultiTask.from_pretrained(tmp_path / "model")):
        assert weights_hash(loaded) == weights_hash(model)
        assert loaded.spec == model.spec
        assert loaded.has_codebooks == with_codebook
        assert not loaded.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_a_failed_save_leaves_the_old_model_whole(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    other = build_model("segnet", "shared", TASKS, width=0.125, seed=1)

    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multidense.files.os.replace", disk_full)
    with pytest.raises(MultidenseError, match="No space left on device"):
        other.save_pretrained(tmp_path)
    assert weights_hash(load_model(tmp_path)) == weights_hash(model)


def test_a_model_put_together_by_hand_runs_but_is_not_saved(model, tmp_path):
    by_hand = MultiTask(model.backbone, model.decoder, TASKS)
    assert set(by_hand(torch.rand(1, 3, 32, 32)).logits) == {"semseg", "depth"}
    with pytest.raises(MultidenseError, match="put together by hand"):
        by_hand.save_pretrained(tmp_path)


def test_loading_from_nowhere_says_what_was_expected(model, tmp_path):
    with pytest.raises(MultidenseError, match=r"expected a folder with config.json and model.safetensors.*no such folder"):
        load_model(tmp_path / "nowhere")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MultidenseError, match=r"Found no model.safetensors there"):
        load_model(tmp_path)


def test_the_config_of_something_else_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(MultidenseError, match=r"does not describe a multidense model.*found 'architectures'"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_are_named(model, tmp_path):
    model.save_pretrained(tmp_path)
    build_model("segnet", "hitts", (SemanticSegmentation(4), Normals()), width=0.125).save_pretrained(tmp_path / "other")
    (tmp_path / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(MultidenseError, match=r"missing: 'decoder.fine_grained.normals.*not expected: 'centres.depth'"):
        load_model(tmp_path)


def test_broken_weights_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(MultidenseError, match=r"model.safetensors cannot be read"):
        load_model(tmp_path)
