"""How Sextant runs where it is used: container, Kubernetes, Prometheus and Grafana, replicas behind a balancer."""
