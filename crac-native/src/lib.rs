//! The in-process checkpoint engine of crac: no privileges, nothing to install.
