//! Reads what a process holds and names what a checkpoint would not survive.
