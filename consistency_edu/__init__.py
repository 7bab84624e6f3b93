"""Few-step diffusion: denoisers, their ODE, consistency models, and what is distilled from them.

The names below are the front door: `from consistency_edu import ConsistencyDistillation`.  Each is
loaded when it is first asked for, from the module that the chapter of its idea exports.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "data": "draw_points load_digits tensor_batches toy toy_batches",
    "image_sets": "load_images",
    "score": "ExactDenoiser",
    "networks": "MLP UNet",
    "training": "fit train",
    "pf_ode": "EDMDenoiser edm_objective karras_sigmas solve_pf_ode",
    "guidance": "Guided LabelDropout",
    "consistency": "ConsistencyModel ExactConsistency",
    "sampling": "sample_multistep sample_one_step",
    "distillation": "ConsistencyDistillation",
    "consistency_training": "ConsistencyTraining",
    "progressive": "DirectDistillation ProgressiveDistillation",
    "boot": "Boot BootStudent SignalModel",
    "editing": "edit",
    "images.runs": "load_pretrained load_run",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str):
    """Load the module in which `name` stands, and return `name` from there."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'consistency_edu' has no attribute '{name}'")
    return getattr(importlib.import_module(f"consistency_edu.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    """Return the names of the front door besides those that are there already."""
    return sorted({*globals(), *__all__})
