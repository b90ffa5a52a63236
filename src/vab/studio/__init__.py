"""`vab studio`: a page that makes sound for a video, keeps what is good and redoes the rest."""
