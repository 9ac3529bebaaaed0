//! Coordinated Restore at Checkpoint: checkpointable tokio services.
