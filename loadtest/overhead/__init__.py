"""What serving costs beside the model: processor time of every part a request, and the least that this stack could."""
