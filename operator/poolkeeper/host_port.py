"""A host and a port as one text, in the one form that tells them apart. Nothing else joins the two."""


def host_port(host: str, port: int) -> str:
    """`host:port`, and `[host]:port` for an IPv6 address (RFC 3986, 3.2.2): no other host has a colon."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
