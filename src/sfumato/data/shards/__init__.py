"""Images in tar shards (WebDataset), on a disk or behind a URL: packed, streamed, measured."""
