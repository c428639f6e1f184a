"""The inference service: published models over HTTP. Never imports training or TensorFlow."""
