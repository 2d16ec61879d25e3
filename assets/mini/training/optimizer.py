"""Muon for the matrices, AdamW for the rest, with learning rates held in tensors so that a CUDA graph can replay them."""

import torch


def orthogonalise(g, dtype):
    """Five Newton-Schulz steps of the quintic iteration of Muon (Jordan et al. 2024) on a stack of matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).contiguous()
    for _ in range(5):
        xx = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(xx, xx, xx, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalised; matrices of one shape are stacked and handled together."""

    def __init__(self, parameters, lr, weight_decay, dtype, momentum=0.95):
        self.base_lr, self.weight_decay, self.dtype, self.momentum = lr, weight_decay, dtype, momentum
        shapes = {}
        for p in parameters:
            shapes.setdefault(tuple(p.shape), []).append(p)
        self.groups = list(shapes.values())
        self.moments = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, lr):
        """lr: a tensor of no dimensions."""
        for group, moment in zip(self.groups, self.moments):
            gradient = torch.stack([p.grad for p in group])
            moment.lerp_(gradient, 1 - self.momentum)
            rows, columns = group[0].shape
            update = orthogonalise(gradient.lerp(moment, self.momentum), self.dtype).float()
            update = update * (lr * -max(1.0, rows / columns) ** 0.5)
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind(0)))


class AdamW:
    """AdamW without weight decay (embeddings, biases, norms), bias-corrected by a step count on the device."""

    def __init__(self, parameters, lr, betas=(0.9, 0.95), eps=1e-8):
        self.parameters, self.base_lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, lr):
        b1, b2 = self.betas
        self.steps += 1
        gradients = [p.grad for p in self.parameters]
        torch._foreach_lerp_(self.first, gradients, 1 - b1)
        torch._foreach_mul_(self.second, b2)
        torch._foreach_addcmul_(self.second, gradients, gradients, value=1 - b2)
        scale = lr / (1 - b1**self.steps)
        root = torch._foreach_sqrt(self.second)
        torch._foreach_div_(root, (1 - b2**self.steps).sqrt())
        torch._foreach_add_(root, self.eps)
        update = torch._foreach_div(self.first, root)
        torch._foreach_mul_(update, -scale)
        torch._foreach_add_(self.parameters, update)
