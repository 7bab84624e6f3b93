"""Too little memory on a GPU is one sentence, with a batch that fits."""

import pytest
import torch

from consistency_edu import image_runs
from consistency_edu.data import InputError
from consistency_edu.image_methods import Recipe, build_network, build_objective
from consistency_edu.image_runs import prepare

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
        monkeypatch.setattr(image_runs, "speed_up", room_for(most))
        monkeypatch.setattr(image_runs, "try_out", room_for(most))
        remedy = f"batch of 256 is too much for 'cuda': use --batch {fits}\\."
        with pytest.raises(InputError, match=remedy):
            prepare(Recipe("try", batch=256), None, (1, 8, 8), torch.device("cuda"))
    monkeypatch.setattr(image_runs, "speed_up", room_for(256))
    prepare(Recipe("try", batch=256), None, (1, 8, 8), torch.device("cuda"))


@on_cuda
@pytest.mark.parametrize("compiles", ["nothing", "networks"])
def test_on_a_gpu_the_suggested_batch_fits(compiles):
    recipe = Recipe("try", network="small", batch=4096, precision="bfloat16", compiles=compiles)
    network = build_network(recipe, (3, 32, 32)).cuda()
    objective = build_objective(recipe, network)
    share = 4e9 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(InputError, match="use --batch ") as found:
            prepare(recipe, objective, (3, 32, 32), torch.device("cuda"))
        fits = int(str(found.value).rstrip(".").split()[-1])
        assert 16 <= fits < 4096
        image_runs.try_out(objective, (torch.zeros(fits, 3, 32, 32, device="cuda"), None))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
