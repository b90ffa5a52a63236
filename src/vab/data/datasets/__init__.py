"""Official files of a dataset -> a manifest; one small module per dataset."""
