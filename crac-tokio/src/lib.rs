//! Holds tokio runtimes for crac: workers, root futures, listeners, sockets, triggers.
