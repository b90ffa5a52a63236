"""What every package needs: files, locks, hashes, devices, mel filters."""
