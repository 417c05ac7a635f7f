"""Executors, which compute experiments side by side: in processes of this machine, or on Ray."""
