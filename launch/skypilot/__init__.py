"""SkyPilot: TPU VMs and GPU nodes of clouds, and managed jobs that outlive spot machines."""
