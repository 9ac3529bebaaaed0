//! A UDP socket that may come back at another address.
