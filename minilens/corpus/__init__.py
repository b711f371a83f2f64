"""The lens over files of text: documents, batches, sums, and a folder that workers share."""
