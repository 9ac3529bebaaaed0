//! The #[crac::main] attribute.
