"""Slow, obvious float64 twins of the losses: one row at a time, as the papers write them."""

import math

import torch

PAD = 1e-4
POINT = 0.1


def larger(a, b):
    return a if a >= b else b


def smaller(a, b):
    return a if a <= b else b


def span(first, second):
    """Low end, high end and inversion of one side of a box."""
    if second >= first:
        return first, second, first * 0
    middle = (first + second) / 2
    return middle, middle, first - second


def box_terms(pred, target):
    """IoU, union, enclosing area, squared centre distance, squared diagonal and so on."""
    overlap = area = area_t = enclosing = 1.0
    distance = diagonal = inversion = extent = 0.0
    sides, sides_t = [], []
    for axis in (0, 1):
        low, high, inverted = span(pred[axis], pred[axis + 2])
        low_t, high_t, inverted_t = span(target[axis], target[axis + 2])
        common = smaller(high, high_t) - larger(low, low_t) + PAD
        overlap = overlap * (common if common > 0 else common * 0)
        sides.append(high - low + PAD)
        sides_t.append(high_t - low_t + PAD)
        area, area_t = area * sides[axis], area_t * sides_t[axis]
        reach = larger(high, high_t) - smaller(low, low_t) + PAD
        enclosing = enclosing * (reach + inverted + inverted_t)
        middle = (pred[axis] + pred[axis + 2]) / 2 - (target[axis] + target[axis + 2]) / 2
        distance, diagonal = distance + middle**2, diagonal + reach**2
        inversion, extent = inversion + inverted + inverted_t, extent + reach
    union = area + area_t - overlap
    angles = [torch.atan(s[0] / s[1]) for s in (sides, sides_t)]
    size = smaller(sides[0] ** 2 + sides[1] ** 2, sides_t[0] ** 2 + sides_t[1] ** 2)
    return overlap / union, union, enclosing, distance, diagonal, inversion, extent, angles, size


def iou_row(pred, target, kind):
    iou, union, enclosing, distance, diagonal, inversion, extent, angles, size = box_terms(
        pred, target
    )
    loss = 1 - iou
    if kind == "giou":
        return loss + (enclosing - union) / enclosing
    if kind in ("diou", "ciou"):
        detour = inversion * extent
        loss = loss + (distance + detour) / (diagonal + detour)
    if kind == "ciou":
        v = 4 / math.pi**2 * (angles[1] - angles[0]) ** 2
        alpha = (v / (1 - iou + v) * size / (size + POINT**2)).detach() if v > 0 else 0.0
        loss = loss + alpha * v
    return loss


def iou_loss(pred, target, kind):
    return torch.stack([iou_row(p, t, kind) for p, t in zip(pred, target, strict=True)])


def wise_iou(pred, target, version, *, mean, alpha=1.9, delta=3.0, gamma=0.5):
    """``mean`` is the running mean that the focus uses."""
    rows = []
    for p, t in zip(pred, target, strict=True):
        iou, _, _, distance, diagonal, inversion, extent, *_ = box_terms(p, t)
        detour = inversion * (extent.detach() if torch.is_tensor(extent) else extent)
        r_wiou = torch.exp((distance + detour) / (diagonal + detour).detach())
        beta = (1 - iou).detach() / mean
        r = {1: 1.0, 2: beta**gamma, 3: beta / (delta * alpha ** (beta - delta))}[version]
        rows.append(r * r_wiou * (1 - iou))
    return torch.stack(rows)


def distribution_focal_loss(logits, target):
    rows = []
    for box_logits, box_target in zip(logits, target, strict=True):
        sides = []
        for side_logits, y in zip(box_logits, box_target.tolist(), strict=True):
            last = len(side_logits) - 1
            y = min(max(y, 0.0), float(last))
            i = min(math.floor(y), last - 1)
            log_p = (side_logits.exp() / side_logits.exp().sum()).log()
            sides.append(-((i + 1 - y) * log_p[i] + (y - i) * log_p[i + 1]))
        rows.append(sum(sides) / len(sides))
    return torch.stack(rows)


def binary_cross_entropy(logits, targets):
    p = 1 / (1 + torch.exp(-logits))
    return -(targets * p.log() + (1 - targets) * (1 - p).log())


def focal_loss(logits, targets, *, gamma, alpha):
    p = 1 / (1 + torch.exp(-logits))
    p_t = p * targets + (1 - p) * (1 - targets)
    weight = 1.0 if alpha is None else alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - p_t) ** gamma * binary_cross_entropy(logits, targets)


def cosine(a, b):
    return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()


def supervised_contrastive(embeddings, labels, *, temperature):
    count, rows = len(labels), []
    for i in range(count):
        others = [a for a in range(count) if a != i]
        positives = [a for a in others if labels[a] == labels[i]]
        if not positives:
            continue
        scores = {a: torch.exp(cosine(embeddings[i], embeddings[a]) / temperature) for a in others}
        total = sum(scores.values())
        rows.append(-sum((scores[p] / total).log() for p in positives) / len(positives))
    return sum(rows) / len(rows)


def prototype_contrastive(embeddings, prototypes, labels, *, temperature):
    rows = []
    for e, label in zip(embeddings, labels.tolist(), strict=True):
        scores = torch.stack([torch.exp(cosine(e, p) / temperature) for p in prototypes])
        rows.append(-(scores[label] / scores.sum()).log())
    return torch.stack(rows)
