//! The coordination contract of crac.
mod engine;
mod lineage;
mod obstacle;
mod policy;
pub use engine::*;
pub use lineage::*;
pub use obstacle::*;
pub use policy::*;
/// stand-in until sim.rs exists
#[derive(Debug)]
pub struct SimEngine;
/// stand-in until context.rs exists
#[derive(Debug)]
pub struct Context;
