"""Distillation objectives: each loss by hand, a zero case, finite gradients, and what it doesn't see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import MILOutput
from training.objectives import (
    AnyBagObjective,
    AnyTileObjective,
    BagObjective,
    SeenBag,
    TeacherBag,
    TileObjective,
)
from training.objectives.base import (
    BagShapes,
    LRTeacher,
    Projection,
    Scale,
    Scales,
    StudentTiles,
    Taps,
    Target,
    TeacherTiles,
    TileShapes,
    masked_mse,
    masked_pool,
    pooled_to,
)
from training.objectives.class_and_tokens import masked_cosine
from training.objectives.hints import bounded_regression, weighted_soft_cross_entropy
from training.objectives.lrmil import LRMILBag, LRMILTile
from training.objectives.nkd import nkd_non_target, nkd_target
from training.objectives.review_kd import Fusion, pyramid_loss
from training.objectives.tat import reconfigured
from training.objectives.uskd import soft_target, uskd_non_target, uskd_target, zipf_labels
from training.objectives.vitkd import random_mask, summed_squares
from training.stages.distill_slides import Stage2Section
from training.stages.distill_tiles import Stage1Section

SHAPES = TileShapes(student_dim=6, teacher_dim=8, ratio=2)
DEPTH = 4


def tile_objective(name: str, shapes: TileShapes = SHAPES, **values: object) -> TileObjective:
    spec = TypeAdapter(AnyTileObjective).validate_python({"name": name, **values})
    if name == "lrmil":
        return LRMILTile(Stage1Section(), Taps((0, 2), (0, 2)), shapes)
    taps = spec.tap(depth=DEPTH, student_depth=DEPTH)
    objective: TileObjective = spec.build(taps, shapes)
    return objective


def bag_objective(name: str, shapes: BagShapes | None = None, **values: object) -> BagObjective:
    spec = TypeAdapter(AnyBagObjective).validate_python({"name": name, **values})
    if name == "lrmil":
        return LRMILBag(Stage2Section())
    objective: BagObjective = spec.build(shapes or BagShapes(5, 3, bag_dim=4, teacher_bag_dim=7))
    return objective


def student_tiles(n: int = 3, dim: int = 6, grid: int = 4) -> StudentTiles:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    maps = {layer: leaf(n, dim, grid, grid) for layer in range(DEPTH)}
    return StudentTiles(leaf(n, dim), leaf(n, dim, grid, grid), maps)


def teacher_tiles(n: int = 3, dim: int = 8, ratio: int = 2, grid: int = 4) -> TeacherTiles:
    unit, layers = Scale(torch.zeros(dim), torch.ones(dim)), range(DEPTH)
    of_lr = LRTeacher(
        torch.randn(n, dim),
        torch.randn(n, dim, grid, grid),
        {layer: torch.randn(n, dim, grid, grid) for layer in layers},
    )
    return TeacherTiles(
        child_embeddings=torch.randn(n, ratio**2, dim),
        child_layers={layer: torch.randn(n, ratio**2, dim) for layer in layers},
        child_scores=torch.zeros(n, ratio**2),
        valid=torch.tensor([[True, True, False, True]] * n),
        lr=of_lr,
        scales=Scales(unit, dict.fromkeys(layers, unit), unit, unit, dict.fromkeys(layers, unit)),
    )


# --- what several share ----------------------------------------------------------------------------------------------


def test_masked_mse_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 5.0]], [[2.0, 5.0]]]])  # (B=1, D=2, h=1, w=2)
    target = torch.tensor([[[[0.0, 1.0]], [[4.0, 1.0]]]])
    both = torch.tensor([[[True, True]]])
    assert masked_mse(prediction, target, both).tolist() == pytest.approx([((1 + 4) / 2 + 16) / 2])
    assert masked_mse(prediction, target, torch.tensor([[[True, False]]])).tolist() == pytest.approx([2.5])
    assert masked_mse(prediction, target, ~both).tolist() == [0]


def test_masked_pool_is_the_mean_of_what_is_valid() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(masked_pool(maps, valid, 2)[0], F.adaptive_avg_pool2d(maps, 2))
    valid[0, 0, 0] = False  # of 0, 1, 4 and 5
    valid[0, :2, 2:] = False
    pooled, any_valid = masked_pool(maps, valid, 2)
    assert pooled[0, 0, 0].tolist() == pytest.approx([(1 + 4 + 5) / 3, 0])
    assert any_valid[0].tolist() == [[True, False], [True, True]]


def test_pooling_to_children_keeps_their_order() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pooled_to(maps, 2)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert pooled_to(maps, 4) is maps


def test_targets_are_less_their_mean_in_units_of_their_spread() -> None:
    values = torch.tensor([[[[10.0, 14.0]], [[1.0, 1.0]]]])  # (B=1, D=2, h=1, w=2)
    scale = Scale(torch.tensor([10.0, 0.0]), torch.tensor([2.0, 0.5]))
    target = Target(values, scale, torch.ones(1, 1, 2, dtype=torch.bool))
    assert target.standardised.tolist() == [[[[0, 2]], [[2, 2]]]]
    # A student as wide as its teacher says the same thing in the same units; a narrower one has a trained layer for it.
    torch.testing.assert_close(Projection(2, 2)(values, scale), target.standardised)
    assert not list(Projection(2, 2).parameters())
    assert Projection(3, 2)(torch.zeros(1, 3, 1, 2), scale).shape == values.shape


# --- ReviewKD --------------------------------------------------------------------------------------------------------


def test_pyramid_loss_by_hand() -> None:
    """A difference of d at one of 8 x 8 places: its 4 x 4 mean differs by d / 4, the 2 x 2 by d / 16, the mean by d / 64."""
    prediction, target = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    prediction[0, 0, 3, 5] = 8.0
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    full, four, two, one = 64 / 64, 4 / 16, 0.25 / 4, (8 / 64) ** 2
    expected = (full + four / 2 + two / 4 + one / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert pyramid_loss(prediction, target, valid).tolist() == pytest.approx([expected])


def test_levels_that_are_no_smaller_are_left_out() -> None:
    """Of 4 x 4 children the 4 x 4 version is the map itself: 2 x 2 counts a half, the mean a quarter."""
    prediction, target = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    prediction[0, 0, 0, 0] = 4.0
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    expected = (16 / 16 + (1 / 4) / 2 + (4 / 16) ** 2 / 4) / (1 + 1 / 2 + 1 / 4)
    assert pyramid_loss(prediction, target, valid).tolist() == pytest.approx([expected])


def test_fusion_by_hand() -> None:
    """With 1 x 1 convolutions that pass through, both shares 1/2 and no batch norm: half of each goes on."""
    fusion = Fusion(1, 1, 1, deepest=False).eval()  # running mean 0, variance 1
    with torch.no_grad():
        fusion.inner[0].weight.fill_(1.0)
        assert fusion.attention is not None
        fusion.attention[0].weight.zero_()
        fusion.attention[0].bias.zero_()
        fusion.outer[0].weight.zero_()
        fusion.outer[0].weight[0, 0, 1, 1] = 3.0
    student, deeper = torch.full((1, 1, 2, 2), 4.0), torch.full((1, 1, 2, 2), 10.0)
    outer, fused = fusion(student, deeper)
    torch.testing.assert_close(fused, torch.full_like(fused, 7.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(outer, torch.full_like(outer, 21.0), rtol=1e-4, atol=0)
    _, alone = fusion(student, None)
    torch.testing.assert_close(alone, student, rtol=1e-4, atol=0)


def test_review_kd_warms_up() -> None:
    objective = tile_objective("review_kd", weight=2.0)
    assert [objective.weights(epoch)["review_kd"] for epoch in (0, 9, 19, 40, None)] == [
        0.1,
        1.0,
        2.0,
        2.0,
        2.0,
    ]
    assert objective.taps.layers == (0, 1, 2, 3)
    assert tile_objective("review_kd", warmup_epochs=0).weights(0) == {"review_kd": 1.0}


def test_a_shallow_layer_is_reviewed_with_the_deeper_ones() -> None:
    """The loss of the shallowest layer moves the deepest one of the student, and not the reverse."""
    student, teacher = student_tiles(), teacher_tiles()
    objective = tile_objective("review_kd", layers=(1, 3))
    shallow = student.layer_maps[1]
    predicted, deeper = objective.fusions[1](student.layer_maps[3], None)
    (alone,) = torch.autograd.grad(predicted.sum(), shallow, retain_graph=True, allow_unused=True)
    assert alone is None
    predicted, _ = objective.fusions[0](shallow, deeper)
    (moved,) = torch.autograd.grad(predicted.square().sum(), student.layer_maps[3])
    assert moved.abs().max() > 0
    assert objective(student, teacher)["review_kd"].shape == (3,)


# --- TaT -------------------------------------------------------------------------------------------------------------


def test_reconfigured_by_hand() -> None:
    """Of two places with keys 0 and log 3 the first query takes a quarter and three quarters, the zero query the mean."""
    keys = torch.tensor([[[0.0], [math.log(3.0)]]])
    values = torch.tensor([[[4.0, 0.0], [8.0, 4.0]]])
    queries = torch.tensor([[[1.0], [0.0]]])
    expected = torch.tensor([[[0.25 * 4 + 0.75 * 8, 3.0], [6.0, 2.0]]])
    torch.testing.assert_close(reconfigured(queries, keys, values), expected)


def test_tat_lets_each_place_of_the_teacher_see_all_of_the_students() -> None:
    """Where the student's places are permuted nothing changes: there is no place in a key."""
    student, teacher = student_tiles(), teacher_tiles()
    objective = tile_objective("tat")
    before = objective(student, teacher)["tat"]
    turned = {layer: maps.rot90(1, (2, 3)) for layer, maps in student.layer_maps.items()}
    torch.testing.assert_close(objective(student._replace(layer_maps=turned), teacher)["tat"], before)
    assert objective.weights(0) == {"tat": 0.1}


