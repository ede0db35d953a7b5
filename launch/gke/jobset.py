"""A run as a Kubernetes JobSet. https://jobset.sigs.k8s.io, https://cloud.google.com/kubernetes-engine/docs/how-to/tpus."""

from collections.abc import Mapping
from typing import Any

from cnn_research.errors import UserError
from launch.job import WRONG, Job, require_bucket
from launch.topologies import TPUS

OPTIONS = {
    "image": "of a container with this repository, see launch/gke/Dockerfile",
    "service_account": "Kubernetes's, which may write to the bucket",
    "max_restarts": "how often machines may be lost (100)",
}


def render(job: Job, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the JobSet: a job for each slice, a pod for each of its virtual machines.

    Args:
      job: to launch.
      options: see `OPTIONS`; `image` must be among them.

    Raises:
      UserError: GKE has no such machines, an option is missing, or the run's directory would be lost with a machine.
    """
    require_bucket(job, "GKE")
    topology = job.topology
    if topology.kind not in TPUS:
        raise UserError(f"a JobSet here wants TPUs, not {topology}; give v5e:4x4, or 2xv5e:16x16 for two slices")
    if "image" not in options:
        raise UserError(f"--option=image=… is missing: {OPTIONS['image']}")
    restarts = options.get("max_restarts", "100")
    if not restarts.isdecimal():
        raise UserError(f"--option=max_restarts={restarts} is no number of restarts")
    container = {
        "name": "train",
        "image": options["image"],
        # Python itself, so that signals reach it. Kubernetes writes variables in the place of $(NAME), and $ for $$.
        "command": [word.replace("$", "$$") for word in ("python", *job.module)],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # of TPUs, and between slices
        "resources": {"limits": {"google.com/tpu": topology.chips_per_vm}},
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": TPUS[topology.kind].accelerator,
        "cloud.google.com/gke-tpu-topology": topology.size,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
    }
    if "service_account" in options:
        pod["serviceAccountName"] = options["service_account"]
    wrong = {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [WRONG]}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            # A pod that ends otherwise than well fails its job, and that starts all of them again; a pod with what is
            # wrong ends the JobSet.
            "failurePolicy": {
                "maxRestarts": int(restarts),
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": topology.slices,
                    "template": {
                        "spec": {
                            "parallelism": topology.vms,
                            "completions": topology.vms,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": [wrong]},
                            "template": {"spec": pod},
                        }
                    },
                }
            ],
        },
    }


def command(path: str) -> list[str]:
    """Returns the command that sends a JobSet.

    Args:
      path: of its file.
    """
    return ["kubectl", "apply", "--filename", path]


def node_pool(job: Job) -> str:
    """Returns the command that makes the nodes of one slice."""
    topology = job.topology
    machine = TPUS[topology.kind].machines[topology.chips_per_vm]
    shape = f" --tpu-topology={topology.size}" if topology.vms > 1 else ""
    spot = " --spot" if job.spot else ""
    return (
        f"gcloud container node-pools create {topology.kind}-{topology.size} --cluster=CLUSTER --location=LOCATION"
        f" --node-locations=ZONE --machine-type={machine} --num-nodes={topology.vms}{shape}{spot}"
    )
