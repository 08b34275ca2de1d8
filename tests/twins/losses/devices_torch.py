"""Run by test_devices.py: the losses in two processes that talk over gloo, each with half of a batch."""

import sys

import numpy as np
import torch
import torch.distributed as dist

from tests.twins.losses.loss_cases import Case, devices_cases, limit, run


def main(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for case in devices_cases(2):
        half = slice(rank * 4, rank * 4 + 4)
        floats, data = ({name: x[half] for name, x in arrays.items()} for arrays in (case.floats, case.data))
        options = case.options | {"group": dist.group.WORLD}
        share, grads = run("torch", Case(case.loss, floats, data, options))
        total = torch.from_numpy(np.array(share))
        dist.all_reduce(total)
        whole, expected = run("torch", case)
        at_most = limit(case, "float32")
        np.testing.assert_allclose(total.numpy(), whole, rtol=0, atol=at_most)
        for name, grad in expected.items():
            np.testing.assert_allclose(grads[name], grad[half], rtol=0, atol=at_most)
        if rank == 0:
            print(case.loss, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
