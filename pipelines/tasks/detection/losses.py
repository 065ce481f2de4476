"""The losses of a detector whose objects are peaks of a map, as in CenterNet and TTFNet.

Sources: Zhou, Wang and Kraehenbuehl, Objects as Points, arXiv:1904.07850 (the map and its focal loss); Liu et al.,
Training-Time-Friendly Network for Real-Time Object Detection, AAAI 2020 (every cell near an object's centre learns its
box, which converges several times as fast; ALPHA and BOXES are theirs); Rezatofighi et al., Generalized Intersection
over Union, CVPR 2019; Li et al., Generalized Focal Loss, NeurIPS 2020 (soft scores as targets).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Maps = tuple[torch.Tensor, torch.Tensor]

ALPHA = 0.54  # the part of a box, about its centre, whose cells learn from it
BOXES = 5.0  # how much boxes count beside scores


def loss(outputs: "Maps", truth: "torch.Tensor") -> "torch.Tensor":
    """Return the loss of logits N x K x h x w and log distances N x 4 x h x w.

    `truth`, N x M x 5, has left, top, right and bottom as shares of the input's edges, and the class id (-1: none).
    """
    import torch
    from torch.nn import functional

    logits, distances = outputs
    count, _, height, width = logits.shape
    with torch.no_grad():
        real = truth[..., 4] >= 0
        edges = truth[..., :4] * truth.new_tensor([width, height, width, height])
        near = _near(edges, real, height, width)
        label = truth[..., 4].clamp(min=0).long()[:, :, None, None].expand_as(near)
        heat = torch.zeros_like(logits).scatter_reduce(1, label, near, "amax")
        owner, weight = _owners(edges, real, near)
        objects = real.sum().clamp(min=1)
    log_yes, log_no = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    share = logits.sigmoid()
    centres = heat == 1
    focal = -torch.where(centres, (1 - share) ** 2 * log_yes, (1 - heat) ** 4 * share**2 * log_no).sum()
    wanted = edges.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).reshape(count, height, width, 4)
    return (focal + BOXES * (weight * (1 - giou(corners(distances), wanted))).sum()) / objects


def distillation(student: "Maps", teacher: "Maps", temperature: float) -> "torch.Tensor":
    """Return the distance to a teacher's scores and, where it sees objects, to its boxes.

    Scores are compared by the quality focal loss, logits divided by `temperature`, the loss multiplied by its square.
    """
    from torch.nn import functional

    logits, wanted = student[0] / temperature, (teacher[0] / temperature).sigmoid()
    off = (logits.sigmoid() - wanted) ** 2
    scores = (off * functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()
    sure = teacher[0].sigmoid().amax(1) ** 2
    overlap = giou(corners(student[1]), corners(teacher[1]))
    return (scores * temperature**2 + BOXES * (sure * (1 - overlap)).sum()) / sure.sum().clamp(min=1)


def corners(distances: "torch.Tensor") -> "torch.Tensor":
    """Return boxes N x h x w x 4 (left, top, right, bottom, in cells) of log distances N x 4 x h x w."""
    import torch

    height, width = distances.shape[2:]
    y = (torch.arange(height, device=distances.device) + 0.5)[:, None].expand(height, width)
    x = (torch.arange(width, device=distances.device) + 0.5)[None].expand(height, width)
    left, top, right, bottom = distances.clamp(-10, 10).exp().unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], -1)


def giou(one: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
    """Return the generalized IoU of boxes ... x 4 (left, top, right, bottom), -1 to 1."""
    import torch

    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    around = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (one, other)]
    intersection, hull = shared.prod(-1), around.prod(-1).clamp(min=1e-7)
    union = (areas[0] + areas[1] - intersection).clamp(min=1e-7)
    return intersection / union - (hull - union) / hull


def _near(edges: "torch.Tensor", real: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """Return how near each cell is to the centre of each box, N x M x h x w: 1 in its centre's cell, 0 outside."""
    import torch

    parts = []
    for axis, size in ((1, height), (0, width)):
        low, high = edges[..., axis], edges[..., axis + 2]
        centre = ((low + high) / 2).floor().clamp(0, size - 1)
        radius = (ALPHA * (high - low) / 2).floor()
        away = torch.arange(size, device=edges.device) - centre[..., None]
        sigma = ((2 * radius + 1) / 6)[..., None]
        parts.append(torch.where(away.abs() <= radius[..., None], torch.exp(-(away**2) / (2 * sigma**2)), 0))
    return parts[0][..., None] * parts[1][:, :, None] * real[:, :, None, None]


def _owners(edges: "torch.Tensor", real: "torch.Tensor", near: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return of each cell the box that it learns, the smallest near it, and its weight; those of a box sum to 1."""
    import torch

    area = (edges[..., 2:] - edges[..., :2]).prod(-1).clamp(min=1e-6)
    owner = torch.where(near > 0, 1 / area[:, :, None, None], 0).argmax(1)
    weight = near.gather(1, owner[:, None])[:, 0]
    total = torch.zeros_like(area).scatter_add(1, owner.flatten(1), weight.flatten(1))
    return owner, weight / total.gather(1, owner.flatten(1)).reshape_as(weight).clamp(min=1e-6)
