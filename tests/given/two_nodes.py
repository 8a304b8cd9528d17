"""A Ray cluster of two nodes on one machine, and a command run while it is up.

Usage: ``python -m tests.given.two_nodes FOLDER COMMAND …``; ADDRESS in the command becomes the
cluster's. Each node, and the command, has a NODE_CACHE of its own below FOLDER.
"""

import os
import subprocess
import sys

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # both nodes on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster


def main(folder: str, command: list[str]) -> int:
    cluster = Cluster(initialize_head=False)
    try:
        for i in range(2):
            cache = {"NODE_CACHE": f"{folder}/node{i}"}
            cluster.add_node(num_cpus=1, env_vars=cache, include_dashboard=False)
        os.environ["NODE_CACHE"] = f"{folder}/driver"
        words = [word.replace("ADDRESS", cluster.address) for word in command]
        return subprocess.run(words, check=False).returncode
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