# --- ViTKD -----------------------------------------------------------------------------------------------------------


def test_summed_squares_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 5.0]], [[2.0, 5.0]]]])
    target = torch.tensor([[[[0.0, 1.0]], [[4.0, 1.0]]]])
    assert summed_squares(prediction, target, torch.tensor([[[True, True]]])).tolist() == [1 + 4 + 16 + 16]
    assert summed_squares(prediction, target, torch.tensor([[[True, False]]])).tolist() == [5]


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 8), (0.25, 4), (0.9, 14)])
def test_as_many_places_are_masked_in_each_tile(ratio: float, expected: int) -> None:
    masks = random_mask(50, 4, ratio)
    assert masks.sum(dim=(1, 2)).tolist() == [expected] * 50
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 10


def test_vitkd_generates_what_is_masked_alone() -> None:
    """A target at a place that isn't masked, or has no tissue, doesn't count in the generation."""
    torch.manual_seed(0)
    objective = tile_objective("vitkd", TileShapes(8, 8, 2), mimic=(0,), generate=3)
    student, teacher = student_tiles(dim=8), teacher_tiles()
    torch.manual_seed(5)
    masked = random_mask(3, 2, 0.5).reshape(3, 4)
    torch.manual_seed(5)
    before = objective(student, teacher)
    other = torch.where((masked & teacher.valid)[..., None], teacher.child_layers[3], 100.0)
    torch.manual_seed(5)
    after = objective(student, teacher._replace(child_layers={**teacher.child_layers, 3: other}))
    torch.testing.assert_close(after["vitkd_generate"], before["vitkd_generate"])
    assert objective.weights(0) == pytest.approx({"vitkd_mimic": 3e-5, "vitkd_generate": 3e-6})


