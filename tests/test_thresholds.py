"""Rules that say which discovered pixels to trust."""

import pytest
import torch

from multidense.tasks import SemanticSegmentation
from multidense.thresholds import BINS, NOTHING, Confidences, Threshold, keep, rules_for
from multidense.types import MultidenseError


def spread(confidence: torch.Tensor, right: torch.Tensor | None = None) -> Confidences:
    """All pixels of one image counted."""
    found = Confidences()
    found.add(
        confidence[None, None],
        torch.ones(1, 1, *confidence.shape, dtype=torch.bool),
        None if right is None else right[None, None],
    )
    return found


def kept(confidence: torch.Tensor, rule: str, right: torch.Tensor | None = None) -> torch.Tensor:
    """Which pixels a rule keeps: the same comparison as discovery makes."""
    return confidence > spread(confidence, right).threshold(Threshold.parse(rule))


# Reading


@pytest.mark.parametrize(
    ("text", "rule", "number"),
    [
        ("fixed 0.9", "fixed", 0.9),
        ("share 0.6", "share", 0.6),
        ("precision 1", "precision", 1.0),
        ("balanced 0.5", "balanced", 0.5),
        (0.45, "fixed", 0.45),
        (1, "fixed", 1.0),
    ],
)
def test_a_rule_is_read_and_written(text, rule, number):
    threshold = Threshold.parse(text)
    assert threshold == Threshold(rule, number)
    assert Threshold.parse(str(threshold)) == threshold
    assert Threshold.parse(threshold) is threshold


@pytest.mark.parametrize(
    "text", ["fixed", "fixed high", "share 1.2", "share -0.1", "top 0.5", "", "share nan", 1.5, "fixed 0.5 0.6"]
)
def test_what_is_no_rule_is_refused_with_those_there_are(text):
    with pytest.raises(
        MultidenseError, match="expected 'fixed T', 'share S', 'balanced S' or 'precision P' with a number in 0 … 1"
    ):
        Threshold.parse(text)


def test_one_rule_serves_all_tasks_and_a_mapping_serves_each():
    assert rules_for(["a", "b"], "share 0.5") == {"a": Threshold("share", 0.5), "b": Threshold("share", 0.5)}
    given = {"a": 0.9, "default": "share 0.5"}
    assert rules_for(["a", "b"], given) == {"a": Threshold("fixed", 0.9), "b": Threshold("share", 0.5)}
    assert rules_for(["a"], {"a": "share 0.1"}) == {"a": Threshold("share", 0.1)}


def test_rules_for_unknown_or_missing_tasks_are_named():
    with pytest.raises(MultidenseError, match=r"unknown task 'c'; expected a, b, default"):
        rules_for(["a", "b"], {"c": 0.5})
    with pytest.raises(MultidenseError, match="no rule for b; name one, or give a 'default'"):
        rules_for(["a", "b"], {"a": 0.5})


# Choosing


def test_a_fixed_threshold_is_what_it_says():
    assert spread(torch.rand(4, 4)).threshold(Threshold("fixed", 0.45)) == 0.45


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("shape", ["even", "timid", "sure"])
def test_a_share_is_kept_to_within_one_bin(share, shape):
    confidence = {"even": lambda c: c, "timid": lambda c: c**3, "sure": lambda c: 1 - (1 - c) ** 3}[shape](torch.rand(200, 200))
    keeps = kept(confidence, f"share {share}").float().mean().item()
    fullest = torch.histc(confidence, BINS, 0, 1).max().item() / confidence.numel()
    assert share - 1e-6 <= keeps <= share + fullest + 1e-6


def test_a_share_keeps_the_most_confident():
    confidence = torch.linspace(0, 1, 1000)[None]
    chosen = kept(confidence, "share 0.3")
    assert confidence[chosen].min() > confidence[~chosen].max()


@pytest.mark.parametrize("level", [0.0, 0.001, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_a_share_of_pixels_that_are_all_equally_sure_keeps_them_all(level):
    assert kept(torch.full((4, 4), level), "share 0.5").all()


def test_a_share_of_nothing_keeps_nothing():
    assert not kept(torch.rand(10, 10), "share 0").any()
    assert Confidences().threshold(Threshold("share", 0.5)) == NOTHING


def test_precision_is_the_lowest_threshold_that_suffices():
    confidence = torch.tensor([[0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 0.95]])
    right = torch.tensor([[False, False, False, True, False, True, True, False, True, True]])
    for wanted, lowest in ((0.6, 0.35), (0.65, 0.45), (0.7, 0.45), (0.8, 0.65), (0.9, 0.95), (1.0, 0.95)):
        chosen = kept(confidence, f"precision {wanted}", right)
        assert confidence[chosen].min().item() == pytest.approx(lowest), wanted
        assert right[chosen].float().mean() >= wanted


def test_a_precision_of_zero_keeps_everything_there_is():
    assert kept(torch.rand(10, 10), "precision 0", torch.zeros(10, 10, dtype=torch.bool)).all()


def test_a_precision_out_of_reach_keeps_nothing():
    confidence = torch.rand(10, 10)
    assert not kept(confidence, "precision 0.5", torch.zeros(10, 10, dtype=torch.bool)).any()
    assert not (torch.ones(3, 3) > NOTHING).any()


def test_only_the_pixels_that_are_asked_for_count():
    confidence, of = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8) < 0.5
    right = torch.rand(2, 1, 8, 8) < 0.5
    found = Confidences()
    found.add(confidence, of, right)
    assert found.counts.sum() == of.sum()
    assert found.right.sum() == (of & right).sum()


def test_adding_image_by_image_is_adding_all_at_once():
    confidence, of = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8) < 0.7
    together, apart = Confidences(), Confidences()
    together.add(confidence, of, of)
    for one, which in zip(confidence, of, strict=True):
        apart.add(one, which, which)
    assert torch.equal(together.counts, apart.counts)
    assert torch.equal(together.right, apart.right)


def test_a_threshold_may_be_one_for_each_category():
    task = SemanticSegmentation(3)
    value = torch.tensor([[[0, 1], [2, 2]]])
    confidence = torch.tensor([[[0.6, 0.6], [0.6, 0.2]]])
    assert keep(task, value, confidence, [0.5, 0.7, 0.1]).tolist() == [[[True, False], [True, True]]]
    both = keep(task, value.expand(2, 1, 2, 2), confidence.expand(2, 1, 2, 2), [0.5, 0.7, 0.1])
    assert both.tolist() == [[[[True, False], [True, True]]]] * 2
    assert torch.equal(keep(task, value, confidence, 0.5), confidence > 0.5)


def test_precision_without_anything_to_judge_it_by_keeps_nothing():
    assert spread(torch.rand(4, 4)).threshold(Threshold.parse("precision 0.5")) == NOTHING
