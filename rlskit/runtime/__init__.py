"""The process and the machine it runs on: threads, memory, devices, and what an install lacks."""
