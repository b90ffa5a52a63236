"""Waveform <-> tokens (section 3.1): the protocol, EnCodec, DAC and the bundled codec."""
