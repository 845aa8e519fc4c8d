"""What runs inside a job, and what runs jobs on this machine."""
