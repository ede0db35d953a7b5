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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnn_research.errors import UserError
from cnn_research.layers import DEVICE_AXIS
from cnn_research.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Jit:
    """One program over a mesh: the batch is cut along its first axis, the state is replicated or cut too.

    Attributes:
      mesh: of one axis.
      sharded: fields of the state whose arrays are cut over the devices.
    """

    mesh: Mesh
    sharded: tuple[str, ...] = ()
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
    def batch_sharding(self) -> NamedSharding:
        """Cut along the first axis, a part for each device."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))

    def layout(self, state: TrainState) -> TrainState:
        """Returns the sharding of each array of a state.

        An array of a sharded field is cut along the longest of its axes that divides among the devices, if there is
        one. XLA gathers it where it is used, and gives each device only its own part of what is computed for it.

        Args:
          state: with the shapes.
        """

        def cut(x: Any) -> NamedSharding:
            axes = [axis for axis, size in enumerate(x.shape) if size % self.devices == 0]
            if not axes:
                return self.replicated
            longest = max(axes, key=lambda axis: x.shape[axis])
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * longest, self.mesh.axis_names[0]))

        whole = jax.tree.map(lambda _: self.replicated, state)
        return dataclasses.replace(whole, **{field: jax.tree.map(cut, getattr(state, field)) for field in self.sharded})

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
        processes = list(dict.fromkeys(device.process_index for device in self.mesh.devices.flat))
        local, place = batch_size // len(processes), processes.index(jax.process_index())
        return slice(place * local, (place + 1) * local)

    def replicate(self, tree: Any) -> Any:
        """Puts values, which are the same in all processes, on every device of the mesh."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(self._replicate_from_host, tree)

    def _replicate_from_host(self, x: Any) -> jax.Array:
        """Does so where a single process's array cannot be put on the devices of others."""
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._replicate_from_host(jax.random.key_data(x)))
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

    def spread(self, tree: Any) -> Any:
        """Returns what `replicate` returned in the layout that the compiled step takes."""
        return tree

    def collect(self, tree: Any) -> Any:
        """Undoes `spread`."""
        return tree

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Puts this process's block of a batch on its devices."""
        if jax.process_count() == 1:
            return jax.device_put(batch, self.batch_sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.batch_sharding, x), batch)

    def compile(self, step: Callable[..., Any], layout: TrainState | None = None) -> Callable[..., Any]:
        """Compiles `step(state, batch, data) -> (state, metrics)`; the old state's memory is reused.

        Args:
          step: of training.
          layout: of the new state, from `layout`; replicated unless given.
        """

        def traced(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # batch norm's groups are cut along it
                return step(*arguments)

        return jax.jit(traced, donate_argnums=0, out_shardings=(layout or self.replicated, self.replicated))


@dataclasses.dataclass(frozen=True)
class Pmap(Jit):
    """A replica on each device, joined by `DEVICE_AXIS`; batches and states have a leading axis of local devices."""

    axis_name: ClassVar[str | None] = DEVICE_AXIS

    def spread(self, tree: Any) -> Any:
        """Gives each local device its replica, under a leading axis."""
        devices = list(self.mesh.local_mesh.devices.flat)
        sharding = NamedSharding(Mesh(devices, (DEVICE_AXIS,)), PartitionSpec(DEVICE_AXIS))

        def stack(x: jax.Array) -> jax.Array:
            copies = [jax.device_put(x.addressable_shards[0].data[None], device) for device in devices]
            return jax.make_array_from_single_device_arrays((len(devices), *x.shape), sharding, copies)

        return jax.tree.map(stack, tree)

    def collect(self, tree: Any) -> Any:
        """Takes the first replica; they are all the same."""
        return self.replicate(jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree))

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Cuts this process's block of a batch among its devices; the compiled step transfers it."""
        count = self.mesh.local_mesh.size
        return {key: value.reshape(count, -1, *value.shape[1:]) for key, value in batch.items()}

    def compile(self, step: Callable[..., Any], layout: TrainState | None = None) -> Callable[..., Any]:
        """Compiles `step(state, batch, data) -> (state, metrics)`; the metrics are those of the first replica."""
        mapped = jax.pmap(step, axis_name=DEVICE_AXIS, donate_argnums=0, devices=list(self.mesh.devices.flat))

        def run(state: Any, batch: Any, data: Any) -> tuple[Any, Any]:
            state, metrics = mapped(state, batch, data)
            return state, jax.tree.map(lambda x: x.addressable_shards[0].data, metrics)

        return run


# What of the state is cut over the devices: stages 1 and 3 of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054).
SHARDED = {"off": (), "optimizer": ("opt_state",), "all": ("opt_state", "params", "average", "twin")}


def make_parallel(kind: str, devices: Sequence[jax.Device] = (), shard_state: str = "off") -> Jit:
    """Returns the way of running that `config.parallel` names.

    Args:
      kind: `jit` or `pmap`.
      devices: of the mesh; all there are, of all processes, unless given.
      shard_state: what of the state is cut over them, a name of `SHARDED`.

    Raises:
      UserError: replicas cannot share a state.
    """
    if kind == "pmap" and SHARDED[shard_state]:
        raise UserError(f"shard_state={shard_state} needs parallel=jit; under pmap each device has all of the state")
    # Slice by slice, and in each process by process, so that a process's part of a batch is one block of it and that
    # neighbours share batch norm's statistics. That is all that a mesh of one axis asks for: XLA lays the sums over all
    # devices out by the slices' wires, and adds within slices before it does between them, whatever the mesh's order.
    devices = sorted(devices or jax.devices(), key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id))
    mesh = Mesh(np.array(devices), (DEVICE_AXIS,), axis_types=(AxisType.Auto,))
    return Pmap(mesh) if kind == "pmap" else Jit(mesh, SHARDED[shard_state])