def test_vitkd_mimics_by_hand() -> None:
    """f' that says of each child what f says but for 2 in one dimension: 4 for each of 3 children, in 2 layers."""
    teacher = teacher_tiles()
    objective = tile_objective("vitkd", TileShapes(8, 8, 2), mimic=(0, 1), generate=3)
    maps = {}
    for layer in range(DEPTH):
        tokens = teacher.child_layers[layer].transpose(1, 2).reshape(3, 8, 2, 2).clone()
        tokens[:, 4] += 2
        maps[layer] = tokens.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    student = StudentTiles(torch.zeros(3, 8), torch.zeros(3, 8, 4, 4), maps)
    assert objective(student, teacher)["vitkd_mimic"].tolist() == pytest.approx([2 * 3 * 4] * 3, rel=1e-4)


# --- class token and tokens ------------------------------------------------------------------------------------------


def test_masked_cosine_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 3.0, 1.0]], [[0.0, 0.0, 1.0]]]])
    target = torch.tensor([[[[2.0, 0.0, 1.0]], [[0.0, 5.0, 0.0]]]])
    apart = [0, 1, 1 - 1 / math.sqrt(2)]
    assert masked_cosine(prediction, target, torch.ones(1, 1, 3, dtype=torch.bool)).tolist() == pytest.approx(
        [sum(apart) / 3], abs=1e-6
    )
    assert masked_cosine(
        prediction, target, torch.tensor([[[True, False, False]]])
    ).tolist() == pytest.approx([0])


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(distance: str) -> None:
    teacher = teacher_tiles()
    assert teacher.lr is not None
    same = StudentTiles(teacher.lr.embedding, teacher.lr.token_map, teacher.lr.layer_maps)
    objective = tile_objective("class_and_tokens", TileShapes(8, 8, 2), distance=distance)
    terms = objective(same, teacher)
    assert {name: term.abs().max().item() for name, term in terms.items()} == pytest.approx(
        {"class_token": 0, "tokens": 0}, abs=1e-6
    )


