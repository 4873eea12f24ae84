"""One use case a file: options in, result out, progress as a parameter."""
