"""Ridge regression from sums over images, which add up over batches, processes and sessions.

What a session's images leave behind are weighted sums of their embeddings φ (d,) and labels y (C,): n = Σω, s = Σωφ,
G = Σωφφᵀ, q = Σωy, Q = Σωφyᵀ. Of them W = (G − ssᵀ/n + λI)⁻¹ (Q − sqᵀ/n) and b = (q − Wᵀs)/n is ridge regression with
an intercept on all images that were ever added, as if they were still there. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from ..errors import RunError

TINY = torch.finfo(torch.float64).tiny
BLOCK = 1024  # images that are left out in turn at a time: a row for each penalty and class is large


@dataclass
class Group:
    """Sums for classes whose labels are known on the same images. ``columns`` of the classes, in learning order."""

    columns: list[int]
    n: Tensor  # ()
    s: Tensor  # (d,)
    G: Tensor  # (d, d)

    @classmethod
    def empty(cls, columns: list[int], like: Tensor) -> Group:
        d = like.shape[-1]
        return cls(columns, like.new_zeros(()), like.new_zeros(d), like.new_zeros(d, d))

    def copy(self, columns: list[int]) -> Group:
        return Group(columns, self.n.clone(), self.s.clone(), self.G.clone())


class Statistics:
    """The sums of all images so far, in one `Group` as long as every label of every image is known.

    A label that is not known takes part in nothing: where classes differ in the images that tell of them, each kind has
    a group of its own. The first group is of all images, for classes to come. ``width`` d of the embeddings.
    """

    def __init__(self, width: int):
        self.groups: list[Group] = []
        self.shares = True
        self.q, self.Q = torch.zeros(0, dtype=torch.float64), torch.zeros(width, 0, dtype=torch.float64)

    def widen(self, classes: int, shares: bool) -> None:
        """Make room for more classes. shares: images so far count as not showing them; else as unknown."""
        self.shares, old = shares, self.q.shape[0]
        columns = list(range(old, old + classes))
        self.q = torch.cat([self.q, self.q.new_zeros(classes)])
        self.Q = torch.cat([self.Q, self.Q.new_zeros(len(self.Q), classes)], dim=1)
        if shares and self.groups:
            self.groups[0].columns += columns
        else:
            self.groups.append(Group.empty(columns, self.Q.T))

    def add(
        self, embedded: Tensor, labels: Tensor, known: Tensor, weights: Tensor, repeated: Tensor | None = None
    ) -> None:
        """Embeddings (m, d), labels (m, C) in [0, 1], known (m, C) bool, weights (m,) of images. What is known of
        them must not differ within a group, see `part`. repeated (m,) bool: images that every group counts already, as
        not showing the new classes; only their labels are added, and groups that know nothing of them after all count
        them no longer."""
        weighted = embedded * weights[:, None]
        shown = torch.where(known, labels, 0.0)
        self.q += weights @ shown
        self.Q += weighted.T @ shown
        for group in self.groups:
            counts = known[:, group.columns[0]] if group.columns else torch.ones_like(known[:, 0])
            if repeated is None or not repeated.any():
                rows, share = counts, weighted if bool(counts.all()) else weighted[counts]
                group.n += weights[counts].sum()
            else:
                change = counts.to(weights) - repeated.to(weights)  # 1, 0, or −1: counted too early
                rows = change != 0
                share = weighted[rows] * change[rows, None]
                group.n += weights @ change
            group.s += share.sum(dim=0)
            group.G += share.T @ (embedded if bool(rows.all()) else embedded[rows])

    def part(self, known: Tensor) -> None:
        """Split groups whose classes differ in what is known of these images. RunError where there is no room."""
        kinds: list[dict[bytes, list[int]]] = [{} for _ in self.groups]
        if self.shares:
            kinds[0][torch.ones_like(known[:, 0]).numpy().tobytes()] = []  # stays of all images, whatever its classes
        for group, found in zip(self.groups, kinds, strict=True):
            for column in group.columns:
                found.setdefault(known[:, column].numpy().tobytes(), []).append(column)
        count = sum(map(len, kinds))
        wanted = 2 * count * len(self.Q) ** 2 * 8  # twice: a session is added up before it is merged
        if count > len(self.groups) and wanted > (free := psutil.virtual_memory().available):
            raise RunError(
                f"Unknown labels part the classes into {count} groups, and ridge regression needs sums for each: "
                f"{wanted / 1e9:.1f} GB, where {free / 1e9:.1f} GB of memory are free. Learn fewer classes "
                "(data.classes), or with a narrower backbone or model.expand."
            )
        for group, found in zip(list(self.groups), kinds, strict=True):
            group.columns, *others = found.values()
            self.groups += [group.copy(columns) for columns in others]

    def like_empty(self) -> Statistics:
        """Zeros of the same groups, to add up what several processes find."""
        made = Statistics.from_state(self.state())
        for tensor in made.tensors:
            tensor.zero_()
        return made

    def merge(self, other: Statistics, times: float = 1) -> None:
        """Add sums of the same groups, so many times; -1 takes them away."""
        for mine, others in zip(self.tensors, other.tensors, strict=True):
            mine += times * others

    def together(self, columns: Iterable[int]) -> list[list[int]]:
        """Columns, those of one group in one list."""
        wanted = set(columns)
        return [found for group in self.groups if (found := [c for c in group.columns if c in wanted])]

    @property
    def frequency(self) -> Tensor:
        """(C,) weighted share of the images with each class."""
        found = torch.zeros_like(self.q)
        for group in self.groups:
            found[group.columns] = self.q[group.columns] / group.n.clamp(min=TINY)
        return found

    def solve(self, columns: list[int]) -> Solver:
        """Ridge regressions of classes of one group."""
        group = next(group for group in self.groups if columns[0] in group.columns)
        return Solver(group, self.q[columns], self.Q[:, columns])

    def solution(self, penalty: float) -> tuple[Tensor, Tensor]:
        """W (d, C) and b (C,) of all classes, for scores φW + b."""
        W, b = torch.zeros_like(self.Q), torch.zeros_like(self.q)
        for group in filter(lambda group: group.columns, self.groups):
            W[:, group.columns], b[group.columns] = self.solve(group.columns).weights(penalty)
        return W, b

    # ---- what must survive a restart ----

    def state(self) -> dict:
        groups = [{"columns": g.columns, "n": g.n, "s": g.s, "G": g.G} for g in self.groups]
        return {"q": self.q, "Q": self.Q, "groups": groups}

    @classmethod
    def from_state(cls, state: dict) -> Statistics:
        made = cls(len(state["Q"]))
        made.q, made.Q = state["q"].clone(), state["Q"].clone()
        made.groups = [
            Group(list(g["columns"]), g["n"].clone(), g["s"].clone(), g["G"].clone()) for g in state["groups"]
        ]
        return made

    @property
    def tensors(self) -> list[Tensor]:
        return [self.q, self.Q, *(tensor for g in self.groups for tensor in (g.n, g.s, g.G))]


class Solver:
    """Ridge regressions of k classes, for any penalty.

    Penalties are shares of the mean diagonal of the centred G, so that one number means the same for any number of
    images and any scale of embeddings.
    """

    def __init__(self, group: Group, q: Tensor, Q: Tensor):
        self.n = group.n.clamp(min=TINY)
        self.mean, self.frequency = group.s / self.n, q / self.n
        self.G = group.G - torch.outer(group.s, self.mean)
        self.Q = Q - torch.outer(group.s, self.frequency)
        self.unit = self.G.diagonal().mean().clamp(min=TINY)

    def _axes(self, *rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Eigenvalues (d,) of G, and rows (m, d) along its eigenvectors. By way of a matrix of three diagonals, turning
        what is asked for instead of making all vectors: a fifth of the time of `torch.linalg.eigh`."""
        from scipy.linalg import eigh_tridiagonal
        from scipy.linalg.lapack import dsytrd
        from threadpoolctl import threadpool_limits

        with threadpool_limits(torch.get_num_threads(), "blas"):  # scipy has a BLAS of its own
            reflections, diagonal, beside, scale, _ = dsytrd(self.G.numpy().T, lower=1, lwork=64 * len(self.G))
            values, vectors = (torch.from_numpy(found) for found in eigh_tridiagonal(diagonal, beside))
        along = torch.cat(rows)
        if len(values) > 1:  # Householder's, which leave the first coordinate alone
            how = torch.from_numpy(reflections[1:, :-1]), torch.from_numpy(scale)
            along[:, 1:] = torch.ormqr(*how, along[:, 1:].T, transpose=True).T
        return values.clamp(min=0), (along @ vectors).split([len(numbers) for numbers in rows])

    def weights(self, penalty: float) -> tuple[Tensor, Tensor]:
        """W (d, k) and b (k,), for scores φW + b."""
        ridge = self.G + torch.diag_embed((penalty * self.unit).expand(len(self.G)))
        W = torch.cholesky_solve(self.Q, torch.linalg.cholesky(ridge))
        return W, self.frequency - self.mean @ W

    def moments(self, now: Tensor, before: Tensor) -> Tensor:
        """(4, k) over the images: means of φ·now and of φ·before, the variance of the first and their covariance; now
        and before (d, k)."""
        turned = self.G @ now
        products = (now * turned).sum(dim=0), (before * turned).sum(dim=0)
        return torch.stack([self.mean @ now, self.mean @ before, *(product / self.n for product in products)])

    def press(self, embedded: Tensor, labels: Tensor, weights: Tensor, penalties: list[float]) -> Tensor:
        """(penalties, k) weighted sums of squared errors of predictions for images that the regression has not seen.

        embedded (m, d), labels (m, k) and weights (m,) of images that were added; each is left out in turn, in closed
        form: the error is the residual over 1 − h, with the leverage h = ω (1/n + φ̄ᵀ(G + λI)⁻¹φ̄), φ̄ = φ − mean
        (Allen, *The relationship between variable selection and data augmentation and a method for prediction*, 1974).
        """
        values, (turned, aim) = self._axes(embedded - self.mean, self.Q.T)
        shrunk = 1 / (values + values.new_tensor(penalties)[:, None] * self.unit)  # (penalties, d)
        errors = labels.new_zeros(len(penalties), labels.shape[1])
        for axes, y, w in zip(*(part.split(BLOCK) for part in (turned, labels, weights)), strict=True):
            fitted = axes @ (shrunk[:, None] * aim).flatten(0, 1).T  # of all penalties at once
            residual = (y - self.frequency)[:, None] - fitted.unflatten(1, errors.shape)
            leverage = w[:, None] * (1 / self.n + axes.square() @ shrunk.T)
            left_out = residual / (1 - leverage).clamp(min=1e-9)[:, :, None]
            errors += torch.einsum("m,mpk->pk", w, left_out.square_())
        return errors
