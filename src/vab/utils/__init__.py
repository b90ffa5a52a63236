"""What every package needs: files, locks, hashes, devices, processes, mel filters."""
