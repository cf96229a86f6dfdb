"""Opacus's training loop with noise of any law, and that law in the ledger.

Symbols: C the clip (Opacus's ``max_grad_norm``), q sampling rate. The noise is in units of C, as
Opacus's ``noise_multiplier`` is: ``noise.scaled(C)`` is added to the sum of the clipped gradients,
so that ``Gaussian(sigma=m)`` trains as ``noise_multiplier=m`` does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from accountants import Ledger, calibrate_scale
from dpmech import Noise, Target
from dpmech.noise import checked_positive
from fl_integration.gradient_release import gradient_release
from fl_integration.opacus_accountant import LEDGER, LedgerAccountant, sampled_rate
from fl_integration.opacus_ghost import GHOST_MARGIN, GhostCriterion, GhostLawOptimizer
from fl_integration.opacus_optimizers import LawOptimizer, Step
from fl_integration.opacus_options import EngineOptions
from fl_integration.proofs import accountant_for

try:
    from opacus import PrivacyEngine
    from opacus.data_loader import DPDataLoader
    from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
    from opacus.optimizers import (
        DPOptimizer,
        DPOptimizerFastGradientClipping,
        get_optimizer_class,
    )
except ImportError as error:
    raise ImportError(
        f"The engine for Opacus needs the opacus package ({error}): pip install 'dpmech[opacus]'.",
        name="opacus",
    ) from None

__all__ = ["NoiseEngine"]

# Opacus's optimiser: the one that takes its place. Every other is refused.
_OPTIMIZERS = {DPOptimizer: LawOptimizer, DPOptimizerFastGradientClipping: GhostLawOptimizer}
_DISTRIBUTED = (
    DistributedDataParallel,
    DifferentiallyPrivateDistributedDataParallel,
    FSDPModule,
)


class NoiseEngine(PrivacyEngine):  # type: ignore[misc]  # opacus carries no types
    """Opacus's engine for noise of any law, with a ledger of what really ran.

    **Guarantees**

    * What is accounted for is what is added: the optimiser draws the law of the ledger's
      mechanism, scaled by the clip, once for all parameters together.
    * :meth:`get_epsilon` is a proved upper bound for one example added or removed, provided that
      the losses of a batch are independent of each other (a mean or sum over examples), that every
      batch comes from the loader that :meth:`make_private` returned and is used once, and, in
      ghost mode, that rounding within the backward pass stays below a thousandth of the clip.
    * An option that is not known is a TypeError, one without a proof a ValueError, before the
      module is touched.

    Arguments:
        accountant: the ledger's, and no other.

    Source: federated.md §5.
    """

    def __init__(self, *, accountant: str = LEDGER, secure_mode: bool = False) -> None:
        if accountant != LEDGER:
            raise ValueError(
                f"Expected accountant={accountant!r} to be left out: Opacus's accountants know a "
                "noise multiplier, not a law. The engine keeps a ledger of its own."
            )
        if secure_mode:
            raise ValueError(
                f"Expected secure_mode={secure_mode} to be False: Opacus's sums Gaussians and "
                "needs torchcsprng. The noise here is drawn in fp64 on fresh system entropy."
            )
        self.accountant = LedgerAccountant()
        self.secure_mode, self.secure_rng, self.dataset = False, None, None

    @property
    def ledger(self) -> Ledger:
        """The mechanisms of the steps so far, their noise in units of the clip."""
        return self.accountant.ledger

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: DataLoader[Any],
        noise: Noise,
        max_grad_norm: float,
        **options: Any,
    ) -> tuple[Any, ...]:
        """Opacus's ``make_private`` with a law in the place of ``noise_multiplier``.

        Arguments:
            noise: the law added to the sum of the clipped gradients, in units of max_grad_norm.
            max_grad_norm: C > 0. options: those of `EngineOptions`.

        Returns:
            (module, optimiser, loader), and the criterion before the loader in ghost mode.

        Raises:
            NoDominatingPair: where nothing is proved for the law on so many coordinates.
            TypeError: for an unknown option. ValueError: for one without a proof.
        """
        chosen = EngineOptions(**options)
        parameters = _trained(module, optimizer)
        self.validate(module=module, optimizer=None, data_loader=None)
        loader = self._prepare_data_loader(
            data_loader,
            poisson_sampling=True,
            distributed=False,
            batch_first=chosen.batch_first,
        )
        release = gradient_release(noise, dim=_dim(parameters), rate=_rate(loader))
        clip = checked_positive("max_grad_norm", max_grad_norm)
        plan = Step.of(release, clip=clip, batch_first=chosen.batch_first)
        wrapped = self._wrapped(module, clip=clip, chosen=chosen)
        module.register_forward_pre_hook(plan.given, with_kwargs=True)
        private = self._prepare_optimizer(
            optimizer=optimizer,
            plan=plan,
            expected_batch_size=release.sampling.rate * len(cast(Any, loader.dataset)),
            loss_reduction=chosen.loss_reduction,
            generator=chosen.noise_generator,
            grad_sample_mode=chosen.grad_sample_mode,
        )
        if chosen.grad_sample_mode != "ghost":
            return wrapped, private, loader
        criterion = GhostCriterion(wrapped, private, chosen.criterion, chosen.loss_reduction)
        return wrapped, private, criterion, loader

    def make_private_with_epsilon(  # noqa: PLR0913  # Opacus's own signature
        self,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data_loader: DataLoader[Any],
        noise: Noise,
        max_grad_norm: float,
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        **options: Any,
    ) -> tuple[Any, ...]:
        """`make_private` with the least multiple of ``noise`` that meets the target after epochs.

        What the engine's ledger holds already counts towards the target.

        Raises:
            Unattainable: where no multiple meets it. Those of `make_private`.
        """
        _ = EngineOptions(**options)
        batches, dim = len(data_loader), _dim(_trained(module, optimizer))
        release = gradient_release(noise, dim=dim, rate=sampled_rate(1 / batches))
        others = self.ledger.collected().entries
        plan = calibrate_scale(
            release,
            Target(epsilon=target_epsilon, delta=target_delta),
            steps=epochs * batches,
            accountant=accountant_for(release, *(other for other, _ in others)),
            others=others,
        )
        return self.make_private(
            module=module,
            optimizer=optimizer,
            data_loader=data_loader,
            noise=plan.mechanism.noise,
            max_grad_norm=max_grad_norm,
            **options,
        )

    def _wrapped(self, module: nn.Module, *, clip: float, chosen: EngineOptions) -> Any:
        """The module that computes gradients of single examples, or their norms."""
        wrapped = self._prepare_model(
            module,
            batch_first=chosen.batch_first,
            max_grad_norm=clip * (1 - GHOST_MARGIN),  # read in ghost mode alone
            loss_reduction=chosen.loss_reduction,
            grad_sample_mode=chosen.grad_sample_mode,
            wrap_model=chosen.wrap_model,
        )
        wrapped.forbid_grad_accumulation()
        return wrapped

    def _prepare_data_loader(self, data_loader: DataLoader[Any], **options: Any) -> DataLoader[Any]:
        """Opacus's loader, its draws on entropy of their own where the loader brings none."""
        loader = super()._prepare_data_loader(data_loader, **options)
        if data_loader.generator is None:
            fresh = torch.Generator()
            fresh.seed()
            loader.batch_sampler.generator = fresh
        return loader

    def _prepare_optimizer(
        self, *, optimizer: torch.optim.Optimizer, plan: Step, grad_sample_mode: str, **options: Any
    ) -> LawOptimizer:
        """The seam: the optimiser that Opacus would choose, with the law in it."""
        plain: Any = optimizer
        if isinstance(optimizer, DPOptimizer):
            plain = cast(Any, optimizer).original_optimizer
        theirs = get_optimizer_class("flat", distributed=False, grad_sample_mode=grad_sample_mode)
        private = _OPTIMIZERS[theirs](plain, plan=plan, **options)
        if private.release != plan.release or type(private).add_noise is not LawOptimizer.add_noise:
            raise ValueError(
                f"Expected an optimiser that adds {plan.release.noise}, got {type(private)}."
            )
        private.attach_step_hook(
            self.accountant.get_optimizer_hook_fn(sample_rate=plan.release.sampling.rate)
        )
        return private


def _trained(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What the optimiser trains, all of it in the module; refused where in several processes."""
    if isinstance(module, _DISTRIBUTED):
        raise ValueError(
            f"Expected a module in one process, got {type(module).__name__}: every rank would clip "
            "and round by itself, and what they sum was not proved here. Give the plain module."
        )
    known = set(module.parameters())
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    foreign = sum(p not in known for p in params)
    if foreign or not params:
        raise ValueError(
            f"Expected {len(params)} trained parameters, all in the module, got {foreign} that are "
            "not: make the optimiser of module.parameters(), after moving the module."
        )
    return params


def _dim(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _rate(loader: DataLoader[Any]) -> float:
    """The probability with which Opacus's sampler takes an example."""
    if not isinstance(loader, DPDataLoader):
        raise ValueError(f"Expected Opacus's Poisson loader, got {type(loader).__name__}.")
    return sampled_rate(float(cast(Any, loader).sample_rate))
