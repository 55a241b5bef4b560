"""Run by the interpreter that has Ray: two nodes on loopback, a server's replica on each, until its input ends.

Arguments: the artifact, and a port. Prints a JSON line when it is ready.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps to loopback, which Ray does by itself on these systems alone
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # one proxy for both nodes
}


def main(artifact: str, port: str) -> None:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from serve.config import ModelSpec, ServerConfig
    from serve.ray_deployment import deployment

    node = {"num_cpus": 2, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args=node | {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    )
    try:
        cluster.add_node(**node, node_ip_address="127.0.0.1")
        ray.init(address=cluster.address, _node_ip_address="127.0.0.1", log_to_driver=False)
        config = ServerConfig(models=(ModelSpec(name="news", path=Path(artifact), threads=1, max_batch_size=8),))
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)})
        app = deployment(config, num_replicas=2, cpus_per_replica=0.5, max_per_node=1)
        serve.run(app, name="edgesmith", route_prefix="/")
        nodes = [one for one in ray.nodes() if one["Alive"]]
        sys.stdout.write(json.dumps({"num_nodes": len(nodes), "url": f"http://127.0.0.1:{port}"}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
