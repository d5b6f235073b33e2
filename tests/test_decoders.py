"""What every decoder must do, for every set of tasks; then what is peculiar to the task tokens."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from multidense.codebook import log_bins, sphere
from multidense.models import DECODERS, build_model, load_model
from multidense.models.layers import Coarsen, conv3x3, recomputed, refine
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

TASK_SETS = {
    "regressed": (SemanticSegmentation(13), Depth(), Normals()),
    "classified": (SemanticSegmentation(5), Depth(bins=6), Normals(centers=4)),
    "all six": (
        SemanticSegmentation(21),
        HumanParts(7),
        Depth(bins=4),
        Normals(centers=5),
        Edges(),
        Saliency(),
    ),
    "one": (SemanticSegmentation(5),),
    "one channel": (Edges(),),
}
ABLATIONS = (
    {"orthogonal_embeddings": False},
    {"inter_task": False},
    {"intra_task": False},
    {"global_tokens": False},
    {"fine_tokens": False},
    {"inter_task": False, "intra_task": False, "global_tokens": False, "fine_tokens": False},
    {"identity_bias": True},
    {"aligned": False},
)
SIZES = ((33, 47), (48, 64))

FORMS = {name: {"decoder": name} for name in DECODERS} | {
    "hitts, lean": {"decoder": "hitts", "lean": True},
    "aspp": {"decoder": "aspp", "head_channels": 16},
    "hitts-ms": {"decoder": "hitts-ms", "head_channels": 16},
}
BACKBONE_OF = {"aspp": "resnet18", "hitts-ms": "resnet18", "mtcp": "resnet18"}
"""The backbone of decoders that are made for a pyramid of maps; all others are tested on SegNet."""

AT_LEAST = {"mtcp": 2}
"""Decoders that need more than one task, and how many."""

family = pytest.mark.parametrize(
    ("decoder", "tasks"),
    [
        pytest.param(form, tasks, id=f"{form}-{name}")
        for form, options in FORMS.items()
        for name, tasks in TASK_SETS.items()
        if len(tasks) >= AT_LEAST.get(options["decoder"], 1)
    ],
)
hitts = pytest.mark.parametrize("decoder", ["hitts", "hitts, lean"])


def small(decoder, tasks, **options):
    form = FORMS[decoder] | options
    return build_model(BACKBONE_OF.get(form["decoder"], "segnet"), tasks=tasks, width=0.125, seed=0, **form)


def images(count=2, size=(48, 64)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def auxiliary(outputs):
    """The logits that are supervised beside the final ones, of decoders that have some."""
    return [logits for several in outputs.auxiliary.values() for logits in several]


def every_parameter_gets_a_gradient(model, of):
    """In evaluation mode: in training BatchNorm cancels the bias of the convolution before it."""
    outputs = model.eval()(images())
    generator = torch.Generator().manual_seed(2)
    maps = [value for kind in of for value in getattr(outputs, kind).values()] + auxiliary(outputs)
    sum((value * torch.rand(value.shape, generator=generator)).sum() for value in maps).backward()
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0} == set()


@family
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_and_features_have_the_promised_shapes(decoder, tasks, size):
    model = small(decoder, tasks)
    outputs = model(images(2, size))
    assert list(outputs.logits) == [task.name for task in tasks]
    grids = {tuple(-(-side // stride) for side in size) for stride in model.backbone.strides}
    for task in tasks:
        feature = outputs.features[task.name]
        assert outputs.logits[task.name].shape == (2, task.channels, *size)
        if FORMS[decoder]["decoder"] in BACKBONE_OF:
            assert len(feature) == 2
            assert tuple(feature.shape[-2:]) in grids
            assert feature.shape == outputs.features[tasks[0].name].shape
        else:
            assert feature.shape == (2, 8, *size)


@family
def test_every_parameter_gets_a_gradient_from_the_logits_alone(decoder, tasks):
    assert every_parameter_gets_a_gradient(small(decoder, tasks), of=["logits"])


@family
def test_a_batch_of_one_trains(decoder, tasks):
    model = small(decoder, tasks).train()
    outputs = model(images(1, (32, 32)))
    sum(logits.square().mean() for logits in [*outputs.logits.values(), *auxiliary(outputs)]).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@family
def test_a_loaded_model_predicts_exactly_as_the_saved_one(decoder, tasks, tmp_path):
    model = small(decoder, tasks)
    centres = {"depth": lambda k: log_bins(0.5, 10.0, k), "normals": sphere}
    for task in tasks:
        if task.codebook_size:
            model.set_codebook(task.name, centres[task.name](task.codebook_size))
    model.train()(images())  # so that the running statistics are worth saving
    model.save_pretrained(tmp_path)
    before, after = model.predict(images()), load_model(tmp_path).predict(images())
    for name in before:
        assert torch.equal(before[name][0], after[name][0])
        assert torch.equal(before[name][1], after[name][1])


@family
def test_a_prediction_does_not_depend_on_its_batch_mates(decoder, tasks):
    model, several = small(decoder, tasks).eval().double(), images(3).double()
    with torch.no_grad():
        together, alone = model(several), model(several[1:2])
    for kind in ("logits", "features", "confidence", "tokens", "fine_tokens"):
        for name, value in getattr(alone, kind).items():
            torch.testing.assert_close(getattr(together, kind)[name][1:2], value)


@family
def test_permuting_the_tasks_permutes_the_outputs(decoder, tasks):
    forward, backward = small(decoder, tasks).eval(), small(decoder, tasks[::-1]).eval()
    backward.load_state_dict(forward.state_dict())
    with torch.no_grad():
        one, other = forward(images()), backward(images())
    for kind in ("logits", "features", "confidence", "tokens", "fine_tokens", "score_maps"):
        for name, value in getattr(one, kind).items():
            torch.testing.assert_close(getattr(other, kind)[name], value)


@hitts
@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda switches: "+".join(switches))
def test_every_ablation_runs_and_leaves_no_parameter_without_a_gradient(decoder, ablation):
    model = small(decoder, TASK_SETS["classified"], **ablation)
    assert ablation.items() <= model.spec["options"].items()
    assert every_parameter_gets_a_gradient(model, of=["logits", "confidence"])


@hitts
@pytest.mark.parametrize("ablation", ABLATIONS[:5], ids=lambda switches: "+".join(switches))
def test_a_switched_off_part_takes_its_parameters_with_it(decoder, ablation):
    whole = small(decoder, TASK_SETS["classified"])
    part = small(decoder, TASK_SETS["classified"], **ablation)
    assert {name for name, _ in part.named_parameters()} < {name for name, _ in whole.named_parameters()}


@hitts
def test_the_tokens_learn_in_training_mode(decoder):
    model = small(decoder, TASK_SETS["classified"]).train()
    sum(logits.square().mean() for logits in model(images()).logits.values()).backward()
    assert all(token.grad.norm() > 1e-6 for token in model.decoder.tokens.values())


def as_printed(decoder, finest):
    """Logits and features by the decoder's parameters, in plain words: whole maps are mixed, every product is written out."""
    shared = decoder.coarsen(finest) if decoder.coarsen else finest
    tokens, coarse = decoder.global_tokens(), decoder.query.coarsen(shared)
    gates = torch.einsum("tc,bchw->bthw", tokens, coarse).sigmoid()
    gates = refine(gates, decoder.query.coarsen.stride, shared.shape[-2:])
    affinity = decoder.inter_task.affinity(tokens)
    mixed = torch.einsum("ij,bjchw->bichw", affinity, gates[:, :, None] * shared[:, None])
    logits, features = {}, {}
    for index, (name, intra) in enumerate(decoder.intra_task.items()):
        feature, token = decoder.inter_task.convs[name](mixed[:, index]), (affinity @ tokens)[index]
        grids = {role: intra.coarsen[role](feature) for role in ("query", "key", "value")}
        query, key, value = (
            intra.project[role](torch.cat([token.expand(len(finest), 1, -1), grid.flatten(2).mT], 1))
            for role, grid in grids.items()
        )
        seen = (query @ key.mT / query.shape[-1] ** 0.5).softmax(2) @ value
        context = intra.to_feature(seen[:, 1:]).mT.unflatten(2, grids["query"].shape[-2:])
        feature = intra.conv(feature + refine(context, intra.stride, feature.shape[-2:]))
        if decoder.coarsen:
            feature = finest + refine(feature, 2, finest.shape[-2:])
        fine = decoder.fine_grained[name]
        phi = fine.tokens(intra.to_token(seen[:, 0]))
        scores = torch.einsum("bkc,bchw->bkhw", phi, fine.coarsen(feature))
        scores = refine(scores, fine.coarsen.stride, finest.shape[-2:])
        logits[name], features[name] = fine.to_logits(fine.to_maps(feature) * F.softplus(scores)), feature
    return {"logits": logits, "features": features}


