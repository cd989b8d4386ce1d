"""Pictures of the routing: which patches of an image the model computed."""
