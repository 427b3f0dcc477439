"""Networks on the disk: the .qsr file, those that come with qsr, the authors' checkpoint."""
