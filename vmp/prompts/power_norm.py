"""Power normalisations: maps from frame differences in [-1, 1] to attention in [0, 1].

`sigmoid` is the paper's (Eq. 3). The other four are those it is compared with in Fig. 3 and
Appendix E (Koniusz & Zhang, TPAMI 44(2)), on p = max(D, 0); the start values are those recovered
from the authors' figures. Each can be fixed or learned; a learned parameter keeps to its range.
`identity` does nothing: what a prompt gains over it, its attention gains.
"""

import math

import torch
from torch import Tensor, nn

from vmp.prompts import functional as F
from vmp.utils.registry import Registry

POWER_NORMS = Registry("power normalisation")


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _check(name: str, value: float, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}, it must be {rule}")


class PowerNorm(nn.Module):
    """A map from differences in [-1, 1] to attention in [0, 1], of the same shape."""

    def describe(self) -> dict[str, Tensor]:
        """Return what to log of it, 0-d tensors by name; none unless overridden."""
        return {}


@POWER_NORMS.register()
class sigmoid(PowerNorm):  # noqa: N801  (the name in the config)
    """f(D) = sigmoid(a(m) (D - b(n))), the paper's learnable power normalisation (Eq. 3).

    Args:
        alpha: numerator of the slope a(m), > 0 (Eq. 2).
        beta: weight of |tanh m|, > 0.
        gamma: largest |b|, > 0.
        eps: keeps a finite, > 0.
        m: start of m, not 0, where the gradient vanishes; None draws it from N(1e-5, 1), as the
            paper does, from torch's global generator.
        n: start of n; None likewise.
        learnable: learn m and n; else both are buffers.
    """

    m: Tensor
    n: Tensor

    def __init__(
        self,
        *,
        alpha: float = 5.0,
        beta: float = 0.45,
        gamma: float = 0.6,
        eps: float = 0.1,
        m: float | None = None,
        n: float | None = None,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma), ("eps", eps)):
            _check(f"{name} of the power normalisation", value, value > 0, "above 0")
        if learnable and m is not None:
            _check("the start of a learnable m", m, m != 0, "other than 0: its gradient is 0 there")
        self.alpha, self.beta, self.gamma, self.eps = alpha, beta, gamma, eps
        for name, start in (("m", m), ("n", n)):
            drawn = torch.empty(1).normal_(1e-5, 1.0) if start is None else torch.tensor([start])
            if learnable:
                self.register_parameter(name, nn.Parameter(drawn.float()))
            else:
                self.register_buffer(name, drawn.float())

    def coefficients(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Return slope a(m) and shift b(n) (Eq. 2), each of shape (1,)."""
        m, n = self.m.to(dtype), self.n.to(dtype)
        return F.slope(m, self.alpha, self.beta, self.eps), F.shift(n, self.gamma)

    def forward(self, differences: Tensor) -> Tensor:
        """Return f(D) in [0, 1], same shape."""
        return F.power_normalization(differences, *self.coefficients(differences.dtype))

    @torch.no_grad()
    def describe(self) -> dict[str, Tensor]:
        """Return m, n, a, b and the attention f(0) of a still pixel, 0-d tensors, for logs."""
        a, b = self.coefficients()
        still = F.power_normalization(torch.zeros_like(a), a, b)
        names = {"m": self.m, "n": self.n, "a": a, "b": b, "f0": still}
        return {name: value.detach().squeeze(0) for name, value in names.items()}


@POWER_NORMS.register()
class identity(PowerNorm):  # noqa: N801
    """f(D) = 1: the prompts are the frames after the first, and V is 0."""

    def __init__(self) -> None:
        super().__init__()  # nn.Module's own takes any arguments, the section of the config none

    def forward(self, differences: Tensor) -> Tensor:
        """Return ones, same shape."""
        return torch.ones_like(differences)

    def describe(self) -> dict[str, Tensor]:
        """Return f(0), a 0-d tensor, for logs."""
        return {"f0": torch.ones(())}


class _Unsigned(PowerNorm):
    """A map g(p; v) of p = max(D, 0) with one positive parameter v > `lowest`."""

    lowest = 0.0
    raw: Tensor

    def __init__(self, name: str, value: float, learnable: bool) -> None:
        super().__init__()
        _check(f"{name} of {type(self).__name__}", value, value > self.lowest, f"> {self.lowest:g}")
        raw = torch.tensor([_inverse_softplus(value - self.lowest)])
        if learnable:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)

    def value(self) -> Tensor:
        """Return the parameter in its own range, shape (1,)."""
        return nn.functional.softplus(self.raw) + self.lowest

    def curve(self, positive: Tensor, value: Tensor) -> Tensor:
        """Return g(p; v) for p in [0, 1]."""
        raise NotImplementedError

    def forward(self, differences: Tensor) -> Tensor:
        """Return g(max(D, 0)) in [0, 1], same shape."""
        return self.curve(differences.clamp(0, 1), self.value().to(differences.dtype))

    @torch.no_grad()
    def describe(self) -> dict[str, Tensor]:
        """Return the parameter and f(0), 0-d tensors, for logs."""
        still: Tensor = self(torch.zeros_like(self.raw))
        return {"value": self.value().detach().squeeze(0), "f0": still.squeeze(0)}


@POWER_NORMS.register()
class gamma(_Unsigned):  # noqa: N801
    """g(p) = p ** exponent, 0 < exponent < 1.

    The slope at p = 0 is infinite; the gradient there is defined as 0.
    """

    def __init__(self, *, exponent: float = 0.30, learnable: bool = False) -> None:
        _check("exponent of gamma", exponent, 0 < exponent < 1, "above 0 and below 1")
        # e = v / (1 + v) keeps a learned exponent below 1
        super().__init__("exponent", exponent / (1 - exponent), learnable)

    def value(self) -> Tensor:
        """Return the exponent, shape (1,)."""
        odds = super().value()
        return odds / (1 + odds)

    def curve(self, positive: Tensor, value: Tensor) -> Tensor:
        """Return p ** exponent."""
        moves = positive > 0
        safe = torch.where(moves, positive, torch.ones_like(positive))
        return torch.where(moves, safe**value, torch.zeros_like(positive))


@POWER_NORMS.register()
class maxexp(_Unsigned):  # noqa: N801
    """g(p) = 1 - (1 - p) ** eta, eta > 1."""

    lowest = 1.0

    def __init__(self, *, eta: float = 3.35, learnable: bool = False) -> None:
        super().__init__("eta", eta, learnable)

    def curve(self, positive: Tensor, value: Tensor) -> Tensor:
        """Return 1 - (1 - p) ** eta."""
        rest = 1 - positive
        # at rest = 0 the derivative for eta is rest ** eta * log(rest) = 0 * -inf
        safe = torch.where(rest > 0, rest, torch.ones_like(rest))
        return torch.where(rest > 0, 1 - safe**value, torch.ones_like(rest))


@POWER_NORMS.register()
class sigme(_Unsigned):  # noqa: N801
    """g(p) = 2 / (1 + exp(-eta p)) - 1, eta > 1; not quite 1 at p = 1."""

    lowest = 1.0

    def __init__(self, *, eta: float = 7.95, learnable: bool = False) -> None:
        super().__init__("eta", eta, learnable)

    def curve(self, positive: Tensor, value: Tensor) -> Tensor:
        """Return tanh(eta p / 2), which is the same function and does not cancel near 0."""
        return torch.tanh(value * positive / 2)


@POWER_NORMS.register()
class asinhe(_Unsigned):  # noqa: N801
    """g(p) = asinh(gamma p) / asinh(gamma), gamma > 0.

    Without the division it leaves [0, 1]; the authors' figures fit only with it.
    """

    def __init__(self, *, gamma: float = 100.0, learnable: bool = False) -> None:
        super().__init__("gamma", gamma, learnable)

    def curve(self, positive: Tensor, value: Tensor) -> Tensor:
        """Return asinh(gamma p) / asinh(gamma)."""
        return torch.asinh(value * positive) / torch.asinh(value)
