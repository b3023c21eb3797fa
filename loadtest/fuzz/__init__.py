"""Bad input: an OpenAPI document's worth of requests, odd texts and bodies, and malformed bundles."""
