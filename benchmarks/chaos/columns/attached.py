"""surefoot inside other loops: a line for the optimizer, one for the loader, the rest as ever."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.chaos.columns.hand import Amp, Plain
from benchmarks.chaos.columns.huggingface import Accelerate, Transformers
from benchmarks.chaos.columns.lightning import Lightning

if TYPE_CHECKING:
    from benchmarks.chaos.run import Run

__all__ = ["OnAccelerate", "OnAmp", "OnLightning", "OnPlain", "OnTransformers"]


class _Attached:
    """What the attached columns share."""

    records = attached = True

    def protect(self, loader: DataLoader[Any], run: Run) -> None:
        """Bad samples are set aside, dead workers replaced."""
        from surefoot.data import SafeLoader, label_range

        def told(incident: Any) -> None:
            run.say("quarantine", message=str(incident), **incident.to_dict())

        SafeLoader(loader, check=label_range(10), on_record=told)


class _InHandLoop(_Attached):
    """The guard in a hand-written loop."""

    net: nn.Module
    optimizer: Any
    scaler: Any = None

    def begin(self, run: Run) -> None:
        """The one line."""
        from surefoot import attach
        from surefoot.guard import MemoryWatch

        super().begin(run)  # type: ignore[misc]
        watch = MemoryWatch()

        def told(record: Any) -> None:
            _say(record)
            if growth := watch.step():
                run.say("memory", step=record.step, message=str(growth), **growth.to_dict())

        self.attachment = attach(self.optimizer, self.net, scaler=self.scaler, on_record=told)

    def see(self, loss: Tensor, ids: Tensor) -> None:
        """The optional line that tells the loss."""
        self.attachment.observe(loss, sample_ids=[str(i) for i in ids.tolist()])


class OnPlain(_InHandLoop, Plain):
    """In the float32 loop."""

    def __init__(self) -> None:
        super().__init__("surefoot@plain", "surefoot in the plain loop")


class OnAmp(_InHandLoop, Amp):
    """In the loop with a GradScaler."""

    def __init__(self) -> None:
        super().__init__("surefoot@amp", "surefoot in plain AMP")


class OnLightning(_Attached, Lightning):
    """As a callback."""

    name, title = "surefoot@lightning", "surefoot in Lightning"

    def callbacks(self, run: Run) -> list[Any]:
        """The one line."""
        from surefoot.integrations.lightning import GuardCallback

        return [GuardCallback(sample_ids=lambda batch: [str(i) for i in batch[2].tolist()])]


class OnTransformers(_Attached, Transformers):
    """Around the Trainer."""

    name, title = "surefoot@transformers", "surefoot in the Transformers Trainer"

    def attach(self, trainer: Any, run: Run) -> None:
        """The one line."""
        from surefoot.integrations.transformers import attach

        attach(trainer)

    def trainer_class(self, usual: Any, run: Run) -> Any:
        """One whose loader is protected."""
        protect = self.protect

        class Protected(usual):
            def get_train_dataloader(self) -> Any:
                loader = super().get_train_dataloader()
                protect(loader, run)
                return loader

        return Protected


class OnAccelerate(_Attached, Accelerate):
    """Beside the accelerator."""

    name, title = "surefoot@accelerate", "surefoot in Accelerate"

    def attach(
        self, accelerator: Any, optimizer: Any, model: nn.Module, loader: Any, run: Run
    ) -> None:
        """The one line."""
        from surefoot.integrations.accelerate import attach

        self.guard = attach(accelerator, optimizer, model)
        self.protect(loader, run)

    def see(self, ids: Tensor) -> None:
        """The optional line that names the samples."""
        self.guard.name_samples([str(i) for i in ids.tolist()])


def _say(record: Any) -> None:
    """Steps that were not healthy go into the log; it would be long otherwise."""
    values = record.to_dict()
    if record.refused or set(values["events"]) - {"clipped"}:
        print("@entry " + json.dumps({"kind": "step", **values}))
