"""How one step runs on many devices: `jit` over a mesh, or `pmap` over replicas.

`jit` compiles one program for the global batch: batch norm sees all of it, and the result does not depend on the number
of devices. `pmap` runs a replica on each device and joins them by an axis name; it gives the same result where batch
norm is synchronised (which it is here) and nothing draws inside the network: dropout draws per replica.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnn_research.errors import UserError
from cnn_research.layers import DEVICE_AXIS


@dataclasses.dataclass(frozen=True)
class Jit:
    """One program over a mesh: the state is replicated, the batch is cut along its first axis.

    Attributes:
      mesh: of one axis.
    """

    mesh: Mesh
    axis_name: ClassVar[str | None] = None

    @property
    def devices(self) -> int:
        """Number of devices of all processes."""
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds all of it."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Cut along the first axis, a part for each device."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    def block(self, batch_size: int, accumulate: int = 1) -> slice:
        """Returns this process's part of the global batch.

        Args:
          batch_size: of the global batch.
          accumulate: micro-batches that each device cuts its part into.

        Raises:
          UserError: the batch does not divide among the devices, or a device's part into micro-batches.
        """
        if batch_size % self.devices:
            below, above = batch_size // self.devices * self.devices, -(-batch_size // self.devices) * self.devices
            raise UserError(
                f"batch_size={batch_size} does not divide among {self.devices} devices;"
                f" {' or '.join(map(str, filter(None, (below, above))))} does"
            )
        if batch_size // self.devices % accumulate:
            raise UserError(
                f"batch_size={batch_size} is {batch_size // self.devices} for each of {self.devices} devices,"
                f" which do not divide into accumulate={accumulate} micro-batches"
            )
        local = batch_size // jax.process_count()
        return slice(jax.process_index() * local, (jax.process_index() + 1) * local)

    def replicate(self, tree: Any) -> Any:
        """Puts the same values on every device of the mesh."""
        return jax.device_put(tree, self.replicated)

    def spread(self, tree: Any) -> Any:
        """Returns what `replicate` returned in the layout that the compiled step takes."""
        return tree

    def collect(self, tree: Any) -> Any:
        """Undoes `spread`."""
        return tree

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Puts this process's block of a batch on its devices."""
        if jax.process_count() == 1:
            return jax.device_put(batch, self.sharded)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.sharded, x), batch)

    def compile(self, step: Callable) -> Callable:
        """Compiles `step(state, batch, data) -> (state, metrics)`; the old state's memory is reused."""

        def traced(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # batch norm's groups are cut along it
                return step(*arguments)

        return jax.jit(traced, donate_argnums=0, out_shardings=self.replicated)


@dataclasses.dataclass(frozen=True)
class Pmap(Jit):
    """A replica on each device, joined by `DEVICE_AXIS`; batches and states have a leading axis of local devices."""

    axis_name: ClassVar[str | None] = DEVICE_AXIS

    def spread(self, tree: Any) -> Any:
        """Gives each local device its replica, under a leading axis."""
        devices = jax.local_devices()
        sharding = NamedSharding(Mesh(devices, (DEVICE_AXIS,)), PartitionSpec(DEVICE_AXIS))

        def stack(x: jax.Array) -> jax.Array:
            copies = [jax.device_put(x.addressable_shards[0].data[None], device) for device in devices]
            return jax.make_array_from_single_device_arrays((len(devices), *x.shape), sharding, copies)

        return jax.tree.map(stack, tree)

    def collect(self, tree: Any) -> Any:
        """Takes the first replica; they are all the same."""
        first = jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)
        if jax.process_count() > 1:  # a single process's array cannot be spread over the devices of others
            first = jax.tree.map(_through_host, first)
        return self.replicate(first)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Cuts this process's block of a batch among its devices; the compiled step transfers it."""
        count = jax.local_device_count()
        return {key: value.reshape(count, -1, *value.shape[1:]) for key, value in batch.items()}

    def compile(self, step: Callable) -> Callable:
        """Compiles `step(state, batch, data) -> (state, metrics)`; the metrics are those of the first replica."""
        mapped = jax.pmap(step, axis_name=DEVICE_AXIS, donate_argnums=0)

        def run(state: Any, batch: Any, data: Any) -> tuple[Any, Any]:
            state, metrics = mapped(state, batch, data)
            return state, jax.tree.map(lambda x: x.addressable_shards[0].data, metrics)

        return run


def _through_host(x: jax.Array) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(x))))
    return np.asarray(x)


def make_parallel(kind: str, devices: Sequence[jax.Device] = ()) -> Jit:
    """Returns the way of running that `config.parallel` names.

    Args:
      kind: `jit` or `pmap`.
      devices: of the mesh; all there are unless given. Replicas are on all.
    """
    devices = devices or jax.devices()
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:  # the chips of a slice side by side, so that sums are taken in it first
        grid = create_hybrid_device_mesh((len(devices) // slices,), (slices,), devices)
        mesh = Mesh(grid, (DEVICE_AXIS,), axis_types=(AxisType.Auto,))
    else:
        mesh = jax.make_mesh((len(devices),), (DEVICE_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Pmap(mesh) if kind == "pmap" else Jit(mesh)