def test_class_token_of_children_is_their_mean_with_tissue() -> None:
    teacher = teacher_tiles()
    mean = teacher.child_embeddings[:, [0, 1, 3]].mean(dim=1)
    student = StudentTiles(mean + 1, torch.zeros(3, 8, 4, 4), {})
    objective = tile_objective("class_and_tokens", TileShapes(8, 8, 2), source="children")
    assert objective(student, teacher)["class_token"].tolist() == pytest.approx([1] * 3, rel=1e-4)


# --- hints -----------------------------------------------------------------------------------------------------------


def test_weighted_soft_cross_entropy_by_hand() -> None:
    student = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    teacher = torch.log(torch.tensor([0.8, 0.1, 0.1]))
    weights = torch.tensor([1.5, 1.0, 1.0])
    expected = -(1.5 * 0.8 * math.log(0.5) + 2 * 0.1 * math.log(0.25))
    assert weighted_soft_cross_entropy(student, teacher, weights).item() == pytest.approx(expected)


def test_bounded_regression_by_hand() -> None:
    """A student that is nearer to the truth than the teacher is left alone, but for a margin."""
    truth, teacher = torch.tensor([1.0, 0.0]), torch.tensor([0.7, 0.3])  # 0.18 away
    worse, better = torch.tensor([0.6, 0.4]), torch.tensor([0.8, 0.2])  # 0.32 and 0.08
    assert bounded_regression(worse, teacher, truth, 0.0).item() == pytest.approx(0.32)
    assert bounded_regression(better, teacher, truth, 0.0).item() == 0
    assert bounded_regression(better, teacher, truth, 0.11).item() == pytest.approx(0.08)


def test_classes_weigh_by_how_rare_they_are() -> None:
    objective = bag_objective("hints", BagShapes(5, 2, 4, 4, class_shares=(0.75, 0.25)))
    assert objective.class_weights.tolist() == pytest.approx([2 / 3, 2])
    with pytest.raises(ConfigError, match="2 numbers for 3 classes"):
        bag_objective("hints", class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="the teacher's head has none"):
        bag_objective("hints", BagShapes(5, 3, bag_dim=4))


# --- logits ----------------------------------------------------------------------------------------------------------


