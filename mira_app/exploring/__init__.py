"""What is to be seen of cells with topics, and how it is got; knows no widgets."""
