"""Run by test_devices.py: the losses on 8 virtual devices of a CPU, as shards of one batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import maskattn_jax
from tests.twins.losses.loss_cases import devices_cases, limit, run


def shares(case, mesh):
    """The sum of the shares of a loss, and the gradients by the floats and by one parameter that scales them all."""

    def local(scale, floats, data):
        loss = getattr(maskattn_jax.losses, case.loss)
        scaled = {name: scale * x for name, x in floats.items()}
        return loss(**scaled, **data, **case.options, axis_name="data")

    def step(scale, floats, data):
        scale = jax.lax.pcast(scale, "data", to="varying")  # its gradient is then a share, to be summed
        value, (by_scale, by_floats) = jax.value_and_grad(local, argnums=(0, 1))(scale, floats, data)
        return jax.lax.psum(value, "data"), jax.lax.psum(by_scale, "data"), by_floats

    out = P(), P(), {name: P("data") for name in case.floats}
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=out)
    floats = {name: jnp.asarray(x, jnp.float32) for name, x in case.floats.items()}
    return jax.jit(sharded)(jnp.float32(1), floats, {name: jnp.asarray(x) for name, x in case.data.items()})


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert mesh.devices.size == 8
    for case in devices_cases(8):
        value, by_scale, by_floats = shares(case, mesh)
        whole, grads = run("jax", case)
        at_most = limit(case, "float32")
        np.testing.assert_allclose(value, whole, rtol=0, atol=at_most)
        for name, grad in grads.items():
            np.testing.assert_allclose(by_floats[name], grad, rtol=0, atol=at_most)
        expected = sum((grad.astype(float) * case.floats[name]).sum() for name, grad in grads.items())
        np.testing.assert_allclose(by_scale, expected, rtol=0, atol=at_most * 10)
        print(case.loss)


if __name__ == "__main__":
    main()
