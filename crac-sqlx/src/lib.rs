//! An sqlx pool that drains for a checkpoint and reconnects behind an unchanged handle.
