"""What the tests stand on: real servers, and a model backend with faults to order."""
