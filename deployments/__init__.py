"""How the flows run: on one machine with its own Prefect server, or from work pools (``prefect.yaml``)."""
