"""MOON: representations are drawn to the global model's and away from the client's last one."""
