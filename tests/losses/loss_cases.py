"""What the tests of the losses share: inputs that are hard on a loss, and what it owes them."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from surefoot.losses import (
    WiseIoU,
    batch_hard_triplet,
    binary_cross_entropy,
    box_iou_aligned,
    contrastive_proposals,
    distribution_focal_loss,
    focal_loss,
    iou_loss,
    prototype_contrastive,
    supervised_contrastive,
)

moderate = settings(max_examples=50)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])

# Few values, so that they often coincide: ties, empty sides, boxes in a line.
_SPECIAL = [0.0, 1.0, 3.0, -3.0, 1e4, -1e4, 1e-4, 6e-8, -6e-8, 1e-30, 100.0]
numbers = st.one_of(
    st.sampled_from(_SPECIAL), st.floats(min_value=-1e4, max_value=1e4, allow_nan=False)
)


def tensors(*shape, elements=numbers):
    """Tensors of one shape, float32."""
    count = int(torch.Size(shape).numel())
    return st.lists(elements, min_size=count, max_size=count).map(
        lambda values: torch.tensor(values, dtype=torch.float32).reshape(shape)
    )


def box_pairs(rows=6):
    """Two sets of boxes; some rows are the same box twice."""
    return st.builds(
        lambda a, b, same: (a, torch.where(same[:, None], a, b)),
        tensors(rows, 4),
        tensors(rows, 4),
        st.lists(st.booleans(), min_size=rows, max_size=rows).map(torch.tensor),
    )


def leaf(values, dtype=torch.float32):
    return values.detach().to(dtype).clone().requires_grad_()


def assert_finite(loss, *inputs):
    """The value is finite, and so is the gradient at every input, in the input's dtype."""
    assert loss.dtype == torch.float32
    assert loss.isfinite().all(), loss
    for given in inputs:
        given.grad = None
    loss.mean().backward()
    for given in inputs:
        assert given.grad is not None
        assert given.grad.dtype == given.dtype
        assert given.grad.isfinite().all(), given.grad


def ordinary_boxes(rows, seed=0, *, least=8.0, most=200.0):
    """Boxes in a 640 pixel image, many of which overlap."""
    g = torch.Generator().manual_seed(seed)
    centre = 320 + 60 * torch.randn(rows, 2, generator=g)
    size = least + (most - least) * torch.rand(rows, 2, generator=g)
    return torch.cat((centre - size / 2, centre + size / 2), dim=1)


def gradients(function, *inputs):
    """Value and gradients of the sum of a function's result."""
    given = [leaf(x, x.dtype) for x in inputs]
    value = function(*given)
    return value.detach(), torch.autograd.grad(value.sum(), given)


def assert_as_twin(function, twin, *inputs):
    """Value and gradients equal those of the float64 twin."""
    value, grads = gradients(function, *inputs)
    expected, expected_grads = gradients(twin, *(x.double() for x in inputs))
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=2e-5 * scale)


LABELS = torch.tensor([0, 1, 0, 2, 1, 0])

# Every loss of the package on inputs it is made for: (function of floating inputs, those inputs).
EVERY_LOSS = {
    **{
        f"iou_loss {kind}": (
            lambda p, t, kind=kind: iou_loss(p, t, kind),
            lambda: (ordinary_boxes(6, 1), ordinary_boxes(6, 2)),
        )
        for kind in ("iou", "giou", "diou", "ciou")
    },
    **{
        f"WiseIoU {version}": (
            lambda p, t, version=version: WiseIoU(version)(p, t),
            lambda: (ordinary_boxes(6, 1), ordinary_boxes(6, 2)),
        )
        for version in (1, 2, 3)
    },
    "box_iou_aligned": (box_iou_aligned, lambda: (ordinary_boxes(6, 1), ordinary_boxes(6, 2))),
    "distribution_focal_loss": (
        lambda x: distribution_focal_loss(x, torch.linspace(0, 15, 24).reshape(6, 4)),
        lambda: (torch.randn(6, 4, 16),),
    ),
    "binary_cross_entropy": (
        lambda x: binary_cross_entropy(x, torch.eye(6)),
        lambda: (torch.randn(6, 6),),
    ),
    "focal_loss": (lambda x: focal_loss(x, torch.eye(6)), lambda: (torch.randn(6, 6),)),
    "supervised_contrastive": (
        lambda x: supervised_contrastive(x, LABELS),
        lambda: (torch.randn(6, 32),),
    ),
    "prototype_contrastive": (
        lambda x, p: prototype_contrastive(x, p, LABELS),
        lambda: (torch.randn(6, 32), torch.randn(3, 32)),
    ),
    "contrastive_proposals": (
        lambda x: contrastive_proposals(x, LABELS, torch.linspace(1.0, 0.5, 6)),
        lambda: (torch.randn(6, 32),),
    ),
    **{
        f"batch_hard_triplet {distance}{' soft' * soft}": (
            lambda x, distance=distance, soft=soft: batch_hard_triplet(
                x, LABELS, distance=distance, soft=soft
            ),
            lambda: (torch.randn(6, 32),),
        )
        for distance in ("cosine", "euclidean")
        for soft in (False, True)
    },
}
