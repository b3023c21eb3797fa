"""The peers' applications, as their documentation and examples write them. Each runs in its peer's environment."""
