"""Arrays in, arrays out: the discrete operations that convolutional networks are made of."""
