"""The mesh of devices, and the hosts that train one run together."""
