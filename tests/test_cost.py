"""Parameters and multiply–adds against the published table (arXiv 2411.18823, Table 8) and the verified anchors."""

import pytest

from multidense.models import build_model, count_parameters, multiply_adds
from multidense.tasks import Depth, Normals, SemanticSegmentation

REGRESSED = (SemanticSegmentation(13), Depth(), Normals())
CLASSIFIED = (SemanticSegmentation(13), Depth(bins=30), Normals(centers=20))
NYUV2 = (288, 384)


def giga(model, size=NYUV2):
    return multiply_adds(model, size) / 1e9


@pytest.mark.parametrize(
    ("tasks", "parameters"),
    [
        (REGRESSED, 25_055_185),
        ((SemanticSegmentation(13),), 24_981_069),
        ((SemanticSegmentation(7), Depth()), 25_017_672),
        (CLASSIFIED, 25_058_175),
    ],
    ids=["NYUv2", "one task", "Cityscapes", "classified"],
)
def test_the_shared_decoder_has_the_parameters_of_the_public_code(tasks, parameters):
    assert count_parameters(build_model("segnet", "shared", tasks)) == parameters


def test_the_trunk_has_the_parameters_of_the_public_code():
    assert count_parameters(build_model("segnet", "shared", REGRESSED).backbone) == 24_943_296


def test_the_shared_decoder_costs_what_table_8_says():
    assert giga(build_model("segnet", "shared", REGRESSED)) == pytest.approx(68.808, abs=0.001)


def test_hitts_has_the_parameters_and_cost_of_table_8():
    model = build_model("segnet", "hitts", CLASSIFIED)
    assert count_parameters(model) == pytest.approx(25.32e6, abs=0.03e6)
    assert giga(model) == pytest.approx(83.14, rel=0.01)
    assert (count_parameters(model), giga(model)) == (25_305_122, pytest.approx(83.262, abs=0.001))


def test_lean_hitts_has_one_coarsening_more_and_costs_less_than_the_baseline():
    model = build_model("segnet", "hitts", CLASSIFIED, lean=True)
    assert (count_parameters(model), giga(model)) == (25_305_442, pytest.approx(64.616, abs=0.001))


def test_counting_leaves_the_model_as_it_was():
    model = build_model("segnet", "hitts", CLASSIFIED, width=0.125).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    multiply_adds(model, (33, 47))
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
