"""What the Codex drivers share: a private CODEX_HOME, and an environment that reaches nothing
but loopback."""

import os
import pathlib

CONFIG = """\
model = "{model}"
model_provider = "ring"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[otel]
exporter = "none"
[model_providers.ring]
name = "ring"
base_url = "{base_url}"
wire_api = "responses"
env_key = "RING_KEY"
supports_websockets = {websockets}
"""


def make_home(directory, base_url, websockets, model):
    """Writes the configuration; returns the environment to run codex in."""
    home = pathlib.Path(directory)
    config = CONFIG.format(
        base_url=base_url, websockets=str(websockets).lower(), model=model
    )
    (home / "config.toml").write_text(config)
    loopback = "127.0.0.1,localhost"
    return {
        **os.environ,
        "CODEX_HOME": str(home),
        "RING_KEY": os.environ.get("RING_KEY", "sample-key"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": loopback,
        "no_proxy": loopback,
    }
