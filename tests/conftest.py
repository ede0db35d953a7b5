"""What every test shares: eight virtual devices, and shapes checked as the code runs."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Before the package is imported: the hook rewrites its modules as they load.
install_import_hook("cnn_research", "beartype.beartype")
