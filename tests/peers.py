"""What the peers are compared on: a published CIFAR ResNet, lossless images, equal settings.

torchattacks, foolbox, adv-lib, ART (adversarial-robustness-toolbox), secml-torch and pyautoattack,
which is upstream's code of AutoAttack as a package, get the network as their users would hand it
over: normalisation inside, eval mode, parameters that require gradients.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from cifar_resnet import resnet20
from rlskit.models.architecture import Architecture
from rlskit.models.banks import BankedModel, Card, Normalize
from rlskit.models.partition import partition
from rlskit.models.trace import trace
from rlskit.pixels import Pixels
from rlskit.torchvision_ops import declare_missing_operators

SHARED = Path(__file__).resolve().parents[2] / "shared"
PIXELS = Pixels(3, 32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

SETTINGS: dict[str, dict[str, Any]] = {
    "fgsm": {"eps": 2 / 255},
    "pgd": {"eps": 2 / 255, "step_size": 0.5 / 255, "steps": 10, "random_start": False},
    "deepfool": {"steps": 50, "overshoot": 0.02},
    "cw": {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01},
    "ead": {"c": 1.0, "beta": 0.01, "kappa": 0.0, "steps": 100, "lr": 0.01},
    "apgd-ce": {"eps": 1 / 255, "steps": 100},
    "apgd-t": {"eps": 1 / 255, "steps": 100, "target_classes": 9},
    "autoattack": {"eps": 1 / 255, "steps": 100, "queries": 5000},
}
"""Attack -> options, under our names; one constant, no early stop, 10 classes for DeepFool."""

OURS: dict[str, dict[str, Any]] = {
    "ead": {"optimizer": "fista"},
    "apgd-ce": {"rest": True},
    "apgd-t": {"rest": True},
    "autoattack": {"rest": True},
}
"""What only ours needs to be told: the peers have no other EAD, and none lets images rest."""

DIFFERENCES = {
    ("torchattacks", "cw"): "may stop early for the whole batch; pixels at 0 and 1 do not move",
    ("torchattacks", "ead"): "its clean reference moves along",
    ("foolbox", "cw"): "returns black images where it fails (counted as clean)",
    ("foolbox", "ead"): "returns black images where it fails (counted as clean)",
    (
        "adv_lib",
        "pgd",
    ): "does not look at where the last step ends; clean where it fails",
    ("secmlt", "pgd"): "does not look at where the last step ends",
    ("art", "cw"): "gradient descent with line searches instead of Adam",
    ("art", "deepfool"): "overshoots once, at the end",
    ("art", "ead"): "predicts and differentiates several times per step",
}
"""(peer, attack) -> in what it cannot be set up as ours."""

HAVE = {
    "torchattacks": "fgsm pgd deepfool cw ead apgd-ce apgd-t autoattack",
    "foolbox": "fgsm pgd deepfool cw ead",
    "adv_lib": "pgd deepfool cw apgd-ce apgd-t",
    "art": "fgsm pgd deepfool cw ead",
    "secmlt": "pgd",
    "pyautoattack": "apgd-ce apgd-t autoattack",
}
"""Peer -> its attacks of `SETTINGS`; of secml-torch those that it does not call others' for."""


def published_network() -> nn.Module:
    """The ResNet-20, images normalised; to be called with eval mode already set."""
    network = resnet20()
    network.load_state_dict(load_file(SHARED / "checkpoints" / "cifar10-resnet20.safetensors"))
    return network.eval()


def stock_model() -> nn.Module:
    """Images in [0, 1] to logits, as anyone would write it."""
    return nn.Sequential(Normalize(PIXELS), published_network()).eval()


def banked_model() -> BankedModel:
    """The same network as an undefended rlskit model."""
    network = published_network()
    card = Card(
        Architecture("own", "cifar_resnet.py:resnet20", digest="none"), PIXELS, 10, "none",
        pretrained="published",
    )  # fmt: skip
    return BankedModel([network], partition(network, trace(network, PIXELS.shape), "model"), card)