def test_nkd_by_hand() -> None:
    student, teacher = torch.log(torch.tensor([0.5, 0.3, 0.2])), torch.log(torch.tensor([0.6, 0.1, 0.3]))
    assert nkd_target(student, teacher, 0).item() == pytest.approx(-0.6 * math.log(0.5))
    expected = -(0.25 * math.log(0.3 / 0.5) + 0.75 * math.log(0.2 / 0.5))
    assert nkd_non_target(student, teacher, 0, 1.0).item() == pytest.approx(expected)


def test_nkd_at_another_temperature_by_hand() -> None:
    student, teacher = torch.tensor([9.0, 2.0, 0.0]), torch.tensor([9.0, 0.0, 2 * math.log(3.0)])
    other = [math.log(math.e / (math.e + 1)), math.log(1 / (math.e + 1))]
    assert nkd_non_target(student, teacher, 0, 2.0).item() == pytest.approx(
        -4 * (0.25 * other[0] + 0.75 * other[1]), rel=1e-5
    )


def test_with_two_classes_there_is_nothing_beside_the_target() -> None:
    student, teacher = torch.randn(2), torch.randn(2)
    for label in (0, 1):
        assert nkd_non_target(student, teacher, label, 1.0).item() == 0
        assert uskd_non_target(student, teacher, label).item() == 0


def test_uskd_by_hand() -> None:
    student = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    assert soft_target(student, 0, 0.1).item() == pytest.approx(1 + 0.16 - 0.1)
    assert uskd_target(student, 0, torch.tensor(1.06)).item() == pytest.approx(-1.06 * math.log(0.4))
    # The others are 1/2, 1/3, 1/6 of the student; the weak ones turn the order round: 1/2 + 0, 1/3 + 0.1, 1/6 + 0.9.
    weak = torch.log(torch.tensor([0.5, 1e-9, 0.05, 0.45]))
    zipf = torch.tensor([1 / 2, 1 / 3, 1.0]) / (11 / 6)
    torch.testing.assert_close(zipf_labels(student, weak, 0), zipf)
    expected = -(zipf * torch.log(torch.tensor([0.5, 1 / 3, 1 / 6]))).sum().item()
    assert uskd_non_target(student, weak, 0).item() == pytest.approx(expected)


def seen(logits: Tensor, label: int = 0, *, n: int = 6) -> SeenBag:
    attention = torch.randn(n, requires_grad=True)
    output = MILOutput(
        bag_logits=logits,
        attention_logits=attention[None],
        bag_embedding=torch.randn(4, requires_grad=True),
        instance_logits=torch.randn(n, 2, requires_grad=True),
    )
    guided = torch.softmax(torch.randn(n), dim=0)
    teacher = TeacherBag(torch.randn(len(logits)), guided, torch.ones(n, dtype=torch.bool), torch.randn(7))
    return SeenBag(output, torch.randn(n, 5), label, teacher)


def test_uskd_keeps_a_running_mean_of_what_it_was_sure_of() -> None:
    objective = bag_objective("uskd", momentum=0.5).train()
    objective(seen(torch.log(torch.tensor([0.4, 0.3, 0.3]))))
    assert objective.mean_square.item() == pytest.approx(0.16)
    terms = objective(seen(torch.log(torch.tensor([0.8, 0.1, 0.1]))))
    assert objective.mean_square.item() == pytest.approx((0.16 + 0.64) / 2)
    assert terms["uskd_target"].item() == pytest.approx(-(1 + 0.64 - 0.4) * math.log(0.8), rel=1e-5)
    objective.eval()(seen(torch.zeros(3)))
    assert objective.mean_square.item() == pytest.approx(0.4)
    assert "mean_square" in objective.state_dict()


# --- all of them -----------------------------------------------------------------------------------------------------

TILES: list[tuple[str, dict[str, Any]]] = [
    ("lrmil", {}),
    *(
        (name, {"source": source})
        for name in ("hints", "review_kd", "tat", "vitkd", "class_and_tokens")
        for source in ("children", "lr")
    ),
]
BAGS = ["lrmil", "kd", "hints", "nkd", "uskd"]


