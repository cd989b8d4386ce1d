"""Training a model: callbacks, router losses, resume, fitting routers."""
