//! What the fuzzer needs of the parts that read what others wrote.

use prost::Message;

use crate::{handover::Handover, image, log, rpc::Response};

/// Reads `bytes` as everything that crac-criu reads.
///
/// # Panics
///
/// What was read as a handover does not come back as it was written.
pub fn read(bytes: &[u8]) {
    // Whether it can be read is nobody's business here, only that the answer comes.
    let _ = Response::decode(bytes);
    if let Some(handover) = Handover::decode(bytes) {
        assert_eq!(Handover::decode(&handover.encode()), Some(handover));
    }
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = image::parse(text);
        let _advice = log::advice(&log::decisive(text));
    }
}