@hitts
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_computed_is_what_is_printed_forward_and_backward(decoder, size):
    model = small(decoder, TASK_SETS["classified"]).double().train()
    maps = model.backbone(images(2, size).double())
    found = []
    for form in (lambda part, maps: vars(part(maps, size)), lambda part, maps: as_printed(part, maps.maps[0])):
        part, finest = copy.deepcopy(model.decoder), maps.maps[0].detach().requires_grad_()
        outputs = form(part, replace(maps, maps=(finest, *maps.maps[1:])))
        generator = torch.Generator().manual_seed(2)
        values = [*outputs["logits"].values(), *outputs["features"].values()]
        sum((value * torch.rand(value.shape, generator=generator).to(value)).sum() for value in values).backward()
        found.append([*values, finest.grad, *(p.grad for p in part.parameters() if p.grad is not None)])
    for ours, printed in zip(*found, strict=True):
        torch.testing.assert_close(ours, printed, rtol=1e-6, atol=1e-8)


def test_what_backward_makes_again_is_not_kept():
    conv, gate, shared, made = conv3x3(4, 4), torch.rand(1, 1, 8, 8, requires_grad=True), torch.rand(1, 4, 8, 8), []

    def multiply(gate, shared):
        product = gate * shared
        made.append(weakref.ref(product))
        return product

    loss = recomputed(conv, multiply, gate, shared).square().sum()
    assert made[0]() is None
    found = torch.autograd.grad(loss, (gate, *conv.parameters()))
    expected = torch.autograd.grad(conv(gate * shared).square().sum(), (gate, *conv.parameters()))
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)
    assert len(made) == 2