@pytest.mark.parametrize("student_dim", [6, 8])
@pytest.mark.parametrize(("name", "values"), TILES)
def test_tile_objectives_give_a_finite_gradient_to_what_they_tap(
    name: str, values: dict[str, Any], student_dim: int
) -> None:
    objective = tile_objective(name, TileShapes(student_dim, 8, 2), **values).train()
    student = student_tiles(dim=student_dim)
    terms = objective(student, teacher_tiles())
    weights = objective.weights(None)
    assert terms.keys() == weights.keys()
    assert all(term.shape == (3,) for term in terms.values())
    torch.stack([terms[key].sum() for key in terms if weights[key]]).sum().backward()
    tapped = [student.layer_maps[layer] for layer in objective.taps.student_layers]
    for leaf in [*tapped, *objective.parameters()]:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize(("name", "values"), TILES)
def test_what_a_child_without_tissue_holds_changes_nothing(name: str, values: dict[str, Any]) -> None:
    objective = tile_objective(name, **values).eval()
    student, teacher = student_tiles(), teacher_tiles()
    wild = teacher._replace(
        child_embeddings=torch.where(teacher.valid[..., None], teacher.child_embeddings, 1e3),
        child_layers={
            layer: torch.where(teacher.valid[..., None], tokens, 1e3)
            for layer, tokens in teacher.child_layers.items()
        },
    )
    torch.manual_seed(1)
    before = objective(student, teacher)
    torch.manual_seed(1)
    after = objective(student, wild)
    for key, term in before.items():
        torch.testing.assert_close(after[key], term)


@pytest.mark.parametrize("name", BAGS)
def test_bag_objectives_give_a_finite_gradient(name: str) -> None:
    objective = bag_objective(name).train()
    logits = torch.randn(3, requires_grad=True)
    terms = objective(seen(logits))
    assert all(term.shape == () for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for leaf in [logits, *objective.parameters()]:
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", ["kd", "nkd", "uskd", "hints"])
def test_an_objectives_weight_scales_all_its_terms(name: str) -> None:
    bag = seen(torch.tensor([0.3, -0.2, 1.0]))
    torch.manual_seed(2)
    once = bag_objective(name, weight=1.0)(bag)
    torch.manual_seed(2)
    thrice = bag_objective(name, weight=3.0)(bag)
    assert {key: term.item() for key, term in thrice.items()} == pytest.approx(
        {key: 3 * term.item() for key, term in once.items()}, rel=1e-5
    )


def test_kd_by_hand() -> None:
    """T = 4: softmax of logits 0 and 4 log 3 is 1/4, 3/4; weight 0.5, T^2 = 16."""
    bag = seen(torch.zeros(2))
    bag = bag._replace(teacher=TeacherBag(torch.tensor([0.0, 4 * math.log(3.0)])))
    expected = 0.5 * 16 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert bag_objective("kd", BagShapes(5, 2))(bag)["kd"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("hints", {"layer": 4}, r"0\.\.3"),
        ("vitkd", {"mimic": (3,), "generate": 1}, "ascending"),
        ("review_kd", {"layers": (0, -4)}, "ascending"),
    ],
)
def test_blocks_that_an_encoder_has_not_got_are_refused(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tile_objective(name, **values)


def test_a_shallow_student_is_matched_at_the_same_depth_or_refused() -> None:
    def taps(name: str, student_depth: int) -> Taps:
        spec = TypeAdapter(AnyTileObjective).validate_python({"name": name})
        found: Taps = spec.tap(depth=12, student_depth=student_depth)
        return found

    assert taps("vitkd", 12).student_layers == (0, 1, 11)
    assert taps("review_kd", 4) == Taps((2, 5, 8, 11), (0, 1, 2, 3))
    assert taps("review_kd", 2) == Taps((5, 11), (0, 1))
    assert taps("hints", 4) == Taps((6,), (2,))
    with pytest.raises(ConfigError, match="name fewer"):
        taps("vitkd", 4)