def lossless_images(count: int) -> tuple[Tensor, Tensor]:
    """`count` lossless test images in [0, 1], spread over the ten classes, and their labels."""
    paths = sorted((SHARED / "data" / "cifar10-subset" / "test").glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    pixels = np.stack([np.asarray(Image.open(path)) for path in chosen])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 255
    return images, torch.tensor([classes.index(path.parent.name) for path in chosen])


def run_torchattacks(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    import torchattacks as ta

    make: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: ta.FGSM(model, eps=o["eps"]),
        "pgd": lambda: ta.PGD(model, o["eps"], o["step_size"], o["steps"], o["random_start"]),
        "deepfool": lambda: ta.DeepFool(model, o["steps"], o["overshoot"]),
        "cw": lambda: ta.CW(model, o["c"], o["kappa"], o["steps"], o["lr"]),
        "ead": lambda: ta.EADEN(
            model, o["kappa"], o["lr"], 1, o["steps"], abort_early=False,
            initial_const=o["c"], beta=o["beta"],
        ),
        "apgd-ce": lambda: ta.APGD(model, "Linf", o["eps"], o["steps"], loss="ce"),
        "apgd-t": lambda: ta.APGDT(model, "Linf", o["eps"], o["steps"], n_classes=10),
        "autoattack": lambda: ta.MultiAttack(  # its own AutoAttack takes 10 steps
            [
                ta.APGD(model, "Linf", o["eps"], o["steps"], loss="ce"),
                ta.APGDT(model, "Linf", o["eps"], o["steps"], n_classes=10),
                ta.FAB(model, "Linf", o["eps"], o["steps"], multi_targeted=True, n_classes=10),
                ta.Square(model, "Linf", o["eps"], o["queries"]),
            ]
        ),
    }  # fmt: skip
    adversarial: Tensor = make[method]()(images, labels)
    return adversarial.detach()


def run_foolbox(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    import foolbox as fb

    make: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: fb.attacks.LinfFastGradientAttack(),
        "pgd": lambda: fb.attacks.LinfPGD(
            abs_stepsize=o["step_size"], steps=o["steps"], random_start=o["random_start"]
        ),
        "deepfool": lambda: fb.attacks.L2DeepFoolAttack(
            steps=o["steps"], candidates=10, overshoot=o["overshoot"]
        ),
        "cw": lambda: fb.attacks.L2CarliniWagnerAttack(
            1, o["steps"], o["lr"], o["kappa"], o["c"], abort_early=False
        ),
        "ead": lambda: fb.attacks.EADAttack(
            1, o["steps"], o["lr"], o["kappa"], o["c"], o["beta"], "EN", abort_early=False
        ),
    }
    wrapped = fb.PyTorchModel(model, bounds=(0, 1), device=images.device)
    adversarial: Tensor
    adversarial, _, _ = make[method]()(wrapped, images, labels, epsilons=o.get("eps"))
    black = (adversarial == 0).flatten(1).all(1)
    return torch.where(black[:, None, None, None], images, adversarial).detach()


def run_adv_lib(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    declare_missing_operators()  # it imports torchvision
    from adv_lib import attacks

    make: dict[str, Callable[[], Tensor]] = {
        "pgd": lambda: attacks.pgd_linf(
            model, images, labels, o["eps"], steps=o["steps"], random_init=o["random_start"],
            absolute_step_size=o["step_size"],
        ),
        "deepfool": lambda: attacks.df(
            model, images, labels, steps=o["steps"], overshoot=o["overshoot"]
        ),
        "cw": lambda: attacks.carlini_wagner_l2(
            model, images, labels, confidence=o["kappa"], learning_rate=o["lr"],
            initial_const=o["c"], binary_search_steps=o.get("search_steps", 1),
            max_iterations=o["steps"], abort_early=False,
        ),
        "ddn": lambda: attacks.ddn(model, images, labels, steps=o["steps"], levels=None),
        "fmn": lambda: attacks.fmn(
            model, images, labels, norm=ORDERS[o["norm"]], steps=o["steps"]
        ),
        "sigma-zero": lambda: attacks.sigma_zero(model, images, labels, num_steps=o["steps"]),
        "apgd-l1": lambda: attacks.apgd(
            model, images, labels, eps=o["eps"], norm=1, n_iter=o["steps"], loss_function="ce",
            use_large_reps=True,
        ),
        "apgd-ce": lambda: attacks.apgd(
            model, images, labels, o["eps"], math.inf, n_iter=o["steps"], loss_function="ce"
        ),
        "apgd-t": lambda: attacks.apgd_targeted(
            model, images, labels, o["eps"], math.inf, n_iter=o["steps"],
            num_targets=o["target_classes"],
        ),
    }  # fmt: skip
    return make[method]().detach()


ORDERS = {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}
"""Norm -> what adv-lib calls it."""


def run_art(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), PIXELS.shape, 10, clip_values=(0, 1), device_type="cpu"
    )
    quiet = {"batch_size": len(images), "verbose": False}
    once = {"confidence": o.get("kappa"), "learning_rate": o.get("lr"), "binary_search_steps": 1}
    make: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: evasion.FastGradientMethod(wrapped, eps=o["eps"], batch_size=len(images)),
        "pgd": lambda: evasion.ProjectedGradientDescentPyTorch(
            wrapped, eps=o["eps"], eps_step=o["step_size"], max_iter=o["steps"], **quiet
        ),
        "deepfool": lambda: evasion.DeepFool(wrapped, o["steps"], o["overshoot"], 10, **quiet),
        "cw": lambda: evasion.CarliniL2Method(
            wrapped, max_iter=o["steps"], initial_const=o["c"], **once, **quiet
        ),
        "ead": lambda: evasion.ElasticNet(
            wrapped, max_iter=o["steps"], beta=o["beta"], initial_const=o["c"], **once, **quiet
        ),
    }
    return torch.from_numpy(make[method]().generate(images.numpy(), labels.numpy()))


