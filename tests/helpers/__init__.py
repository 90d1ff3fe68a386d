"""What tests of several folders share: runs as a user starts them, decoded texts, caches, fakes, exported folders."""
