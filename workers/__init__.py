"""This repository's example workers, one file each; ``config/workerkit.yaml`` runs them."""
