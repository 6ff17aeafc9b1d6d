"""The node: containerd, kubelet and kube-proxy, their configuration and command lines.

Paths are those inside the cluster's mount namespace, where ``RUNTIME_DIR`` holds everything.
"""

from __future__ import annotations

import json
from pathlib import Path

RUNTIME_DIR = Path("/run/poolkeeper")  # short: a Unix socket's path holds at most 107 bytes
CONTAINERD_SOCKET = RUNTIME_DIR / "containerd.sock"
NODE_NAME = "poolkeeper-local"
POD_RANGE = "10.244.0.0/24"
DNS_ADDRESS = "10.96.0.10"
CGROUP = "/poolkeeper"  # a tree of our own, so that taking it away touches nobody else's
MAX_PODS = 110


def containerd_config(pause_image: str) -> str:
    """containerd for Kubernetes alone: no image comes from anywhere but an import."""
    return f"""\
version = 2
root = "{RUNTIME_DIR}/state/containerd"
state = "{RUNTIME_DIR}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause_image}"
# Lowering a process's oom_score_adj needs CAP_SYS_RESOURCE, which not every machine grants to root.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{RUNTIME_DIR}/state/cni"
"""


def cni_config() -> str:
    """One routed pair of interfaces per pod. A bridge would need br_netfilter for replies from Services."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"{RUNTIME_DIR}/cni-addresses",
    }
    plugins = [
        {"type": "ptp", "ipMasq": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=2)


def kubelet_config() -> str:
    """A KubeletConfiguration: like a real node's, apart from what keeps a small shared machine usable."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{RUNTIME_DIR}/state/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{RUNTIME_DIR}/state/pki/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{RUNTIME_DIR}/state/pki/kubelet-server.key",
        "readOnlyPort": 0,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": f"{RUNTIME_DIR}/state/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": CGROUP,
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "maxPods": MAX_PODS,
        "podLogsDir": "/var/log/pods",
        # There is nowhere to pull from, so an image that is collected is gone; and a disk that others
        # fill must not evict pods in the middle of a test.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "localStorageCapacityIsolation": False,
    }
    return json.dumps(config, indent=2)


def kube_proxy_config() -> str:
    """A KubeProxyConfiguration that leaves the kernel's connection tracking limits as they are."""
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{RUNTIME_DIR}/state/kube-proxy.kubeconfig"},
        "mode": "nftables",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NODE_NAME,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    return json.dumps(config, indent=2)


def containerd_argv() -> list[str]:
    return ["containerd", "--config", f"{RUNTIME_DIR}/state/containerd.toml", "--log-level", "warn"]


def kubelet_argv(address: str) -> list[str]:
    return [
        f"{RUNTIME_DIR}/bin/kubelet",
        f"--config={RUNTIME_DIR}/state/kubelet.json",
        f"--kubeconfig={RUNTIME_DIR}/state/kubelet.kubeconfig",
        f"--root-dir={RUNTIME_DIR}/state/kubelet",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={address}",
    ]


def kube_proxy_argv() -> list[str]:
    return [f"{RUNTIME_DIR}/bin/kube-proxy", f"--config={RUNTIME_DIR}/state/kube-proxy.json"]