def run_secml(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    from secmlt.adv.evasion.ddn import DDN
    from secmlt.adv.evasion.fmn import FMN
    from secmlt.adv.evasion.pgd import PGD
    from torch.utils.data import DataLoader, TensorDataset

    own: dict[str, Any] = {"backend": "native"}
    make: dict[str, Callable[[], Any]] = {
        "pgd": lambda: PGD(
            "linf", o["eps"], o["steps"], o["step_size"], o["random_start"], **own
        ),
        "ddn": lambda: DDN(o["steps"], **own),
        "fmn": lambda: FMN(o["norm"], o["steps"], 1.0, **own),
    }  # fmt: skip
    batch = DataLoader(TensorDataset(images, labels), batch_size=len(images))
    ((adversarial, _),) = make[method]()(model, batch)
    found: Tensor = adversarial.detach()
    return found


def run_pyautoattack(
    method: str, model: nn.Module, images: Tensor, labels: Tensor, o: Mapping[str, Any]
) -> Tensor:
    from pyautoattack import AutoAttack

    parts = {"autoattack": ["apgd-ce", "apgd-t", "fab-t", "square"]}.get(method, [method])
    attack = AutoAttack(model, eps=o["eps"], seed=0, version="custom", attacks=parts)
    attack.apgd.n_restarts = attack.fab.n_restarts = 1  # as in its version `standard`
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 9
    attack.square.n_queries = o.get("queries", 5000)
    adversarial: Tensor
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return adversarial.detach()


Peer = Callable[[str, nn.Module, Tensor, Tensor, Mapping[str, Any]], Tensor]
"""Maps (attack, model, images, labels, options of `SETTINGS`) to adversarial images."""

PEERS: dict[str, Peer] = {
    "torchattacks": run_torchattacks,
    "foolbox": run_foolbox,
    "adv_lib": run_adv_lib,
    "art": run_art,
    "secmlt": run_secml,
    "pyautoattack": run_pyautoattack,
}


def installed() -> dict[str, Peer]:
    """The peers that this environment has."""
    return {name: run for name, run in PEERS.items() if importlib.util.find_spec(name)}
