"""Papers, reproduced: a file each (``table.PAPERS``), and the frame that makes and keeps their runs."""
