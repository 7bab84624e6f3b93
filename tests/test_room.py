"""Too little memory on a GPU is one sentence, with a batch that fits."""

import pytest
import torch

from consistency_edu.data import InputError
from consistency_edu.images import setup
from consistency_edu.images.methods import build_network, build_objective
from consistency_edu.images.recipes import Recipe
from consistency_edu.images.setup import compile_objective

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_the_largest_batch_that_fits_is_suggested(monkeypatch):
    def room_for(most):
        def work(objective, batch, **options):
            if len(batch[0]) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

        return work

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: zeros(*size, **more))
    for most, fits in ((100, 64), (5, 4), (0, 1)):
        monkeypatch.setattr(setup, "speed_up", room_for(most))
        monkeypatch.setattr(setup, "try_out", room_for(most))
        remedy = f"256 images at once are .* --accumulate {256 // fits} --compiles networks, or "
        remedy += f"--batch {fits}\\."
        with pytest.raises(InputError, match=remedy):
            compile_objective(Recipe("try", batch=256), None, (1, 8, 8), torch.device("cuda"))
    for name in ("speed_up", "try_out"):
        monkeypatch.setattr(setup, name, room_for(100))  # a batch of 256 in four parts
    compile_objective(Recipe("try", batch=256, accumulate=4), None, (1, 8, 8), torch.device("cuda"))
    with pytest.raises(InputError, match="128 images .* --accumulate 4 .* or --batch 128"):
        recipe = Recipe("try", batch=256, accumulate=2)
        compile_objective(recipe, None, (1, 8, 8), torch.device("cuda"))
    monkeypatch.setattr(setup, "speed_up", room_for(256))
    compile_objective(Recipe("try", batch=256), None, (1, 8, 8), torch.device("cuda"))


@on_cuda
def test_on_a_gpu_the_suggested_batch_fits():
    recipe = Recipe("try", network="small", batch=4096, precision="bfloat16")
    network = build_network(recipe, (3, 32, 32)).cuda()
    objective = build_objective(recipe, network)
    share = 4e9 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(InputError, match="use --batch ") as found:
            compile_objective(recipe, objective, (3, 32, 32), torch.device("cuda"))
        fits = int(str(found.value).rstrip(".").split()[-1])
        assert 16 <= fits < 4096
        setup.try_out(objective, (torch.zeros(fits, 3, 32, 32, device="cuda"), None))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
