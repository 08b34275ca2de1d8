"""Which tiles of a mask are work: empty, full or mixed, without the matrix; rows and keys that nothing reaches."""