@hitts
def test_hitts_returns_tokens_confidence_and_score_maps(decoder):
    tasks = TASK_SETS["classified"]
    outputs = small(decoder, tasks)(images(2, (33, 47)))
    for task in tasks:
        assert outputs.tokens[task.name].shape == (2, 8)
        assert outputs.fine_tokens[task.name].shape == (2, task.channels, 8)
        assert outputs.score_maps[task.name].shape == (2, task.channels, 17, 24)
        confidence = outputs.confidence[task.name]
        assert confidence.shape == (2, 1, 33, 47)
        torch.testing.assert_close(
            confidence[:, 0],
            (outputs.tokens[task.name][:, :, None, None] * outputs.features[task.name]).sum(1).sigmoid(),
        )


def test_score_maps_are_the_fine_grained_tokens_times_the_coarsened_feature():
    model = small("hitts", TASK_SETS["one"]).eval()
    outputs = model(images())
    coarse = model.decoder.fine_grained["semseg"].coarsen(outputs.features["semseg"])
    scores = torch.einsum("bkc,bchw->bkhw", outputs.fine_tokens["semseg"], coarse)
    torch.testing.assert_close(outputs.score_maps["semseg"], scores)


def test_mixing_the_gates_is_mixing_the_features():
    inter_task = small("hitts", TASK_SETS["classified"]).decoder.inter_task.eval()
    tokens, gates, shared = torch.randn(3, 8), torch.rand(2, 3, 6, 7), torch.randn(2, 8, 6, 7)
    mixed_tokens, mixed = inter_task(tokens, gates, shared)
    affinity = inter_task.affinity(tokens)
    features = torch.einsum("ij,bjchw->bichw", affinity, gates[:, :, None] * shared[:, None])
    for index, name in enumerate(mixed):
        torch.testing.assert_close(mixed[name], inter_task.convs[name](features[:, index]))
        torch.testing.assert_close(mixed_tokens[name], (affinity @ tokens)[index])


def test_affinities_sum_to_one_and_the_identity_bias_keeps_half_of_every_task():
    for bias in (False, True):
        decoder = small("hitts", TASK_SETS["classified"], identity_bias=bias).decoder
        affinity = decoder.inter_task.affinity(decoder.global_tokens())
        torch.testing.assert_close(affinity.sum(1), torch.ones(3))
        assert bool((affinity.diagonal() >= 0.5).all()) or not bias


def test_without_orthogonal_embeddings_the_mlp_sees_the_token_repeated():
    fine = small("hitts", TASK_SETS["one"], orthogonal_embeddings=False).decoder.fine_grained["semseg"]
    token = torch.randn(2, 8)
    torch.testing.assert_close(fine.tokens(token), fine.mlp(token[:, :, None].expand(2, 8, 5)).mT)


def test_coarsening_and_refining_keep_every_cell_in_its_place():
    coarsen = Coarsen(1, 4)
    with torch.no_grad():
        coarsen.cells.weight.fill_(1 / 16)
        coarsen.cells.bias.zero_()
        ramp = torch.arange(21.0).expand(1, 1, 9, 21)
        back = refine(coarsen(ramp), 4, (9, 21))
    assert back.shape == ramp.shape
    torch.testing.assert_close(back[..., 2:18], ramp[..., 2:18])


@pytest.mark.parametrize("options", [{"gate_stride": 1, "intra_stride": 8, "fine_stride": 3}, {"attention_channels": 5}])
def test_strides_and_attention_channels_can_be_chosen(options):
    assert small("hitts", TASK_SETS["one"], **options)(images(1, (33, 47))).logits["semseg"].shape == (1, 5, 33, 47)


@pytest.mark.parametrize("options", [{"gate_stride": 0}, {"intra_stride": -2}, {"attention_channels": 0}])
def test_a_stride_or_width_below_one_is_refused(options):
    with pytest.raises(MultidenseError, match=f"{next(iter(options))} should be a whole number of at least 1"):
        small("hitts", TASK_SETS["one"], **options)


def test_fine_grained_tokens_made_of_nothing_are_refused():
    with pytest.raises(MultidenseError, match="orthogonal_embeddings or global_tokens"):
        small("hitts", TASK_SETS["one"], orthogonal_embeddings=False, global_tokens=False)


def test_an_aligned_refinement_starts_as_the_product_of_maps_and_scores_category_by_category():
    tasks = TASK_SETS["classified"]
    model = small("hitts", tasks, aligned=True).eval()
    with torch.no_grad():
        outputs = model(images())
        for task in tasks:
            maps = model.decoder.fine_grained[task.name].to_maps(outputs.features[task.name])
            scores = refine(outputs.score_maps[task.name], 2, maps.shape[-2:])
            assert torch.allclose(outputs.logits[task.name], maps * F.softplus(scores), atol=1e-5)
